"""Every notebook runs from top to bottom, on less than it has on its own, and leaves pictures."""

import json
import pathlib
import re

import nbclient
import nbformat
import pytest
import quick

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'colabs').glob('*.ipynb'))
# What is made smaller here, {notebook: (what stands there, what is run)}; and pictures it has.
SMALLER = {'inside_training': (':world=nano', ':smoke,world=nano'), 'first_run': ('', '')}
SETTINGS = re.compile(r'^SETTINGS = \[.*?\]$', re.DOTALL | re.MULTILINE)
PICTURES = {'inside_training': 9, 'first_run': 1}


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == set(SMALLER) == set(PICTURES)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_thin_and_clean(path):
    """What a notebook does stands in the library, where it is tested."""
    notebook = read(path)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 15
    assert [cell.cell_type for cell in notebook.cells[:2]] == ['markdown', 'code']
    assert 'minute' in notebook.cells[0].source
    for cell in code(notebook):
        assert cell.outputs == [] and cell.execution_count is None
        assert not re.search(r'^\s*(def|class)\b|\blambda\b', cell.source, re.MULTILINE)
    assert len({cell.source for cell in code(notebook)[:1]} | {
        code(read(other))[0].source for other in NOTEBOOKS}) == 1, 'install cells differ'


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, cache, monkeypatch):
    for name, folder in (('JUPYTER_RUNTIME_DIR', 'runtime'), ('IPYTHONDIR', 'ipython')):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv('JAXLLM_CACHE', str(cache))
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('XLA_FLAGS', quick.FLAGS)
    monkeypatch.delenv('MPLBACKEND', raising=False)  # the kernel draws into the notebook
    notebook = read(path)
    shorten(notebook, *SMALLER[path.stem])
    workdir = tmp_path / 'work'
    workdir.mkdir()
    nbclient.NotebookClient(notebook, timeout=900, kernel_name='python3',
                            resources={'metadata': {'path': str(workdir)}}).execute()
    data = [output.get('data', {}) for cell in code(notebook) for output in cell.outputs]
    assert sum('image/png' in x for x in data) == PICTURES[path.stem]
    assert any('text/markdown' in x for x in data)
    assert (workdir / 'runs').is_dir()
    if path.stem == 'first_run':  # of the whole chain, whose steps are all done
        life = workdir / 'runs' / 'life'
        assert '9 of 9 steps done' in (life / 'report.html').read_text()
        for step, role, made_by in (('base', 'tokenizer', 'tokenizer'),
                                    ('reward_helpful', 'comparisons/own', 'feedback')):
            parents = json.loads((life / step / 'lineage.json').read_text())['parents']
            assert parents[role]['run'] == str((life / made_by).resolve())


def shorten(notebook, there, instead):
    """Runs the smoke settings in place of those of the notebook."""
    if there:
        changed = [cell for cell in code(notebook) if there in cell.source]
        assert len(changed) == 1, 'what the test makes smaller is not there'
        source = changed[0].source.replace(there, instead)
        source, count = SETTINGS.subn("SETTINGS = ['--config.sample.prompts=()']", source)
        assert count == 1
        changed[0].source = source
