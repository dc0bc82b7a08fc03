"""The verb `chat`: a chat model answers, a base model continues what is typed; token by token.

Of a chain of runs, one talks to its aligned or last model, and may switch and compare.
"""

import json
import pathlib

import jax

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.stages import chain_models
from jaxllm.stages.run import start_jax
from jaxllm.stages.talk import SETTINGS, Talk


def chat(args):
    """Answers one prompt (`--prompt`, `--messages`) on standard output, or talks until the input
    ends."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    sampling = decode.SamplingConfig(**settings)
    if args.prompt is not None and args.messages:
        raise InputError('--prompt and --messages are two questions; give one of them')
    messages = _read_messages(args.messages) if args.messages else None
    start_jax()
    path = args.workdir or args.model
    models, name = chain_models.models_of(path)
    talk = Talk(models, name, settings, args.stop, args.seed, args.system)
    run = talk.run
    if run.template is None and (args.system or messages):
        raise InputError(f'{models[name]} is a base model without a chat template, '
                         'so that it knows no --system and no --messages; fine-tune it first '
                         '(experiments/sft.py), or give --prompt')
    with jax.set_mesh(run.mesh):
        if messages:
            talk.stream(run.conversation(messages), sampling)
        elif args.prompt is not None:
            talk.answer(args.prompt)
        else:
            print(f'{models[name]}{talk.describe()}. /help for help.')
            if len(models) > 1:
                print(f'Models: {", ".join(models)}; /model NAME switches, /compare asks all.')
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
