"""From the data section of a reward config to comparisons as token ids, kept in the run."""

import collections
import dataclasses
import json
import shutil
from typing import Any

from jaxllm.config import one_builder, section, write_atomic
from jaxllm.data import comparisons as read
from jaxllm.data.comparisons import Encoded, RatedSpec
from jaxllm.data.records import Rejects
from jaxllm.errors import InputError
from jaxllm.stages import corpus, lineage
from jaxllm.train.progress import stage as say

PARTS = 'train', 'held_out'


@dataclasses.dataclass(frozen=True)
class DataConfig:
    comparisons: object      # {name: RatedSpec}
    seq_len: int             # tokens of a prompt with a response; longer ones are rejected
    holdout_share: float     # of the prompts of each source, for validation
    max_reject_share: float  # more malformed or too long records than this stop the run

    def __post_init__(self):
        corpus.check_shares(self, 'comparisons')


@dataclasses.dataclass(frozen=True)
class Compared:
    """{source: Encoded} to learn from and held out; rows: one per source, for the report."""
    train: Any
    held_out: Any
    rows: list
    folder: Any

    def comparisons(self, name, part):
        """The Comparisons of a source, in the order of `train[name]` or `held_out[name]`."""
        return read.load_comparisons(self.folder / f'{name}.{part}.jsonl')

    def texts(self, name):
        """The held-out Comparisons of a source, in the order of `held_out[name]`."""
        return self.comparisons(name, 'held_out')


def sources(config):
    """RatedSpecs of `config.data.comparisons`."""
    if not config.data.comparisons:
        raise InputError('config.data.comparisons is empty; add a source with a path')
    world = corpus.check_world(config.data.comparisons, config)
    return [section(RatedSpec, {**spec.to_dict(), **corpus.own(name, spec, world)},
                    f'data.comparisons.{name}')
            for name, spec in config.data.comparisons.items()]


def makers(config):
    """{role: Parent} of the runs that have made comparisons (see `lineage.makers`)."""
    return lineage.makers({f'comparisons/{name}': spec.path
                           for name, spec in config.data.comparisons.items()})


def make(config, tokenizer, template, folder):
    """The Compared in `folder`, built where missing.

    No prompt (or `holdout_group`, where records have one) is both learned from and held out, in
    whatever sources: a held-out comparison whose prompt is learned from somewhere is left out and
    counted.

    Raises:
      InputError: too many rejects, nothing left, or `folder` was built with another tokenizer,
        template or other settings.
    """
    specs, target = sources(config), folder / 'comparisons'
    about = {spec.name: {'tokenizer': tokenizer.fingerprint, 'template': template.fingerprint,
                         'source': spec.fingerprint, 'seq_len': config.data.seq_len,
                         'holdout_share': config.data.holdout_share} for spec in specs}
    with one_builder(target):
        if not target.exists():
            partial = target.with_name('comparisons.partial')
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _build(config, specs, tokenizer, template, folder, partial, about)
            partial.rename(target)
    train, held_out = ({spec.name: Encoded.load(target / f'{spec.name}.{part}.npz',
                                                about[spec.name]) for spec in specs}
                       for part in PARTS)
    return Compared(train, held_out, json.loads((target / 'rows.json').read_text()), target)


def _build(config, specs, tokenizer, template, folder, target, about):
    kept, rejects, counts = {}, {}, collections.defaultdict(collections.Counter)
    for spec in specs:
        say(f'rendering {spec.name} ...')
        rejects[spec.name] = Rejects(folder / f'rejects-{spec.name}.jsonl')
        kept[spec.name] = _read(config, spec, tokenizer, template, rejects[spec.name],
                                counts[spec.name])
    learned = {read.group_of(c) for parts in kept.values() for c in parts['train']}
    rows = []
    for spec in specs:
        held = [c for c in kept[spec.name]['held_out'] if read.group_of(c) not in learned]
        counts[spec.name]['held out, but the prompt is learned from'] = (
            len(kept[spec.name]['held_out']) - len(held))
        encoded = {}
        for part, found in (('train', kept[spec.name]['train']), ('held_out', held)):
            encoded[part], _ = read.encode_all(found, spec, template, tokenizer,
                                               config.data.seq_len, Rejects())
            encoded[part].save(target / f'{spec.name}.{part}.npz', about[spec.name])
            read.write_comparisons(target / f'{spec.name}.{part}.jsonl', found)
        if not encoded['train'] or not encoded['held_out']:
            raise InputError(f'source {spec.name!r} has {len(encoded["train"])} comparisons to '
                             f'learn from and {len(held)} held out; expected some of both. Use '
                             'more prompts, or another data.holdout_share')
        rows.append({
            'source': spec.name, 'path': spec.path, 'rater': spec.rater,
            'criterion': spec.criterion, 'license': spec.license,
            'comparisons': len(encoded['train']), 'held out': len(held),
            'responses': len(encoded['train'].ranks), 'tokens': len(encoded['train'].tokens),
            'longest': max(part.longest for part in encoded.values()),
            'left out': dict(counts[spec.name]),
            'rejects': rejects[spec.name].summary()[spec.name]})
    write_atomic(target / 'rows.json', json.dumps(rows, indent=1))


def _read(config, spec, tokenizer, template, rejects, counts):
    """{'train', 'held_out'}: the Comparisons of a source that can be scored."""
    encode = lambda found: read.encode_all(found, spec, template, tokenizer, config.data.seq_len,
                                           rejects)[1]
    if spec.validation_split:
        other = dataclasses.replace(spec, split=spec.validation_split, validation_split='')
        train, held = encode(read.read_rated(spec, rejects)), encode(
            read.read_rated(other, rejects))
        rejects.check(config.data.max_reject_share)
    else:
        every = encode(read.read_rated(spec, rejects))
        rejects.check(config.data.max_reject_share)
        train, held = read.hold_out(every, config.data.holdout_share)
    ordered = [c for c in train if len(set(c.ranks)) > 1]
    counts['all responses tie'] = len(train) - len(ordered)
    return {'train': ordered, 'held_out': held}
