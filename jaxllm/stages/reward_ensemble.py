"""An ensemble of reward models: the same comparisons learned with other seeds, measured together.

It trains nothing: ensemble.json has the mean's accuracy, the spread over members, how far texts are
from those of training, and how often texts unlike the responses are flagged by either.
"""

import dataclasses
import itertools
import json

import jax
import numpy as np

from jaxllm.config import check_keys, section, to_json, write_atomic
from jaxllm.data import chat
from jaxllm.data.comparisons import load_comparisons
from jaxllm.data.records import Rejects, SourceSpec, read_source
from jaxllm.errors import InputError
from jaxllm.evals.reward import distance, ensemble, quality
from jaxllm.report.run import write_report
from jaxllm.sharding import ShardingConfig, make_mesh
from jaxllm.stages import lineage
from jaxllm.stages.reward_model import features, open_reward, score
from jaxllm.train.progress import stage as say

OUTPUTS = 'ensemble.json',
_SEEN = 2048  # training responses that say what is ordinary


@dataclasses.dataclass(frozen=True)
class ForeignConfig:
    """Texts that are no responses, to see whether they are told."""
    texts: int    # of each kind

    def __post_init__(self):
        if self.texts < 1:
            raise InputError(f'foreign.texts={self.texts} must be at least 1')


def prepare(config):
    """Checks the config. Returns [RewardModel], all of one tokenizer, template and data."""
    check_keys(config, ('stage', 'seed', 'members', 'foreign', 'sharding'))
    section(ForeignConfig, config.foreign, 'foreign')
    section(ShardingConfig, config.sharding, 'sharding')
    if len(config.members) < 2:
        raise InputError(f'config.members has {len(config.members)} runs; an ensemble takes two or '
                         'more, e.g. experiments/reward_ensemble.py:runs=runs/a+runs/b+runs/c')
    members = [open_reward(path) for path in config.members.values()]
    first = members[0]
    for other in members[1:]:
        other.check(first.tokenizer, first.template)
        if _learned(other) != _learned(first):
            raise InputError(f'{other.base.path} and {first.base.path} learned from other '
                             'comparisons, so that what is held out for one was trained on by the '
                             'other; train the members with the same config.data and, of a world, '
                             'the same config.world.seed')
    return members


def _learned(member):
    config = json.loads((member.base.path / 'config.json').read_text())
    return [config['data'], config['world'] if 'world' in config else None]


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    return to_json(config) + ''.join(f'\nmember  {member.base.path}, step {member.base.step}'
                                     for member in prepare(config))


def run(config, workdir):
    """Writes ensemble.json and report.html."""
    members = prepare(config)
    mesh = make_mesh(section(ShardingConfig, config.sharding, 'sharding'))
    first = members[0]
    found = _comparisons(first, 'held_out')
    messages = _messages(found)
    ids = {ensemble.OWN: [first.encode(*one) for one in messages]}
    ids |= _foreign(config, first, messages)
    trained = _messages(_comparisons(first, 'train'))
    chosen = np.random.default_rng(config.seed).permutation(len(trained))[:_SEEN]
    trained = [first.encode(*trained[i]) for i in chosen]
    rewards, distances = ({name: [] for name in ids} for _ in range(2))
    for member in members:
        say(f'scoring with {member.base.path} ...')
        params = member.load(mesh)
        seen = distance.fit(features(params, member.model, trained, mesh=mesh))
        for name, rows in ids.items():
            rewards[name].append(member.normalise(score(params, member.model, rows, mesh=mesh)))
            distances[name].append(seen.distance(features(params, member.model, rows, mesh=mesh)))
    own = np.array(rewards.pop(ensemble.OWN))
    rows = quality.rows('held out', found, own[0], [len(x) for x in ids[ensemble.OWN]])
    result = ensemble.measure(rows, own, {name: np.array(x) for name, x in rewards.items()},
                              [str(member.base.path) for member in members], distances)
    if jax.process_index() == 0:
        write_atomic(workdir / 'ensemble.json', json.dumps(result, indent=1))
        lineage.write_lineage(workdir, config, roles={
            f'member_{name}': member.base.role
            for name, member in zip(config.members, members, strict=True)})
        for row in result['sets']:
            share = row['flagged']
            say(f'{row["name"]:<28} std {row["std"]:.3f}  distance {row["distance"]:.3f}  flagged '
                f'{share["value"]:.3f} [{share["low"]:.3f}, {share["high"]:.3f}]')
        say(f'report: {write_report(workdir)}')


def _comparisons(member, split):
    folder = member.base.path / 'data' / 'comparisons'
    return [row for path in sorted(folder.glob(f'*.{split}.jsonl'))
            for row in load_comparisons(path)]


def _messages(found):
    return [(row.prompt, text) for row in found for text in row.responses]


def _foreign(config, member, messages):
    """{what: token ids} of texts that answer no prompt: noise, another's answer, prose."""
    count, tokenizer = config.foreign.texts, member.tokenizer
    rng = np.random.default_rng(config.seed)
    chosen = [messages[i] for i in rng.permutation(len(messages))[:count]]
    others = [messages[i][1] for i in rng.permutation(len(messages))[:len(chosen)]]
    ordinary = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special.values()]
    docs = itertools.islice(read_source(SourceSpec('prose', 'python:stdlib', split='docstrings'),
                                        Rejects()), len(chosen))
    noise, prose, swapped = [], [], []
    for (prompt, response), other, document in zip(chosen, others, docs, strict=False):
        head = chat.render(member.template, list(prompt), tokenizer, add_generation_prompt=True).ids
        whole = member.encode(prompt, response)
        size = max(len(whole) - len(head) - 1, 1)
        noise.append([*head, *rng.choice(ordinary, size).tolist(), whole[-1]])
        prose.append([*head, *tokenizer.encode(document.text)[:size], whole[-1]])
        swapped.append(member.encode(prompt, other))
    return {'random tokens': noise, 'prose of docstrings': prose,
            'answers to other prompts': swapped}
