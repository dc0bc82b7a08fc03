"""The suites of a comparison: asked once of the same weights, and who is held to whom."""

import dataclasses
import json
import pathlib

import pytest

from jaxllm.evals import ladder
from jaxllm.stages import compare_suites
from jaxllm.stages.evaluate_config import evaluate_config


@dataclasses.dataclass
class Model:
    """What is looked at of a Base."""
    fingerprint: str = 'one'
    step: int = 4
    path: pathlib.Path = pathlib.Path('nowhere')


@pytest.fixture
def asked(monkeypatch):
    """Folders of the evaluations that were run, one after the other."""
    folders = []

    def run(config, folder):
        folders.append(folder.name)
        (folder / 'results.json').write_text(json.dumps({'metrics': {}, 'seed': config.seed}))
        (folder / 'items.jsonl').write_text(json.dumps({'id': f'q{len(folders)}'}) + '\n')

    monkeypatch.setattr(compare_suites.evaluate, 'run', run)
    return folders


def test_the_same_weights_are_asked_once(asked, monkeypatch, tmp_path):
    configs, opened = {'a': evaluate_config(), 'b': evaluate_config()}, {'a': Model(), 'b': Model()}
    first = compare_suites.run(configs, opened, tmp_path)
    assert asked == ['a', 'b'] and first['b'] == ({'metrics': {}, 'seed': 0}, [{'id': 'q2'}])
    assert compare_suites.run(configs, opened, tmp_path) == first and len(asked) == 2
    compare_suites.run(configs, opened | {'b': Model(step=5)}, tmp_path)
    compare_suites.run(configs, opened | {'b': Model('two')}, tmp_path)
    assert asked[2:] == ['b', 'b']
    configs['a'].seed = 1
    assert compare_suites.run(configs, opened, tmp_path)['a'][0]['seed'] == 1
    assert asked[4:] == ['a', 'b']
    new = ladder.Measure('new', 'safety', 'a new column', lambda row: True)
    monkeypatch.setattr(ladder, 'MEASURES', (*ladder.MEASURES, new))
    compare_suites.run(configs, opened, tmp_path)
    assert asked[6:] == ['a', 'b']


def test_an_evaluation_that_was_cut_off_is_run_again(asked, monkeypatch, tmp_path):
    run = compare_suites.evaluate.run

    def cut_off(config, folder):
        run(config, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_suites.evaluate, 'run', cut_off)
    with pytest.raises(KeyboardInterrupt):
        compare_suites.run({'a': evaluate_config()}, {'a': Model()}, tmp_path)
    monkeypatch.setattr(compare_suites.evaluate, 'run', run)
    compare_suites.run({'a': evaluate_config()}, {'a': Model()}, tmp_path)
    assert asked == ['a', 'a']


def test_each_is_held_to_the_one_whose_weights_it_began_with(tmp_path):
    for name, config in (('base', {}), ('sft', {'init_from': str(tmp_path / 'base')}),
                         ('control', {'init_from': str(tmp_path / 'base'), 'fresh_weights': True}),
                         ('other', {'init_from': '/elsewhere'})):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'file').mkdir()
    names = 'sft', 'base', 'control', 'other', 'file'
    found = compare_suites.before({name: Model(path=tmp_path / name) for name in names}, 'sft',
                                  names)
    assert found == {'sft': 'base', 'base': '', 'control': 'sft', 'other': 'sft', 'file': ''}
