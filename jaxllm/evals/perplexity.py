"""Bits per byte of texts: every token counts once, whatever the length of a row."""

import collections
import dataclasses
import functools
import math

import jax
import numpy as np

from jaxllm.errors import InputError
from jaxllm.evals.items import spread
from jaxllm.models import transformer
from jaxllm.objectives.ops import token_logprobs
from jaxllm.sharding import batch_shardings, batch_ways, constrain, replicated


@dataclasses.dataclass(frozen=True)
class Document:
    """A text to measure: its token ids (BOS ... EOS), UTF-8 bytes, and what it counts under.

    subject: whom or what it is about; itself, if nobody says. part: of the texts, such as
    'new_wordings'; '' where all are of one kind.
    """
    id: str
    domain: str
    ids: np.ndarray
    num_bytes: int
    subject: str
    part: str = ''


def documents(tokenizer, texts, most=0, part=''):
    """Documents of (id, domain, text, subject): at most `most` of a domain, evenly spread; 0 = all.
    """
    by_domain = collections.defaultdict(list)
    for text in texts:
        if text[2]:
            by_domain[text[1]].append(text)
    chosen = [text for domain in sorted(by_domain) for text in spread(by_domain[domain], most)]
    encoded = tokenizer.encode_batch([text for _, _, text, _ in chosen])
    return [Document(id, domain, np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int32),
                     len(text.encode()), subject, part)
            for (id, domain, text, subject), ids in zip(chosen, encoded, strict=True)]


def stored_documents(split, domain, most=0):
    """Documents of a split of a token store, with indices as ids; `most` as in `documents`."""
    return [Document(f'{domain}-{i}', domain, np.asarray(split.document(i), np.int32),
                     int(split.text_bytes[i]), f'{domain}-{i}')
            for i in spread(range(split.num_documents), most)]


def bits(params, cfg, docs, *, seq_len, batch_size=256):
    """[docs] float64, bits of each document, its EOS included: -log2 p(tokens after BOS).

    A document longer than `seq_len` tokens is cut into pieces, each read without the one before, as
    in training. Needs a mesh.
    """
    if seq_len < 1:
        raise InputError(f'seq_len={seq_len} must be at least 1')
    if cfg.positions == 'learned':
        seq_len = min(seq_len, cfg.max_seq_len)
    pieces = [(i, doc.ids[start:start + seq_len + 1]) for i, doc in enumerate(docs)
              for start in range(0, len(doc.ids) - 1, seq_len)]
    pieces.sort(key=lambda piece: len(piece[1]))
    mesh = jax.sharding.get_mesh()
    ways = batch_ways(mesh)
    total = np.zeros(len(docs))
    start = 0
    while start < len(pieces):
        # A shape per power of two of the length, and as many tokens in each batch.
        L = min(_power(len(pieces[start][1]) - 1), seq_len)
        B = ways * max(batch_size * 16 // (L * ways), 1)
        batch = [piece for piece in pieces[start:start + B] if len(piece[1]) - 1 <= L]
        tokens_BL, targets_BL, segments_BL = (np.zeros((B, L), np.int32) for _ in range(3))
        for row, (_, ids) in enumerate(batch):
            tokens_BL[row, :len(ids) - 1], targets_BL[row, :len(ids) - 1] = ids[:-1], ids[1:]
            segments_BL[row, :len(ids) - 1] = 1
        arrays = dict(tokens=tokens_BL, targets=targets_BL, segments=segments_BL)
        sums_B = jax.device_get(_program(mesh)(
            params, **jax.device_put(arrays, batch_shardings(arrays, mesh)), cfg=cfg))
        for (i, _), nats in zip(batch, sums_B[:len(batch)], strict=True):
            total[i] -= float(nats) / math.log(2)
        start += len(batch)
    return total


def _power(size):
    return 1 << max(size - 1, 15).bit_length()


@functools.cache
def _program(mesh):
    return jax.jit(_sums, static_argnames='cfg', out_shardings=replicated(mesh))


def _sums(params, tokens, targets, segments, *, cfg):
    """[B] log p of the targets of each row."""
    hidden_BLD = transformer.apply_hidden(params, cfg, tokens, segment_ids_BL=segments)
    logprobs_BL = token_logprobs(hidden_BLD, transformer.unembed_matrix(params, cfg), targets,
                                 softcap=cfg.logit_softcap)
    return constrain((logprobs_BL * segments).sum(axis=1), 'batch')
