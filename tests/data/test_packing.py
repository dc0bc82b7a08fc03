"""The packing plan: nothing lost, nothing twice, rows full, only long documents cut."""

import time

import numpy as np
import pytest

from jaxllm.data.packing import plan_rows
from jaxllm.errors import InputError

LENGTHS = {
    'lognormal': lambda rng, n: np.clip(rng.lognormal(4, 1.2, n), 2, None),
    'uniform': lambda rng, n: rng.integers(2, 150, n),
    'equal': lambda rng, n: np.full(n, 37),
    'tiny': lambda rng, n: rng.integers(2, 5, n),
    'long': lambda rng, n: rng.integers(500, 3000, n),
    'exact': lambda rng, n: rng.choice([64, 65, 66, 129, 130], n),
}


def extra(lengths):
    """A reserve that grows with the length, as span infilling needs."""
    return 3 + np.asarray(lengths) // 20


def target_counts(plan, lengths):
    """How often each token of each document is a target."""
    counts = [np.zeros(n, int) for n in lengths]
    for document, start, length in zip(plan.documents, plan.starts, plan.lengths, strict=True):
        counts[document][start + 1:start + length] += 1
    return counts


@pytest.mark.parametrize('reserve', [None, extra])
@pytest.mark.parametrize('kind', LENGTHS)
@pytest.mark.parametrize('seed', range(3))
def test_every_target_exactly_once(kind, seed, reserve):
    lengths = LENGTHS[kind](np.random.default_rng(seed), 150).astype(int)
    plan = plan_rows(lengths, 64, reserve)
    for counts in target_counts(plan, lengths):
        assert counts[0] == 0
        assert (counts[1:] == 1).all()
    sizes = plan.lengths + (reserve(plan.lengths) if reserve else 0)
    used = np.add.reduceat(sizes, plan.row_offsets[:-1])
    assert used.max() <= 65
    assert plan.row_offsets[0] == 0 and plan.row_offsets[-1] == len(plan.lengths)
    assert (np.diff(plan.row_offsets) >= 1).all()
    assert plan.lengths.min() >= 2


@pytest.mark.parametrize('reserve', [None, extra])
def test_only_documents_that_do_not_fit_are_cut(reserve):
    lengths = np.arange(2, 200)
    plan = plan_rows(lengths, 64, reserve)
    pieces = np.bincount(plan.documents, minlength=len(lengths))
    fits = lengths + (reserve(lengths) if reserve else 0) <= 65
    np.testing.assert_array_equal(pieces == 1, fits)
    assert plan.num_cut == (~fits).sum()


def best_fit_decreasing(sizes, capacity):
    """The algorithm in words: the fullest row that has room, else a new one."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [(room, row) for row, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting)[1]] -= size
        else:
            rooms.append(capacity - size)
    return sorted(rooms)


@pytest.mark.parametrize('kind', LENGTHS)
@pytest.mark.parametrize('seed', range(3))
def test_is_best_fit_decreasing(kind, seed):
    lengths = LENGTHS[kind](np.random.default_rng(seed), 120).astype(int)
    plan = plan_rows(lengths, 48)
    rooms = sorted(49 - np.add.reduceat(plan.lengths, plan.row_offsets[:-1]))
    assert rooms == best_fit_decreasing(plan.lengths, 49)


def test_fill_and_speed_on_realistic_lengths():
    lengths = np.random.default_rng(0).lognormal(6.3, 1.1, 100_000).astype(int) + 2
    start = time.process_time()
    plan = plan_rows(lengths, 2048)
    assert time.process_time() - start < 1  # That is 100k documents per second; 20x slack.
    assert plan.fill > 0.999
    assert plan.num_cut == (lengths > 2049).sum()


def test_deterministic():
    lengths = np.random.default_rng(1).integers(2, 90, 500)
    a, b = plan_rows(lengths, 64), plan_rows(lengths, 64)
    for name in ('row_offsets', 'documents', 'starts', 'lengths'):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_short_documents_of_a_row_are_not_neighbours():
    plan = plan_rows(np.full(1000, 10), 99)
    rows = plan.documents.reshape(100, 10)
    assert (abs(np.diff(rows, axis=1)) == 1).mean() < 0.05


def test_row_longer_than_everything():
    plan = plan_rows([5, 9, 3], 1000)
    assert plan.num_rows == 1
    assert plan.fill == pytest.approx(17 / 1001)


def test_no_documents():
    assert plan_rows([], 16).num_rows == 0


@pytest.mark.parametrize('seq_len, reserve', [(0, None), (3, extra)])
def test_no_room(seq_len, reserve):
    with pytest.raises(InputError, match=f'seq_len={seq_len} has no room'):
        plan_rows([5, 6], seq_len, reserve)


def test_document_without_targets():
    with pytest.raises(ValueError, match='at least 2'):
        plan_rows([5, 1], 16)
