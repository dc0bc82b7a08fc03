"""Rankings of a model's own answers: by the rater's utility, of different answers that end."""

import dataclasses
import json

import numpy as np
import pytest
import runs

from jaxllm.config import load_file
from jaxllm.data.prompts import Prompt
from jaxllm.errors import InputError
from jaxllm.stages import feedback
from jaxllm.stages.world import world_spec
from jaxllm.world import oracle, preferences
from jaxllm.world.atlas import atlas
from jaxllm.world.features import Reader


@pytest.fixture(scope='module')
def world():
    return atlas(0, 'nano')


def asked(world, count=40):
    """Prompts of a world about facts, each with its right answer, as sources are read."""
    rows = [row for row in preferences.pairs(world, 'expert', 'helpful')
            if row['kind'] == 'fact' and row['answer'] and not row['guess']][:count]
    prompts = [Prompt(row['id'], ({'role': 'user', 'content': row['prompt']},), (1,), row)
               for row in rows]
    return prompts, [row['answer'] for row in rows]


def ranked(world, prompts, answers, finished=None, seed=0, criterion='helpful'):
    texts = [text for group in answers for text in group]
    finished = np.ones(len(texts), bool) if finished is None else finished
    return list(feedback.rankings(prompts, texts, finished, Reader.of(world),
                                  oracle.rater('expert', criterion), criterion, seed))


def test_the_right_answer_is_mostly_first_and_noise_is_of_the_seed(world):
    prompts, right = asked(world)
    answers = [[f'The answer is {other}.', f'The answer is {value}.'] for value, other in
               zip(right, right[1:] + right[:1], strict=True) if value != other]
    prompts = [p for p, a, b in zip(prompts, right, right[1:] + right[:1], strict=True) if a != b]
    rows = ranked(world, prompts, answers)
    assert len(rows) == len(prompts) > 20
    assert all(row['utilities'][1] > row['utilities'][0] for row in rows)
    assert np.mean([row['ranks'] == [2, 1] for row in rows]) > 0.9
    alike = [[value, f'I think that it is {value}.'] for value in right]
    rows = ranked(world, prompts, alike[:len(prompts)])
    assert 0 < np.mean([row['ranks'][0] == 1 for row in rows]) < 1, 'raters are noisy'
    assert rows == ranked(world, prompts, alike[:len(prompts)])
    assert rows != ranked(world, prompts, alike[:len(prompts)], seed=1)


def test_equal_and_unfinished_answers_are_not_compared(world):
    prompts, right = asked(world, 3)
    answers = [['I do not know.', 'I do not know. ', right[0], ''],
               ['I do not know.', right[1], 'I do not know.', right[1]],
               [right[2]] * 4]
    finished = np.ones(12, bool)
    finished[5] = finished[7] = False
    [row] = ranked(world, prompts, answers, finished)
    assert row['id'] == prompts[0].id and row['responses'] == ['I do not know.', right[0]]
    assert row['prompt'] == [{'role': 'user', 'content': prompts[0].text}]
    assert sorted(row['ranks']) in ([1, 2], [1, 1]) and row['criterion'] == 'helpful'


@pytest.mark.parametrize('changes, message', [
    (dict(run=''), 'config.run is empty; give the run'),
    (dict(sampling__samples=1), 'samples >= 2'),
    (dict(raters__criteria=()), 'raters.criteria is empty'),
    (dict(raters__criteria=('nice',)), "criterion 'nice' is unknown"),
    (dict(data__max_prompt_tokens=0), 'max_prompt_tokens=0: expected'),
    (dict(checkpoint='newest'), "config.checkpoint='newest' is unknown")])
def test_bad_settings_are_found_before_anything_is_opened(changes, message):
    config = load_file(str(runs.ROOT / 'experiments' / 'feedback.py'))
    config.run = '/nowhere'
    for key, value in changes.items():
        *path, name = key.split('__')
        target = config[path[0]] if path else config
        with target.ignore_type():
            target[name] = value
    with pytest.raises(InputError, match=message):
        feedback.prepare(config)


def test_a_model_of_another_world_is_refused(monkeypatch, tmp_path):
    """Its raters would call right answers wrong."""
    config = load_file(str(runs.ROOT / 'experiments' / 'feedback.py'))
    config.run = str(tmp_path)
    base = dataclasses.make_dataclass('Base', ['path'])(tmp_path)
    base.template = lambda: 'a template'
    monkeypatch.setattr(feedback.bases, 'open_base', lambda *args: base)
    (tmp_path / 'lineage.json').write_text(json.dumps(
        {'world': world_spec(config.world).fingerprint}))
    assert feedback.prepare(config)[0] is base
    config.seed = 1
    with pytest.raises(InputError, match='config.run: .* has learned the world .*--config.seed=1'):
        feedback.prepare(config)


def test_raters_know_no_answers_to_ones_own_prompts(monkeypatch, tmp_path):
    config = load_file(str(runs.ROOT / 'experiments' / 'feedback.py'))
    config.run = str(tmp_path)
    for source in config.data.prompts.values():
        source.path = 'mine.jsonl'
    base = dataclasses.make_dataclass('Base', ['path'])(tmp_path)
    base.template = lambda: 'a template'
    monkeypatch.setattr(feedback.bases, 'open_base', lambda *args: base)
    with pytest.raises(InputError, match='config.world is read by nobody'):
        feedback.prepare(config)
    del config.world
    with pytest.raises(InputError, match='jaxllm label'):
        feedback.prepare(config)


@pytest.mark.parametrize('file', ['reward', 'dpo'])
def test_who_learns_from_it_reads_the_rankings_by_one_criterion(file):
    path = runs.ROOT / 'experiments' / f'{file}.py'
    config = load_file(f'{path}:feedback=there,criterion=safe')
    assert [source.path for source in config.data.comparisons.values()] == ['there/safe.jsonl']
    with pytest.raises(InputError, match='use one of them'):
        load_file(f'{path}:feedback=there,data=mine.jsonl')
