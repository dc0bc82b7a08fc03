"""The mark of a finished run: what it takes to count, and what takes it away."""

import json

import pytest

from jaxllm.errors import InputError
from jaxllm.report import done


@pytest.fixture
def run(tmp_path):
    """A finished run that read a file and a folder."""
    folder = tmp_path / 'run'
    (tmp_path / 'tasks').mkdir()
    folder.mkdir()
    for name in ('items', 'tasks/a'):
        (tmp_path / name).write_text('1')
    config = {'stage': 'toy', 'lr': 0.5, 'items_file': str(tmp_path / 'items'), 'text': '',
              'tasks': f'{tmp_path / "tasks"},arc_easy'}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'out').mkdir()
    done.write(folder, config, 1.26, ['out'], done.input_hashes(config))
    return folder


def _change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_finished_run_is_done_wherever_its_inputs_are(run):
    assert done.is_done(run) and done.read(run)['seconds'] == 1.3
    assert done.read(run)['inputs'].keys() == {'items_file', 'tasks'}
    _change(run / 'config.json', metrics={'tensorboard': False})  # changes no number
    (run.parent / 'items').unlink()
    assert done.is_done(run)
    assert not done.is_done(run.parent)
    done.remove(run)
    assert not done.is_done(run)
    done.remove(run)


@pytest.mark.parametrize('break_it', [
    lambda run: (run / 'out').rmdir(),
    lambda run: (run / 'config.json').unlink(),
    lambda run: _change(run / 'config.json', lr=0.25),
    lambda run: _change(run / 'done.json', fingerprint='0' * 16),
    lambda run: (run.parent / 'items').write_text('2'),
    lambda run: (run.parent / 'tasks' / 'a').write_text('2'),
    lambda run: (run.parent / 'tasks' / 'a').rename(run.parent / 'tasks' / 'b'),
])
def test_what_does_not_fit_is_not_done(run, break_it):
    break_it(run)
    assert not done.is_done(run)


@pytest.mark.parametrize('text, message', [
    ('', r'done.json is empty .*remove it'), ('{"stage', 'done.json is damaged .*remove it'),
    ('[]', 'holds no object'), ('{"seconds": 1}', 'it needs fingerprint, seconds'),
])
def test_a_damaged_mark_is_an_error(run, text, message):
    (run / 'done.json').write_text(text)
    with pytest.raises(InputError, match=message):
        done.is_done(run)


def test_an_output_that_was_not_written_is_an_error(run):
    done.remove(run)
    with pytest.raises(InputError, match='has no results.json at the end of the run, which toy'):
        done.write(run, {'stage': 'toy'}, 1.0, ['out', 'results.json'], {})
    assert not (run / 'done.json').exists()
