"""Rollouts cut into batches: order, periods, what is written, and running rows in chunks."""

import json

import jax
import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.rl import rollout
from jaxllm.rl.source import RolloutSource, history
from jaxllm.sharding import make_mesh


def make_source(tmp_path, made, **options):
    def make(number, state):
        made.append((number, state))
        return {'row': np.arange(12) + 100 * number}, {'reward': 0.5 + number}, [{'text': 'é'}]
    like = {'row': jax.ShapeDtypeStruct((12,), np.int64)}
    return RolloutSource(make, folder=tmp_path / 'rollouts', like=like, **dict(
        dict(num_examples=12, epochs=2, batch_size=4, seed=3), **options))


def test_every_example_comes_once_an_epoch_in_another_order(tmp_path):
    made = []
    source = make_source(tmp_path, made)
    assert source.period == 6 and source.needs_state
    batches = [source(step, f'state {step}') for step in range(12)]
    assert made == [(0, 'state 0'), (1, 'state 6')]
    for number in range(2):
        epochs = [np.concatenate([batches[6 * number + 3 * e + i]['row'] for i in range(3)])
                  for e in range(2)]
        for epoch in epochs:
            assert sorted(epoch) == [100 * number + i for i in range(12)]
        assert list(epochs[0]) != list(epochs[1])
    assert list(source.order(0, 0)) != list(source.order(1, 0))
    np.testing.assert_array_equal(batches[7]['rollout/reward'], np.full(4, 1.5, np.float32))


def test_groups_stay_together(tmp_path):
    source = make_source(tmp_path, [], group_size=2)
    rows = np.concatenate([source(step, None)['row'] for step in range(3)]).reshape(6, 2)
    assert sorted(rows[:, 0]) == [0, 2, 4, 6, 8, 10] != list(rows[:, 0])
    np.testing.assert_array_equal(rows[:, 1], rows[:, 0] + 1)


def test_processes_hold_parts_of_one_batch(tmp_path):
    whole = make_source(tmp_path, [])(0, None)['row']
    parts = [make_source(tmp_path, [], process_index=p, process_count=2)(0, None)['row']
             for p in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_what_was_sampled_is_kept(tmp_path):
    source = make_source(tmp_path, [])
    for step in (0, 6):
        source(step, None)
    assert [one['reward'] for one in history(tmp_path / 'rollouts', 1)] == [0.5]
    lines = (tmp_path / 'rollouts' / '000001.jsonl').read_text(encoding='utf-8').splitlines()
    assert json.loads(lines[0])['rollout'] == 1 and json.loads(lines[1]) == {'text': 'é'}
    assert set(source.take_perf()) == {'rollout/time_s'} and source.take_perf() == {}


def test_a_rollout_that_was_never_made_has_no_middle(tmp_path):
    with pytest.raises(ValueError, match='inside rollout 1'):
        make_source(tmp_path, [])(7, None)
    with pytest.raises(InputError, match='does not divide'):
        make_source(tmp_path, [], batch_size=5)


def test_rows_in_chunks_are_as_all_at_once():
    mesh = make_mesh()
    calls = []

    def double(offset, batch):
        calls.append(batch['x'].shape)
        return {'y': 2 * batch['x'] + offset}
    x = np.arange(21, dtype=np.float32)[:, None] + np.zeros((1, 3), np.float32)
    with jax.set_mesh(mesh):
        found = rollout.InChunks(double, 5, mesh)(1.0, batch={'x': x})['y']
    np.testing.assert_array_equal(found, 2 * x + 1)
    assert calls == [(8, 3)]  # compiled once, for a multiple of the devices


def test_what_did_not_end():
    rewards, finished = np.array([1.0, 2.0], np.float32), np.array([1.0, 0.0], np.float32)
    make = lambda **x: rollout.RolloutConfig(**dict(dict(
        prompts=1, samples=2, epochs=1, max_new_tokens=4, temperature=1.0, batch_size=0,
        refill=False, share_prompts=True, score_batch_size=4, unfinished='reward',
        unfinished_value=-1.5, standardise=False), **x))
    for how, want in (('reward', [1, 2]), ('replace', [1, -1.5]), ('subtract', [1, 3.5])):
        found = rollout.judged_by_end(make(unfinished=how), rewards, finished)
        np.testing.assert_array_equal(found, np.array(want, np.float32))
        assert found.dtype == np.float32
    for wrong in (dict(samples=0), dict(temperature=0.0), dict(unfinished='ignore')):
        with pytest.raises(InputError, match=next(iter(wrong))):
            make(**wrong)


def test_repetition_counts_grams_that_stood_before():
    assert rollout.repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    assert rollout.repetition([1, 2, 3]) == 0 == rollout.repetition([])
