"""Verbatim extraction: does a model, given how a training document begins, write on as it does?

A passage is the first tokens of a document, a prompt and new ones. It is extracted if greedy
decoding behind BOS and the prompt gives exactly the new ones. Passages of held-out documents, which
no model can have memorised, say how much of that comes from knowing the language.

Ref: Carlini et al. 2022 (arXiv 2202.07646), section 3; there 50 and 50 tokens.
"""

import collections
import dataclasses
import json
import math

import numpy as np

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.evals import statistics

PROMPT_TOKENS, NEW_TOKENS = 8, 12
_CHUNK = 1 << 16  # documents whose tokens are gathered at once


@dataclasses.dataclass(frozen=True)
class Passage:
    """How a document begins.

    id: of the first document that begins so, with its number in the split where ids repeat.
    tokens: ids of the prompt and of what is new, without BOS.
    copies: documents of the split that begin so.
    weight: passages that this one stands for in an estimate over all of them.
    tags: what the document is sliced by, e.g. {'exposures': 8}.
    """
    id: str
    tokens: tuple
    copies: int
    weight: float
    tags: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What a model wrote behind the prompt of a passage.

    matched: right tokens before the first wrong one; extracted: all of them were right.
    """
    passage: Passage
    written: tuple
    matched: int
    extracted: bool


def passages(split, *, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS, size=1000, seed=0,
             tags=None, without=()):
    """A sample of how the documents of a store's split begin, each beginning once.

    Of those that occur once and of those that occur more often, at most `size` each are drawn; the
    weights make up for it.

    Args:
      split: StoreSplit; documents of fewer tokens than a passage are left out.
      prompt_tokens, new_tokens: of a passage.
      size: see above; 0 = all.
      seed: of the draw.
      tags: function (ids) -> {id: {name: value}} of the documents that it knows, or None.
      without: Passages, or tuples of tokens, that are no candidates; for held-out documents, use
        `beginnings` of the training split.

    Returns:
      A list of Passage, in the order of the store; empty where all documents are too short.

    Raises:
      InputError: prompt_tokens or new_tokens below 1.
    """
    if prompt_tokens < 1 or new_tokens < 1:
        raise InputError(f'prompt_tokens={prompt_tokens} and new_tokens={new_tokens} must be at '
                         'least 1')
    documents, rows, copies = _distinct(split, prompt_tokens + new_tokens)
    without = set(without)
    kept = np.array([tuple(row) not in without for row in rows.tolist()], bool)
    documents, rows, copies = documents[kept], rows[kept], copies[kept]
    chosen, weights = [], []
    generator = np.random.default_rng(seed)
    for stratum in (np.flatnonzero(copies == 1), np.flatnonzero(copies > 1)):
        drawn = stratum
        if size and len(stratum) > size:
            drawn = generator.choice(stratum, size, replace=False)
        chosen += drawn.tolist()
        weights += [len(stratum) / len(drawn)] * len(drawn) if len(drawn) else []
    order = np.argsort(documents[chosen], kind='stable').tolist()
    chosen, weights = [chosen[i] for i in order], [weights[i] for i in order]
    names = _names(split, documents[chosen].tolist())
    known, times = tags(names) if tags else {}, collections.Counter(names)
    return [Passage(name if times[name] == 1 else f'{name}#{documents[i]}',
                    tuple(rows[i].tolist()), int(copies[i]), weight,
                    dict(known[name]) if name in known else {})
            for name, i, weight in zip(names, chosen, weights, strict=True)]


def beginnings(split, *, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS):
    """The set of all passages of a split, as tuples of tokens."""
    return set(map(tuple, _distinct(split, prompt_tokens + new_tokens)[1].tolist()))


def _distinct(split, length):
    """(first document, tokens [length], number of documents) of each distinct beginning."""
    # BOS and EOS are not counted.
    documents = np.flatnonzero(split.lengths - 2 >= length)
    rows = np.zeros((len(documents), length), split.tokens.dtype)
    for start in range(0, len(documents), _CHUNK):
        part = documents[start:start + _CHUNK]
        rows[start:start + _CHUNK] = split.tokens[
            split.offsets[part][:, None] + 1 + np.arange(length)[None]]
    if not len(documents):
        return documents, rows, documents
    rows, first, copies = np.unique(rows, axis=0, return_index=True, return_counts=True)
    return documents[first], rows, copies


def _names(split, documents):
    """Ids of documents given by rising number."""
    wanted, names = iter(documents), []
    target = next(wanted, None)
    with open(split.folder / f'{split.name}.documents.jsonl', encoding='utf-8') as lines:
        for number, line in enumerate(lines):
            if number == target:
                names.append(json.loads(line)['id'])
                target = next(wanted, None)
    return names


def attempt(params, cfg, some, *, bos_id, prompt_tokens=PROMPT_TOKENS, batch_size=256):
    """Lets a model go on with passages. Needs a mesh: run under `jax.set_mesh`.

    Args:
      params, cfg: a model and its ModelConfig.
      some: Passages, all of one length.
      bos_id: id of BOS, which every document began with in training.
      prompt_tokens: as in `passages`.
      batch_size: rows at once; changes nothing.

    Returns:
      A list of Attempt.
    """
    if not some:
        return []
    new = len(some[0].tokens) - prompt_tokens
    prompts = [[bos_id, *passage.tokens[:prompt_tokens]] for passage in some]
    out = decode.generate(params, cfg, prompts, batch_size=batch_size, sampling=(
        decode.SamplingConfig(max_new_tokens=new, temperature=0.0)))
    attempts = []
    for passage, written in zip(some, out.tokens, strict=True):
        right = np.array(written) == np.array(passage.tokens[prompt_tokens:])
        matched = int(np.cumprod(right).sum())
        attempts.append(Attempt(passage, tuple(written), matched, matched == new))
    return attempts


def summary(attempts, *, seed=0):
    """Shares of passages that were extracted, with 95 % limits over passages.

    Returns:
      (metric, slices): metric = {'value', 'low', 'high', 'n', 'unit'} over all distinct passages
      that the sample stands for; slices = {'copies': {'1', '2', '3-4', '5-8', ...: metric},
      tag name: {value: metric}}. None and {} without attempts.
    """
    if not attempts:
        return None, {}
    slices = {}
    for one in attempts:
        keys = {'copies': copies_bin(one.passage.copies)} | one.passage.tags
        for name, value in keys.items():
            slices.setdefault(name, {}).setdefault(value, []).append(one)
    ordered = {name: {str(value): _share(slices[name][value], seed)
                      for value in sorted(slices[name], key=_order)} for name in slices}
    return _share(attempts, seed), ordered


def copies_bin(copies):
    """'1', '2', '3-4', '5-8', '9-16', ...: the bin of a number of copies."""
    if copies <= 2:
        return str(copies)
    top = 2 ** math.ceil(math.log2(copies))
    return f'{top // 2 + 1}-{top}'


def _order(value):
    """Numbers, and bins by their first number, before names."""
    if isinstance(value, (int, float)):
        return 0, value, ''
    head = value.partition('-')[0]
    return (0, int(head), '') if head.isdigit() else (1, 0, value)


def _share(attempts, seed):
    x = np.array([one.extracted for one in attempts], float)
    w = np.array([one.passage.weight for one in attempts])
    weighted = lambda counts: (counts * w) @ x / (counts @ w)
    interval = statistics.bootstrap(x, statistic=None if len(set(w)) == 1 else weighted,
                                    draws=2000, seed=seed).as_dict()
    limits = {end: None if interval[end] is None else float(interval[end])
              for end in ('low', 'high')}
    return {'value': float(interval['value']), **limits, 'n': len(x), 'unit': 'share'}


def rows(attempts, tokenizer, split):
    """One dict per attempt, for items.jsonl."""
    return [{'id': f'{split}/{one.passage.id}', 'suite': 'extraction', 'split': split,
             'subject': one.passage.id, 'copies': one.passage.copies, **one.passage.tags,
             'prompt': tokenizer.decode(one.passage.tokens[:-len(one.written)]),
             'answer': tokenizer.decode(one.passage.tokens[-len(one.written):]),
             'given': tokenizer.decode(one.written), 'matched': one.matched,
             'correct': int(one.extracted)} for one in attempts]
