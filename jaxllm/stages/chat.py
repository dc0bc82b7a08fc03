"""The verb `chat`: a model continues what is typed, token by token."""

import sys

import jax

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.stages import artifact
from jaxllm.stages.run import start_jax

_HELP = """Type a text and the model continues it.
  /probs TEXT        the likeliest next tokens after TEXT
  /temperature 0.7   likewise /top_k, /top_p, /min_p, /repetition_penalty, /max_new_tokens
  /help              this
  /quit              or Ctrl-D"""
_SETTINGS = {'temperature': float, 'top_k': int, 'top_p': float, 'min_p': float,
             'repetition_penalty': float, 'max_new_tokens': int}


def chat(args):
    """Answers one prompt (`--prompt`) on standard output, or talks until the input ends."""
    settings = {name: getattr(args, name) for name in _SETTINGS}
    sampling = decode.SamplingConfig(**settings)
    start_jax()
    run = artifact.load(args.workdir)
    with jax.set_mesh(run.mesh):
        if args.prompt is not None:
            _answer(run, args.prompt, sampling, args.stop, args.seed)
            return
        print(f'{args.workdir}, step {run.step:,}: a base model, which continues text. /help '
              'for help.')
        _talk(run, settings, args.stop, args.seed)


def _talk(run, settings, stop, seed):
    import readline  # noqa: F401  (line editing and history for input())
    while True:
        try:
            line = input('> ')
        except EOFError:
            print()
            return
        command, _, rest = line.partition(' ')
        name = command.removeprefix('/')
        if command == '/quit':
            return
        if command == '/help':
            print(_HELP)
        elif command == '/probs':
            _try(lambda text=rest: _probabilities(run, text))
        elif command.startswith('/') and name in _SETTINGS:
            try:
                changed = settings | {name: _SETTINGS[name](rest)}
                decode.SamplingConfig(**changed)
                settings = changed
            except ValueError as error:
                print(error)
        elif command.startswith('/'):
            print(f'{command} is no command. {_HELP}')
        elif line:
            sampling = decode.SamplingConfig(**settings)
            _try(lambda text=line, s=sampling, n=seed: _answer(run, text, s, stop, n))
            seed += 1


def _try(answer):
    """What goes wrong with one prompt does not end the talk; Ctrl-C ends the answer."""
    try:
        answer()
    except InputError as error:
        print(error)
    except KeyboardInterrupt:
        print()


def _answer(run, prompt, sampling, stop, seed):
    tokenizer = run.tokenizer
    pieces = decode.stream(run.params, run.model, [tokenizer.bos_id, *tokenizer.encode(prompt)],
                           sampling, tokenizer, stop_ids=(tokenizer.eos_id,),
                           pad_id=tokenizer.pad_id, seed=seed, stop_strings=tuple(stop))
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()


def _probabilities(run, prompt):
    tokenizer = run.tokenizer
    out = decode.generate(run.params, run.model, [[tokenizer.bos_id, *tokenizer.encode(prompt)]],
                          decode.SamplingConfig(max_new_tokens=1, temperature=0.0),
                          pad_id=tokenizer.pad_id, top_candidates=10)
    ids, logprobs = out.candidates[0]
    for token, logprob in zip(ids[0], logprobs[0], strict=True):
        text = tokenizer.decode([int(token)], skip_special=False)
        print(f'{float(jax.numpy.exp(logprob)):7.1%}  {text!r}')
