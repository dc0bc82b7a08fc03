"""A conversation at a terminal with one of several models, and the commands that steer it."""

import sys

import jax

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.stages import artifact, candidates

SETTINGS = {'temperature': float, 'top_k': int, 'top_p': float, 'min_p': float,
            'repetition_penalty': float, 'max_new_tokens': int}
_CANDIDATES = 6   # the token itself, as a rule, and five others
_QUESTION = 'Question: {}\nAnswer:'       # what evaluation asks a base model
_AFTER_ANSWER = ('\nQuestion:', '\n\n')   # and where it takes its answer to end

_HELP = """{what}
{several}  /probs             what could have stood in place of each token of the last answer
  /probs TEXT        the likeliest next tokens after TEXT
  /temperature 0.7   likewise /top_k, /top_p, /min_p, /repetition_penalty, /max_new_tokens
{more}  /help              this
  /quit              or Ctrl-D"""
_SEVERAL_HELP = """  /model NAME        talk to another ({names}); the conversation begins anew
  /compare TEXT      let every model answer TEXT; without TEXT, the last message
"""
_CHAT_HELP = """  /system TEXT       begin anew with this system prompt; without TEXT, with none
  /reset             begin anew
"""
_RAW_HELP = """  /raw TEXT          continue TEXT as it is, without {form}
"""


class Talk:
    """A conversation with one model at a time, and the settings that commands change.

    A model without a chat template continues what is typed. Beside models with one, in a chain, it
    is asked in the form in which evaluation asks it: 'Question: ...' and 'Answer:' on a new line.
    """

    def __init__(self, models, name, settings, stop, seed, system=''):
        """Args: models: {name: path}; name: the one to begin with; the rest: as the options."""
        self.models, self.settings, self.stop, self.seed = models, settings, tuple(stop), seed
        self._loaded, self._last, self.asked = {}, None, ''
        self.use(name)
        self.begin(system)

    def use(self, name):
        """Talks to another model from here on."""
        self.run, self.name = self._load(name), name

    def _load(self, name):
        if name not in self._loaded:
            self._loaded[name] = artifact.load(self.models[name])
        return self._loaded[name]

    def begin(self, system=''):
        self.messages = [{'role': 'system', 'content': system}] if system else []

    def describe(self):
        """', step 1,050: a chat model'."""
        step = '' if self.run.base.foreign else f', step {self.run.step:,}'
        if self.run.template:
            return f'{step}: a chat model'
        return f'{step}: a base model, ' + (
            f'asked as {_QUESTION.format("...")!r}' if self.several else 'which continues text')

    @property
    def several(self):
        return len(self.models) > 1

    def loop(self):
        import readline  # noqa: F401  (line editing and history for input())
        while True:
            try:
                line = input(f'{self.name}> ' if self.several else '> ')
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
        elif self.several and command == '/model':
            self.switch(rest.strip())
        elif self.several and command == '/compare':
            self.compare(rest)
        elif (chats or self.several) and command in ('/system', '/reset'):
            self.restart(command, rest)
        elif (chats or self.several) and command == '/raw':
            tokenizer = self.run.tokenizer
            self.stream([tokenizer.bos_id, *tokenizer.encode(rest)])
        elif command.startswith('/') and name in SETTINGS:
            self.set(name, rest)
        elif command.startswith('/'):
            print(f'{command} is no command. {self.help()}')
        elif line:
            self.answer(line)
            self.seed += 1

    def help(self):
        chats = self.run.template is not None
        form = 'the chat template' if chats else "'Question:' and 'Answer:'"
        return _HELP.format(
            what='Type a message and the model answers.' if chats or self.several
            else 'Type a text and the model continues it.',
            several=_SEVERAL_HELP.format(names=', '.join(self.models)) if self.several else '',
            more=(_CHAT_HELP if chats else '')
            + (_RAW_HELP.format(form=form) if chats or self.several else ''))

    def set(self, name, text):
        try:
            changed = self.settings | {name: SETTINGS[name](text)}
            decode.SamplingConfig(**changed)
            self.settings = changed
        except ValueError as error:
            print(error)

    def switch(self, name):
        """To the model of that name."""
        if name not in self.models:
            print(f'{name!r} is no model here; there are {", ".join(self.models)}, and this is '
                  f'{self.name}')
            return
        self.use(name)
        self.begin()
        print(f'{self.models[name]}{self.describe()}')

    def restart(self, command, text):
        if command == '/system' and self.run.template is None:
            print(f'{self.name} is a base model, which knows no system prompt')
            return
        self.begin(text if command == '/system' else '')

    def answer(self, text):
        """Answers a message, which becomes part of the conversation, or continues a text."""
        self.asked = text
        if self.run.template is None:
            self.stream(*self._plain(self.run, text))
            return
        messages = [*self.messages, {'role': 'user', 'content': text}]
        said = self.stream(self.run.conversation(messages))
        self.messages = [*messages, {'role': 'assistant', 'content': said}]

    def compare(self, text):
        """Lets every model answer a text, as the first message of a conversation."""
        text = text or self.asked
        if not text:
            print('/compare has nothing to ask yet; give a TEXT')
            return
        self.asked = text
        for name in self.models:
            run = self._load(name)
            form = '' if run.template else f', asked as {_QUESTION.format("...")!r}'
            print(f'--- {name}{form}')
            if run.template:
                self.stream(run.prompt(text), run=run)
            else:
                self.stream(*self._plain(run, text), run=run)

    def _plain(self, run, text):
        """(ids, sampling, stop strings) of a text for a model without a template."""
        if not self.several:
            return run.prompt(text), None, ()
        return run.prompt(_QUESTION.format(text)), None, _AFTER_ANSWER

    def stream(self, ids, sampling=None, stop=(), run=None):
        """Writes what follows the ids as it comes; returns it."""
        run, said = run or self.run, []
        tokenizer, self._last = run.tokenizer, None
        sampling = sampling or decode.SamplingConfig(**self.settings)
        if len(ids) >= run.model.max_seq_len:
            raise InputError(f'the conversation has {len(ids)} tokens and the model a context of '
                             f'{run.model.max_seq_len}; begin anew with /reset, or say less')
        pieces = decode.stream(run.params, run.model, ids, sampling, tokenizer,
                               stop_ids=run.stop_ids, pad_id=tokenizer.pad_id, seed=self.seed,
                               stop_strings=(*self.stop, *stop), top_candidates=_CANDIDATES)
        while True:
            try:
                said.append(next(pieces))
            except StopIteration as end:
                self._last = end.value, tokenizer
                break
            # What begins an answer to 'Answer:' is a space.
            sys.stdout.write(said[-1].lstrip(' ') if stop and len(said) == 1 else said[-1])
            sys.stdout.flush()
        print()
        return ''.join(said)

    def probabilities(self, text):
        """The candidates for each token of the last answer, or for the one after a text."""
        if text:
            self._next(text)
        elif self._last is None:
            print('/probs has no answer to look at yet; ask something, or give a TEXT')
        else:
            found, tokenizer = self._last
            print(candidates.table(found.tokens[0], found.logprobs[0], found.candidates[0],
                                   tokenizer))

    def _next(self, text):
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
