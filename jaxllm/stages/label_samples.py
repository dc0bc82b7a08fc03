"""Responses of chosen models to prompts, for people to compare."""

import collections
import pathlib

import jax

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.feedback import items
from jaxllm.stages import artifact
from jaxllm.stages.base import open_base
from jaxllm.stages.run import start_jax

BATCH = 64


def sample(prompts, args, say):
    """`args.samples` responses of each of `args.model` to each prompt.

    Every model sees every prompt: one that is too long for the context of any of them is left out
    for all.

    Args:
        prompts: [(id, messages)].
        args: model, samples, temperature, top_p, max_new_tokens, seed, system.

    Returns:
        ([items.Item], {reason: how many prompts gave none}).

    Raises:
        InputError: a model that is none, or settings that leave nothing to compare.
    """
    if len(set(args.model)) < len(args.model):
        raise InputError(f'--model is given twice: {args.model}; use --samples for several '
                         'responses of one model')
    if args.samples < 1 or args.samples * len(args.model) < 2:
        raise InputError(f'--samples={args.samples} of {len(args.model)} model: fewer than two '
                         'responses to compare; use --samples=2, or another --model')
    if args.samples > 1 and args.temperature == 0:
        raise InputError(f'--temperature=0 makes the {args.samples} responses of a model equal; '
                         'use --samples=1 or a higher temperature')
    sampling = decode.SamplingConfig(max_new_tokens=args.max_new_tokens,
                                     temperature=args.temperature, top_p=args.top_p)
    start_jax()
    if args.system:
        system = {'role': 'system', 'content': args.system}
        prompts = [(name, [system, *(m for m in messages if m['role'] != 'system')])
                   for name, messages in prompts]
    texts, left_out = collections.defaultdict(list), collections.Counter()
    for number, path in enumerate(args.model):
        said = _responses(path, prompts, args.samples, sampling, args.seed + number)
        say(f'{path}: {args.samples} responses each to {len(said)} prompts')
        for name, found in said.items():
            texts[name] += [(path, text) for text in found]
    fitting = [(name, messages) for name, messages in prompts
               if len(texts[name]) == args.samples * len(args.model)]
    left_out['too long for the context'] = len(prompts) - len(fitting)
    made = [items.make_item(name, messages, texts[name]) for name, messages in fitting]
    left_out['all responses equal'] = sum(item is None for item in made)
    return [item for item in made if item is not None], dict(left_out)


def _responses(path, prompts, samples, sampling, seed):
    """{id: texts} of a model, without prompts that do not fit its context."""
    model = _load(path)
    ids = {name: _encode(model, messages) for name, messages in prompts}
    room = model.model.max_seq_len - sampling.max_new_tokens
    fitting = [name for name, tokens in ids.items() if len(tokens) <= room]
    with jax.set_mesh(model.mesh):
        out = decode.generate(
            model.params, model.model, [ids[name] for name in fitting for _ in range(samples)],
            sampling, stop_ids=model.stop_ids, pad_id=model.tokenizer.pad_id, seed=seed,
            tokenizer=model.tokenizer, batch_size=BATCH) if fitting else None
    return {name: out.texts[i * samples:(i + 1) * samples] for i, name in enumerate(fitting)}


def _load(path):
    """The Artifact at a path, or of a run's checkpoint at RUN@STEP, RUN@best or RUN@last."""
    run, at, checkpoint = path.rpartition('@')
    if not at or pathlib.Path(path).exists():
        return artifact.load(path)
    base = open_base(run, int(checkpoint) if checkpoint.isdecimal() else checkpoint, '--model')
    return artifact.load_base(base)


def _encode(model, messages):
    """Token ids of a prompt; a base model continues the last message."""
    if model.template is None:
        return model.prompt(messages[-1]['content'])
    return model.conversation(messages)
