"""After training: the scale of a reward model by reference samples, and its quality."""

import json
import math

import jax
import numpy as np

from jaxllm import decode, rng
from jaxllm.config import section, write_atomic
from jaxllm.data import chat
from jaxllm.data.comparisons import group_of
from jaxllm.evals.reward import judges, quality
from jaxllm.models import lora
from jaxllm.stages import base as bases
from jaxllm.stages.comparisons import sources
from jaxllm.stages.reward_model import REWARD_FILE, ReferenceConfig, RewardModel, score
from jaxllm.stages.world import world_spec
from jaxllm.train.progress import stage as say

_LEAST_STD = 1e-6  # rewards that differ by less are all the same


def finish(config, workdir, setup, compared):
    """Writes reward.json and quality.json of the best checkpoint in `workdir`."""
    mesh = setup.trainer.mesh
    base = bases.open_base(workdir, what='the reward model')
    raw = RewardModel(base, setup.model, 1.0, 0.0, setup.template, setup.tokenizer, {})
    params = raw.load(mesh)
    say(f'scoring held-out responses with step {base.step} ...')
    rewards = {name: score(params, setup.model, _rows(encoded), mesh=mesh)
               for name, encoded in compared.held_out.items()}
    texts = {name: compared.texts(name) for name in compared.held_out}
    record = {'step': base.step, **_scale(config, setup, params, rewards, texts, mesh)}
    rows = [row for name in texts for row in quality.rows(
        name, texts[name], record['gain'] * rewards[name] + record['bias'],
        np.diff(compared.held_out[name].offsets))]
    spec = world_spec(config.world) if 'world' in config else None
    criteria = {spec.name: spec.criterion for spec in sources(config)}
    found = quality.measure(rows, record['gain'])
    if spec:
        found['world'] = judges.measure(rows, criteria)
    if jax.process_index() == 0:
        write_atomic(workdir / 'quality.json', json.dumps(found, indent=1))
        write_atomic(workdir / 'held_out.jsonl', ''.join(json.dumps(
            {key: value for key, value in row.items() if key != 'fields'},
            ensure_ascii=False) + '\n' for row in rows))
        write_atomic(workdir / REWARD_FILE, json.dumps(record, indent=1))
        accuracy = found['accuracy']
        say(f'held-out pairs ordered rightly: {accuracy["value"]:.3f} '
            f'[{accuracy["low"]:.3f}, {accuracy["high"]:.3f}]'
            + (f' (the rater against itself: {found["world"]["ceiling"]:.3f})' if spec else '')
            + f'; reward = {record["gain"]:.3g} * raw {record["bias"]:+.3g}')


def _rows(encoded):
    return [encoded.tokens[start:end]
            for start, end in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]


def _scale(config, setup, params, rewards, texts, mesh):
    """gain and bias by which rewards of reference samples have mean 0 and standard deviation 1."""
    reference = section(ReferenceConfig, config.reference, 'reference')
    if reference.prompts:
        rows, finished = _sampled(config, setup, reference, texts, mesh)
        raw = score(params, setup.model, rows, mesh=mesh)
        about = {'reference': 'answers sampled from the parent to held-out prompts',
                 'samples': len(rows), 'finished': finished}
    else:
        raw = np.concatenate(list(rewards.values()))
        about = {'reference': 'held-out responses', 'samples': len(raw), 'finished': len(raw)}
    mean, std = float(np.mean(raw, dtype=np.float64)), float(np.std(raw, dtype=np.float64))
    gain = 1.0 if std < _LEAST_STD else 1.0 / std
    if std < _LEAST_STD:
        say('the rewards of all reference samples are the same: nothing was learned that tells '
            'them apart, and the scale is left as it is')
    if not math.isfinite(mean + std):
        raise FloatingPointError(f'rewards of reference samples have mean {mean}, std {std}')
    return {'gain': gain, 'bias': -gain * mean, 'mean': mean, 'std': std, **about,
            'parent': str(setup.base.path), 'tokenizer': setup.tokenizer.fingerprint,
            'template': setup.template.fingerprint}


def _sampled(config, setup, reference, texts, mesh):
    """(token ids of prompts with the parent's answers, how many of those ended by themselves).

    One answer to each of `reference.prompts` different held-out prompts, spread evenly over them;
    what did not end is scored where it stopped.
    """
    prompts = list({group_of(c): c.prompt for found in texts.values() for c in found}.values())
    count = min(reference.prompts, len(prompts))
    chosen = [prompts[i * len(prompts) // count] for i in range(count)]
    ids = [chat.render(setup.template, list(prompt), setup.tokenizer,
                       add_generation_prompt=True).ids for prompt in chosen]
    new = reference.max_new_tokens
    if setup.model.positions == 'learned':
        new = min(new, setup.model.max_seq_len - max(map(len, ids)))
    say(f'sampling {count} reference answers from {setup.base.path} ...')
    with jax.set_mesh(mesh):
        policy = bases.load_plain(setup.base, mesh)
        if setup.lora:
            policy = lora.prepare_base(policy, setup.lora)
        out = decode.generate(
            policy, setup.model, ids,
            decode.SamplingConfig(max_new_tokens=new, temperature=reference.temperature),
            stop_ids=chat.stop_ids(setup.template, setup.tokenizer),
            pad_id=setup.tokenizer.pad_id, seed=rng.key(config.seed, rng.SAMPLE), batch_size=64)
    return ([[*prompt, *answer] for prompt, answer in zip(ids, out.tokens, strict=True)],
            sum(finish == 'stop' for finish in out.finish))
