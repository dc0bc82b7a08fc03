"""Infilling: reversible, within the reserved room, and weighted where it should be."""

import dataclasses

import numpy as np
import pytest
from toy_store import SPECIAL

from jaxllm.data.infill import InfillConfig, InfillIds, transform
from jaxllm.errors import InputError

BOS, EOS = 1, 2
IDS = InfillIds.of({name: i for i, name in enumerate(SPECIAL)}, EOS)
ALWAYS_FIM = InfillConfig(kind='fim', rate=1.0)
ALWAYS_SPAN = InfillConfig(kind='span', rate=1.0)


def document(rng, length, whole=True):
    """[BOS] text [EOS], or the middle piece of a cut document, all text tokens distinct."""
    text = 100 + rng.permutation(length)
    return np.array([BOS, *text[2:], EOS]) if whole else text


def undo_fim(tokens, spm):
    """Puts the middle back: head, prefix + middle, suffix, tail."""
    tokens = list(tokens)
    tail = [tokens.pop()] if tokens[-1] == EOS else []
    suffix_at, middle_at = tokens.index(IDS.suffix), tokens.index(IDS.middle)
    assert tokens[1] == IDS.prefix
    assert suffix_at == 2 or not spm
    suffix = tokens[suffix_at + 1:middle_at]
    return [tokens[0], *tokens[2:suffix_at], *tokens[middle_at + 1:], *suffix, *tail]


def undo_spans(tokens):
    """Puts every span back in the place of its mask."""
    tokens = list(tokens)
    tail = [tokens.pop()] if tokens[-1] == EOS else []
    if IDS.masks[0] not in tokens:
        return tokens + tail
    second = [i for i, t in enumerate(tokens) if t == IDS.masks[0]][1]
    shown, missing = tokens[:second], tokens[second:]
    spans = {}
    for token in missing:
        if token in IDS.masks:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    out = []
    for token in shown:
        out += spans.pop(token) if token in spans else [token]
    assert not spans
    return out + tail


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('spm_rate', [0.0, 1.0])
def test_fim_round_trip(whole, spm_rate):
    rng = np.random.default_rng(0)
    config = dataclasses.replace(ALWAYS_FIM, spm_rate=spm_rate)
    for length in [2, 3, 4, 5, 9, 40] * 20:
        piece = document(rng, length, whole)
        tokens, weights = transform(piece, rng, config, IDS)
        assert undo_fim(tokens, spm=spm_rate == 1) == list(piece)
        assert tokens[0] == piece[0] and (tokens[-1] == EOS) == whole
        assert len(tokens) == len(piece) + 3 == len(piece) + config.overhead(len(piece))
        assert weights.dtype == np.float32 and (weights == 1).all()
        assert sorted(tokens[tokens < 100]) == sorted(
            [*piece[piece < 100], IDS.prefix, IDS.suffix, IDS.middle])


def test_fim_orders_read_as_documented():
    piece = document(np.random.default_rng(0), 30)
    psm, _ = transform(piece, np.random.default_rng(7),
                       dataclasses.replace(ALWAYS_FIM, spm_rate=0.0), IDS)
    spm, _ = transform(piece, np.random.default_rng(7),
                       dataclasses.replace(ALWAYS_FIM, spm_rate=1.0), IDS)
    at = {name: list(psm).index(token) for name, token in
          (('suf', IDS.suffix), ('mid', IDS.middle))}
    prefix, suffix = psm[2:at['suf']], psm[at['suf'] + 1:at['mid']]
    middle = psm[at['mid'] + 1:-1]
    assert len(prefix) and len(middle) and len(suffix)
    assert list(spm) == [BOS, IDS.prefix, IDS.suffix, *suffix, IDS.middle, *prefix, *middle, EOS]


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('corruption, mean_span', [(0.15, 3.0), (0.5, 3.0), (0.5, 32.0),
                                                   (0.9, 1.0), (0.05, 1.0)])
def test_span_round_trip(whole, corruption, mean_span):
    rng = np.random.default_rng(0)
    config = dataclasses.replace(ALWAYS_SPAN, corruption=corruption, mean_span=mean_span)
    for length in [2, 3, 4, 5, 6, 7, 9, 40, 333, 2000] * 4:
        piece = document(rng, length, whole)
        tokens, weights = transform(piece, rng, config, IDS)
        assert undo_spans(tokens) == list(piece)
        assert len(tokens) <= len(piece) + config.overhead(len(piece))
        assert len(tokens) == len(weights)
        shown = np.isin(tokens[weights == 0], IDS.masks)
        assert not (shown[1:] & shown[:-1]).any()  # Two spans never touch.


def test_span_weights_cover_exactly_the_infill_part():
    rng = np.random.default_rng(0)
    piece = document(rng, 200)
    tokens, weights = transform(piece, rng, ALWAYS_SPAN, IDS)
    second = np.flatnonzero(tokens == IDS.masks[0])[1]
    assert (weights[:second] == 0).all() and (weights[second:] == 1).all()
    hidden = round(198 * 0.15)
    spans = round(hidden / 3)
    assert weights.sum() == hidden + spans + 1  # The tokens, their masks and the EOS.


def test_number_of_spans_is_capped_and_the_corruption_kept():
    tokens, weights = transform(document(np.random.default_rng(0), 2002),
                                np.random.default_rng(1), ALWAYS_SPAN, IDS)
    assert np.isin(tokens, IDS.masks).sum() == 2 * 16
    assert weights.sum() == 300 + 16 + 1


def test_spans_lie_anywhere():
    rng = np.random.default_rng(0)
    piece = document(rng, 22)
    counts = np.zeros(20)
    for _ in range(400):
        tokens, weights = transform(piece, rng, ALWAYS_SPAN, IDS)
        missing = tokens[weights > 0]
        counts[np.isin(piece[1:-1], missing)] += 1
    assert counts.min() > 0.03 * 400
    assert counts.sum() == 400 * 3


@pytest.mark.parametrize('config', [ALWAYS_FIM, ALWAYS_SPAN, InfillConfig(), InfillConfig(
    kind='span', rate=1.0, corruption=0.7, mean_span=1.5)])
def test_overhead_never_decreases(config):
    assert (np.diff(config.overhead(np.arange(2, 3000))) >= 0).all()


@pytest.mark.parametrize('kind', ['fim', 'span'])
def test_rate(kind):
    rng = np.random.default_rng(0)
    piece = document(rng, 40)
    config = InfillConfig(kind=kind, rate=0.3)
    changed = sum(len(transform(piece, rng, config, IDS)[0]) > len(piece) for _ in range(2000))
    assert 520 < changed < 680


@pytest.mark.parametrize('config', [InfillConfig(), InfillConfig(kind='fim', rate=0.0)])
def test_inactive_changes_nothing(config):
    piece = document(np.random.default_rng(0), 12)
    tokens, weights = transform(piece, np.random.default_rng(0), config, IDS)
    np.testing.assert_array_equal(tokens, piece)
    assert weights.sum() == 12 and config.overhead([12]) == 0


@pytest.mark.parametrize('config', [ALWAYS_FIM, ALWAYS_SPAN])
def test_pure_in_the_generator(config):
    piece = document(np.random.default_rng(0), 50)
    a, b, c = (transform(piece, np.random.default_rng(seed), config, IDS)[0] for seed in (1, 1, 2))
    assert list(a) == list(b) != list(c)


@pytest.mark.parametrize('setting', [{'kind': 'mlm'}, {'rate': 1.5}, {'spm_rate': -1},
                                     {'corruption': 0}, {'corruption': 1.0}, {'mean_span': 0.5}])
def test_bad_settings(setting):
    with pytest.raises(InputError, match=f'infill.{next(iter(setting))}='):
        InfillConfig(**setting)


def test_tokenizer_without_the_special_tokens():
    with pytest.raises(InputError, match='fim_prefix'):
        InfillIds.of({'<|pad|>': 0}, EOS)
