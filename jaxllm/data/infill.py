"""Missing-token prediction as a transform of the data: the objective stays next-token prediction.

A piece of a document is rewritten so that the missing tokens come last and are predicted from
what was on both sides of them. Its first token (BOS, or the token shared with the previous piece
of a cut document) stays first, and an EOS at its end stays last; a cut piece gets no EOS.

    fim, prefix-suffix-middle:  b <pre> prefix <suf> suffix <mid> middle [e]
    fim, suffix-prefix-middle:  b <pre> <suf> suffix <mid> prefix middle [e]
    span:                       b text <mask_0> text <mask_1> text <mask_0> span <mask_1> span [e]
"""

import dataclasses

import numpy as np

from jaxllm.errors import InputError

KINDS = ('none', 'fim', 'span')
MAX_SPANS = 16


@dataclasses.dataclass(frozen=True)
class InfillConfig:
    """How to hide tokens.

    Attributes:
        kind: 'none', 'fim' (fill in the middle) or 'span' (span infilling).
        rate: share of the pieces that are transformed, in [0, 1].
        spm_rate: 'fim': share of the transformed pieces in suffix-prefix-middle order.
        corruption: 'span': share of the tokens of a piece that are hidden, in (0, 1).
        mean_span: 'span': tokens per hidden span, on average. At most 16 spans are hidden; in a
            piece long enough for more, the spans get longer and `corruption` is kept.
    """

    kind: str = 'none'
    rate: float = 0.5
    spm_rate: float = 0.5
    corruption: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f'infill.kind={self.kind!r} is unknown; use one of {KINDS}')
        for name in ('rate', 'spm_rate'):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f'infill.{name}={getattr(self, name)} must be a share in [0, 1]')
        if not 0 < self.corruption < 1:
            raise InputError(f'infill.corruption={self.corruption} must lie between 0 and 1, '
                             'for example 0.15')
        if self.mean_span < 1:
            raise InputError(f'infill.mean_span={self.mean_span} must be at least 1 token')

    @property
    def active(self):
        return self.kind != 'none' and self.rate > 0

    def overhead(self, lengths):
        """Most tokens that the transform adds to pieces of these lengths; int64, same shape."""
        lengths = np.asarray(lengths, np.int64)
        if not self.active:
            return np.zeros_like(lengths)
        if self.kind == 'fim':
            return np.full_like(lengths, 3)
        _, num_spans = self.hidden(lengths - 1)
        return 2 * num_spans

    def hidden(self, body):
        """How much of a body of this many tokens is hidden (arrays or numbers).

        Returns:
            hidden tokens and number of spans, both 0 for a body shorter than 2 tokens. Both do
            not decrease with the length, so that room reserved for a longer body is enough.
        """
        body = np.asarray(body, np.int64)
        tokens = np.clip(np.rint(body * self.corruption).astype(np.int64), 1, body - 1)
        spans = np.rint(tokens / self.mean_span).astype(np.int64)
        # Spans do not touch: there is at least one visible token between two of them.
        spans = np.clip(spans, 1, np.minimum(MAX_SPANS, body - tokens + 1))
        enough = body >= 2
        return np.where(enough, tokens, 0), np.where(enough, spans, 0)


@dataclasses.dataclass(frozen=True)
class InfillIds:
    """Ids of the tokens that infilling needs."""

    prefix: int
    middle: int
    suffix: int
    masks: tuple
    eos: int

    @classmethod
    def of(cls, special, eos_id):
        """Takes them from the special tokens (name -> id) of a tokenizer.

        Raises:
            InputError: the tokenizer lacks one of them.
        """
        names = ('<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>',
                 *(f'<|mask_{i}|>' for i in range(MAX_SPANS)))
        missing = [name for name in names if name not in special]
        if missing:
            raise InputError(f'the tokenizer has no special tokens {missing}, which infilling '
                             'needs; train a tokenizer with them, or use infill.kind=none')
        ids = [special[name] for name in names]
        return cls(prefix=ids[0], middle=ids[1], suffix=ids[2], masks=tuple(ids[3:]), eos=eos_id)


def transform(piece, rng, config, ids):
    """Hides tokens of one piece, or leaves it as it is with probability 1 - rate.

    Args:
        piece: int [n], n >= 2, tokens of one document.
        rng: np.random.Generator; the result depends on nothing else that is random.
        config: an InfillConfig.
        ids: an InfillIds.

    Returns:
        tokens: int64 [m], m <= n + config.overhead(n).
        weights: float32 [m], the loss weight of each token as a target. All 1 for 'fim' and for
            a piece left as it is; for 'span' 1 from the first repeated <mask_0> on.

    Ref: Bavarian et al. 2022, Efficient training of language models to fill in the middle
    (arXiv:2207.14255), sections 3 and 3.1 (both orders, the loss on all tokens); Raffel et al.
    2020, Exploring the limits of transfer learning (arXiv:1910.10683), section 3.1.4 (spans).
    """
    piece = np.asarray(piece, np.int64)
    if not config.active or rng.random() >= config.rate:
        return piece, np.ones(len(piece), np.float32)
    end = len(piece) - (piece[-1] == ids.eos)
    head, body, tail = piece[:1], piece[1:end], piece[max(end, 1):]
    if config.kind == 'fim':
        tokens = np.concatenate([head, *_middle_last(body, rng, config.spm_rate, ids), tail])
        return tokens, np.ones(len(tokens), np.float32)
    shown, missing = _spans_last(body, rng, config, ids)
    tokens = np.concatenate([head, shown, missing, tail])
    weights = np.ones(len(tokens), np.float32)
    if len(missing):
        weights[:1 + len(shown)] = 0
    return tokens, weights


def _middle_last(body, rng, spm_rate, ids):
    """Splits at two points, uniform over all positions; the three parts may be empty."""
    low, high = np.sort(rng.integers(0, len(body) + 1, 2))
    prefix, middle, suffix = body[:low], body[low:high], body[high:]
    if rng.random() < spm_rate:
        return [ids.prefix, ids.suffix], suffix, [ids.middle], prefix, middle
    return [ids.prefix], prefix, [ids.suffix], suffix, [ids.middle], middle


def _spans_last(body, rng, config, ids):
    """Replaces random spans by masks; returns what is shown and the masks with their spans.

    The T5 code begins with a visible and ends with a hidden span; here both ends are random.
    """
    num_hidden, num_spans = (int(x) for x in config.hidden(len(body)))
    if not num_spans:
        return body, body[:0]
    hidden = 1 + _random_parts(num_hidden - num_spans, num_spans, rng)
    gaps = _random_parts(len(body) - num_hidden - (num_spans - 1), num_spans + 1, rng)
    gaps[1:-1] += 1
    shown, missing, at = [], [], 0
    for mask, gap, length in zip(ids.masks[:num_spans], gaps[:-1], hidden, strict=True):
        start = at + gap
        shown += [body[at:start], [mask]]
        missing += [[mask], body[start:start + length]]
        at = start + length
    return np.concatenate([*shown, body[at:]]), np.concatenate(missing)


def _random_parts(total, parts, rng):
    """Splits `total` into `parts` numbers >= 0 that sum to it, every split equally likely."""
    bars = np.sort(rng.choice(total + parts - 1, parts - 1, replace=False))
    return np.diff(np.concatenate([[-1], bars, [total + parts - 1]])) - 1
