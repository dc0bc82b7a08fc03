"""The verb `chat`: a chat model answers, a base model continues what is typed; token by token."""

import json
import pathlib
import sys

import jax

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.stages import artifact
from jaxllm.stages.run import start_jax

_HELP = """{what}
  /probs TEXT        the likeliest next tokens after TEXT
  /temperature 0.7   likewise /top_k, /top_p, /min_p, /repetition_penalty, /max_new_tokens
{more}  /help              this
  /quit              or Ctrl-D"""
_CHAT_HELP = """  /system TEXT       begin anew with this system prompt; without TEXT, with none
  /reset             begin anew
  /raw TEXT          continue TEXT as it is, without the chat template
"""
_SETTINGS = {'temperature': float, 'top_k': int, 'top_p': float, 'min_p': float,
             'repetition_penalty': float, 'max_new_tokens': int}


def chat(args):
    """Answers one prompt (`--prompt`, `--messages`) on standard output, or talks until the input
    ends."""
    settings = {name: getattr(args, name) for name in _SETTINGS}
    sampling = decode.SamplingConfig(**settings)
    if args.prompt is not None and args.messages:
        raise InputError('--prompt and --messages are two questions; give one of them')
    messages = _read_messages(args.messages) if args.messages else None
    start_jax()
    run = artifact.load(args.workdir or args.model)
    if run.template is None and (args.system or messages):
        raise InputError(f'{args.workdir or args.model} is a base model without a chat template, '
                         'so that it knows no --system and no --messages; fine-tune it first '
                         '(experiments/sft.py), or give --prompt')
    talk = _Talk(run, settings, args.stop, args.seed, args.system)
    with jax.set_mesh(run.mesh):
        if messages:
            talk.stream(run.conversation(messages), sampling)
        elif args.prompt is not None:
            talk.answer(args.prompt)
        else:
            kind = 'a chat model' if run.template else 'a base model, which continues text'
            step = '' if run.base.foreign else f', step {run.step:,}'
            print(f'{args.workdir or args.model}{step}: {kind}. /help for help.')
            talk.loop()


def _read_messages(file):
    """Messages of a JSON file: [{"role": "user", "content": "..."}, ...]."""
    try:
        messages = json.loads(pathlib.Path(file).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise InputError(f'--messages={file} cannot be read ({error}); expected a JSON list of '
                         '{"role": ..., "content": ...}') from error
    good = isinstance(messages, list) and messages and all(
        isinstance(m, dict) and {'role', 'content'} <= m.keys() for m in messages)
    if not good:
        raise InputError(f'--messages={file} holds no list of messages; expected a JSON list of '
                         '{"role": ..., "content": ...}')
    return messages


class _Talk:
    """A conversation with one model, and the settings that commands change."""

    def __init__(self, run, settings, stop, seed, system=''):
        self.run, self.settings, self.stop, self.seed = run, settings, tuple(stop), seed
        self.begin(system)

    def begin(self, system=''):
        self.messages = [{'role': 'system', 'content': system}] if system else []

    def loop(self):
        import readline  # noqa: F401  (line editing and history for input())
        while True:
            try:
                line = input('> ')
            except EOFError:
                print()
                return
            if line == '/quit':
                return
            try:
                self.obey(line)
            except InputError as error:  # what goes wrong with one prompt does not end the talk
                print(error)
            except KeyboardInterrupt:
                print()

    def obey(self, line):
        """A command, or a prompt to answer."""
        command, _, rest = line.partition(' ')
        name, chats = command.removeprefix('/'), self.run.template is not None
        if command == '/help':
            print(self.help())
        elif command == '/probs':
            self.probabilities(rest)
        elif chats and command in ('/system', '/reset'):
            self.begin(rest if command == '/system' else '')
        elif chats and command == '/raw':
            tokenizer = self.run.tokenizer
            self.stream([tokenizer.bos_id, *tokenizer.encode(rest)])
        elif command.startswith('/') and name in _SETTINGS:
            self.set(name, rest)
        elif command.startswith('/'):
            print(f'{command} is no command. {self.help()}')
        elif line:
            self.answer(line)
            self.seed += 1

    def help(self):
        chats = self.run.template is not None
        what = ('Type a message and the model answers.' if chats
                else 'Type a text and the model continues it.')
        return _HELP.format(what=what, more=_CHAT_HELP if chats else '')

    def set(self, name, text):
        try:
            changed = self.settings | {name: _SETTINGS[name](text)}
            decode.SamplingConfig(**changed)
            self.settings = changed
        except ValueError as error:
            print(error)

    def answer(self, text):
        """Answers a message, which becomes part of the conversation, or continues a text."""
        if self.run.template is None:
            self.stream(self.run.prompt(text))
            return
        messages = [*self.messages, {'role': 'user', 'content': text}]
        said = self.stream(self.run.conversation(messages))
        self.messages = [*messages, {'role': 'assistant', 'content': said}]

    def stream(self, ids, sampling=None):
        """Writes what follows the ids as it comes; returns it."""
        run, tokenizer, said = self.run, self.run.tokenizer, []
        sampling = sampling or decode.SamplingConfig(**self.settings)
        if len(ids) >= run.model.max_seq_len:
            raise InputError(f'the conversation has {len(ids)} tokens and the model a context of '
                             f'{run.model.max_seq_len}; begin anew with /reset, or say less')
        for piece in decode.stream(run.params, run.model, ids, sampling, tokenizer,
                                   stop_ids=run.stop_ids, pad_id=tokenizer.pad_id, seed=self.seed,
                                   stop_strings=self.stop):
            said.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
        return ''.join(said)

    def probabilities(self, text):
        run, tokenizer = self.run, self.run.tokenizer
        ids = run.prompt(text)
        if run.template is not None:
            ids = run.conversation([*self.messages, {'role': 'user', 'content': text}])
        out = decode.generate(run.params, run.model, [ids],
                              decode.SamplingConfig(max_new_tokens=1, temperature=0.0),
                              pad_id=tokenizer.pad_id, top_candidates=10)
        found, logprobs = out.candidates[0]
        for token, logprob in zip(found[0], logprobs[0], strict=True):
            shown = tokenizer.decode([int(token)], skip_special=False)
            print(f'{float(jax.numpy.exp(logprob)):7.1%}  {shown!r}')
