"""Comparisons as token ids: rendered by the chat template, split by prompt, kept in a file.

A scored answer is the conversation up to the token that ends the answer, which is the last one; so
it is in training, and so it is when a sampled answer is scored.
"""

import dataclasses
import functools
import hashlib
import json
import zipfile

import numpy as np

from jaxllm.config import write_atomic
from jaxllm.data import chat
from jaxllm.data.preferences import (Comparison, ComparisonSpec, normalise_comparison,
                                     read_comparisons)
from jaxllm.errors import InputError
from jaxllm.world import preferences as world_preferences
from jaxllm.world.atlas import atlas

_OF_WORLD = {'world:pairs': world_preferences.pairs, 'world:rankings': world_preferences.rankings}


@dataclasses.dataclass(frozen=True)
class RatedSpec(ComparisonSpec):
    """Where one set of comparisons is read, and of a world also who judges them.

    rater, criterion: of world.oracle. The published datasets mix raters and criteria, so that few
    comparisons are by one rater about one thing; with a rater and a criterion all comparisons of
    the world are judged by it. '' = the mix. For files, `where` selects.
    """
    rater: str = ''
    criterion: str = ''

    def __post_init__(self):
        super().__post_init__()
        if (self.rater or self.criterion) and self.path not in _OF_WORLD:
            raise InputError(
                f'source {self.name!r} has rater={self.rater!r} and criterion={self.criterion!r}, '
                f'and its path is {self.path!r}; only {" and ".join(_OF_WORLD)} are judged anew, '
                "others are selected by `where`, e.g. {'rater': 'ann'}")


def read_rated(spec, rejects):
    """The Comparisons of a RatedSpec; see `read_comparisons`."""
    if not (spec.rater or spec.criterion):
        yield from read_comparisons(spec, rejects)
        return
    count = 0
    for row in _judged(spec.path, spec.world, spec.rater, spec.criterion):
        if row['split'] == spec.split and all(row.get(name) == value
                                              for name, value in spec.where.items()):
            rejects.read(spec.name)
            yield normalise_comparison(row)
            count += 1
            if count == spec.max_records:
                break
    if not count:
        raise InputError(f'source {spec.name!r} has no comparison: {spec.path!r}, split '
                         f'{spec.split!r}, where {dict(spec.where)}')


@functools.lru_cache(4)
def _judged(path, spec, rater, criterion):
    """All rows of a dataset of a world by one rater; its splits are read one after the other."""
    world = atlas(spec.seed, spec.scale, spec.intervention)
    return tuple(_OF_WORLD[path](world, rater, criterion))


def answer_ids(template, messages, tokenizer, stop_ids=()):
    """Ids of a conversation that ends with an answer, cut behind the token that ends it.

    Args:
      messages: the last one is the assistant's.
      stop_ids: of `chat.stop_ids`; worked out if not given.

    Raises:
      InputError: the template takes no such conversation, or does not end answers with one of them.
    """
    rendered = chat.render(template, messages, tokenizer)
    stop_ids = stop_ids or chat.stop_ids(template, tokenizer)
    end = next((i + 1 for i in range(len(rendered.ids) - 1, -1, -1) if rendered.loss_weights[i]), 0)
    if not end or rendered.ids[end - 1] not in stop_ids:
        raise InputError(f'chat template {template.name} does not end this answer with a token '
                         'that stops one, so that nothing marks where it is to be scored; use a '
                         'template whose generation marks include the end token')
    return rendered.ids[:end]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """N comparisons of R responses in all, as flat arrays.

    tokens: int32, of all responses one after the other. offsets: int64 [R + 1]. firsts: int64
    [N + 1], the first response of each comparison. ranks: int32 [R]. margins: float32 [N].
    fingerprint: of these.
    """
    tokens: np.ndarray
    offsets: np.ndarray
    firsts: np.ndarray
    ranks: np.ndarray
    margins: np.ndarray

    def __len__(self):
        return len(self.margins)

    @functools.cached_property
    def fingerprint(self):
        digest = hashlib.sha256()
        for field in dataclasses.fields(self):
            digest.update(getattr(self, field.name).tobytes())
        return digest.hexdigest()[:32]

    @property
    def most_responses(self):
        return int(np.diff(self.firsts).max()) if len(self) else 0

    @property
    def longest(self):
        return int(np.diff(self.offsets).max()) if len(self) else 0

    @functools.cached_property
    def lengths(self):
        """Tokens of the longest response of each comparison, int64 [N]."""
        return np.maximum.reduceat(np.diff(self.offsets), self.firsts[:-1])

    def batch(self, wanted, num_responses, length, rows=0, pad_id=0):
        """Arrays of comparisons `wanted`, and absent ones up to `rows`: see objectives/reward.py.
        """
        rows = rows or len(wanted)
        tokens_BSL = np.full((rows, num_responses, length), pad_id, np.int32)
        lengths_BS = np.zeros((rows, num_responses), np.int32)
        ranks_BS = np.zeros((rows, num_responses), np.int32)
        margins_B = np.zeros(rows, np.float32)
        for row, i in enumerate(wanted):
            margins_B[row] = self.margins[i]
            for s, r in enumerate(range(self.firsts[i], self.firsts[i + 1])):
                ids = self.tokens[self.offsets[r]:self.offsets[r + 1]]
                tokens_BSL[row, s, :len(ids)], lengths_BS[row, s] = ids, len(ids)
                ranks_BS[row, s] = self.ranks[r]
        return {'tokens': tokens_BSL, 'lengths': lengths_BS, 'ranks': ranks_BS,
                'margins': margins_B}

    def save(self, path, about):
        """Writes the arrays, and `about` (JSON) that says what they were made of."""
        partial = path.with_name(path.name + '.partial.npz')
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        np.savez(partial, about=np.array(json.dumps(about, sort_keys=True)), **arrays)
        partial.replace(path)

    @classmethod
    def load(cls, path, about):
        """Raises InputError: damaged, or made of something else."""
        try:
            with open(path, 'rb') as file, np.load(file, allow_pickle=False) as stored:
                found = json.loads(str(stored['about']))
                arrays = {field.name: stored[field.name] for field in dataclasses.fields(cls)}
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise InputError(f'{path} is damaged ({error}); delete its folder to build it again'
                             ) from error
        other = [key for key in about if found.get(key) != about[key]]
        if other:
            was, now = found.get(other[0]), about[other[0]]
            raise InputError(f'{path} was built with another {other[0]} ({was}, now {now}); delete '
                             'its folder to build it again')
        return cls(**arrays)


def encode_all(comparisons, spec, template, tokenizer, seq_len, rejects):
    """(Encoded, the Comparisons in it). One with a response of more than seq_len tokens is rejected
    with its count: a response that was cut is not the one that was judged."""
    kept, ids, stops = [], [], chat.stop_ids(template, tokenizer)
    for comparison in comparisons:
        try:
            rows = [answer_ids(template, [*comparison.prompt,
                                          {'role': 'assistant', 'content': text}], tokenizer, stops)
                    for text in comparison.responses]
        except InputError as error:
            rejects.reject(spec.name, comparison.id, f'not for this template: {error}')
            continue
        longest = max(map(len, rows))
        if longest > seq_len:
            rejects.reject(spec.name, comparison.id,
                           f'too long: {longest} tokens, seq_len={seq_len}')
            continue
        kept.append(comparison)
        ids += rows
    lengths = [len(row) for row in ids]
    return Encoded(
        np.fromiter((x for row in ids for x in row), np.int32, sum(lengths)),
        np.cumsum([0, *lengths], dtype=np.int64),
        np.cumsum([0, *(len(c.responses) for c in kept)], dtype=np.int64),
        np.array([rank for c in kept for rank in c.ranks], np.int32),
        np.array([c.margin for c in kept], np.float32)), kept


def group_of(comparison):
    """What must not be both learned from and validated on: the record's `holdout_group`, else
    its prompt."""
    own = comparison.fields.get('holdout_group')
    content = own if own not in (None, '') else [
        [message['role'], message['content']] for message in comparison.prompt]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def hold_out(comparisons, share):
    """(train, held out): whole groups by a hash of the prompt, so that neither order nor number of
    the records decides, and no prompt is in both. At least one group is on each side.

    Raises:
      InputError: fewer than two prompts.
    """
    groups = sorted({group_of(comparison) for comparison in comparisons})
    if len(groups) < 2:
        raise InputError(f'{len(groups)} different prompt; a reward model needs some to learn from '
                         'and others to be validated on')
    held = set(groups[:min(max(round(share * len(groups)), 1), len(groups) - 1)])
    return ([c for c in comparisons if group_of(c) not in held],
            [c for c in comparisons if group_of(c) in held])


def write_comparisons(path, comparisons):
    """JSON lines of comparisons, as evaluation reads them."""
    write_atomic(path, ''.join(
        json.dumps(dataclasses.asdict(c), ensure_ascii=False, default=_plain) + '\n'
        for c in comparisons))


def _plain(value):
    """A value of numpy, which some readers give, for JSON."""
    return value.tolist() if hasattr(value, 'tolist') else str(value)


def load_comparisons(path):
    """What `write_comparisons` wrote."""
    with open(path, encoding='utf-8') as lines:
        rows = [json.loads(line) for line in lines]
    return [Comparison(**row | {key: tuple(row[key]) for key in ('prompt', 'responses', 'ranks')})
            for row in rows]
