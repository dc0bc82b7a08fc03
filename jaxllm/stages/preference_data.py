"""From the data section of a preference config to pairs of answers as token ids."""

import collections
import dataclasses

from jaxllm.config import section
from jaxllm.data import comparisons as compared
from jaxllm.data import labelled as labels
from jaxllm.data.dialogues import DialogueSpec
from jaxllm.data.pairs import encode_pairs
from jaxllm.data.records import Rejects
from jaxllm.errors import InputError
from jaxllm.stages import comparisons, corpus


def labelled(config):
    """DialogueSpecs of `config.data.labelled`."""
    world = corpus.check_world(config.data.labelled, config)
    return [section(DialogueSpec, {**spec.to_dict(), **corpus.own(name, spec, world)},
                    f'data.labelled.{name}') for name, spec in config.data.labelled.items()]


def make(config, setup, folder):
    """({'train', 'held_out'}: PairSet, {'sources': a row of each, 'pairs': counts}).

    No prompt is both learned from and held out. What cannot be used is listed in
    folder/rejects-<source>.jsonl.

    Raises:
      InputError: too many rejects, or nothing is left to learn from or to hold out.
    """
    parts = _labelled if config.data.labelled else _compared
    sets, rows, counts = parts(config, setup, folder)
    return sets, {'sources': rows, 'pairs': {
        'learned from': len(sets['train']), 'held out': len(sets['held_out']), **counts}}


def _compared(config, setup, folder):
    found, counts, sets = comparisons.make(config, setup.tokenizer, setup.template, folder), \
        collections.Counter(), {}
    for part in comparisons.PARTS:
        every = [c for row in found.rows for c in found.comparisons(row['source'], part)]
        sets[part] = encode_pairs(every, setup.template, setup.tokenizer, config.data.pairs, counts)
        if not len(sets[part]):
            raise InputError(f'no pair is left in {part}: all tie or are the same tokens; give '
                             'other comparisons')
    return sets, found.rows, counts


def _labelled(config, setup, folder):
    kept = {part: [] for part in comparisons.PARTS}
    rows, counts = [], collections.Counter()
    for spec in labelled(config):
        rejects = Rejects(folder / f'rejects-{spec.name}.jsonl')
        train = _encoded(config, setup, dataclasses.replace(spec, validation_split=''), rejects)
        if spec.validation_split:
            other = dataclasses.replace(spec, split=spec.validation_split, validation_split='')
            held = _encoded(config, setup, other, rejects)
        else:
            _, out = compared.hold_out([one for one, *_ in train], config.data.holdout_share)
            groups = {compared.group_of(one) for one in out}
            held = [row for row in train if compared.group_of(row[0]) in groups]
            train = [row for row in train if compared.group_of(row[0]) not in groups]
        rejects.check(config.data.max_reject_share)
        kept['train'] += train
        kept['held_out'] += held
        rows.append({'source': spec.name, 'path': spec.path, 'license': spec.license,
                     'answers': len(train), 'held out': len(held),
                     'rejects': rejects.summary()[spec.name]})
    learned = {compared.group_of(one) for one, *_ in kept['train']}
    kept['held_out'] = [row for row in kept['held_out']
                        if compared.group_of(row[0]) not in learned]
    sets = {}
    for part, found in kept.items():
        sets[part], of = labels.side_by_side(found, setup.tokenizer.pad_id)
        counts.update({f'{name} answers': count for name, count in of.items()})
    return sets, rows, counts


def _encoded(config, setup, spec, rejects):
    return labels.encode_labelled(labels.read_labelled(spec, rejects), spec.name, setup.template,
                                  setup.tokenizer, config.data.seq_len, rejects)
