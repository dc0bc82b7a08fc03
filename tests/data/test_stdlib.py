"""The standard library as a dataset: complete, repeatable, TensorFlow-free, safe to interrupt."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from jaxllm.config import cache_dir
from jaxllm.data import stdlib
from jaxllm.errors import InputError

MODULE = '''"""Module text."""


class Thing:
    """A thing."""

    def method(self):
        """Does   it.

            indented
        base
        """

    if True:
        def other(self):
            """A thing."""


def empty():
    """   """


async def bare():
    return '\\d'
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of a few files."""
    root = tmp_path / 'lib'
    for name, text in {
            'alpha.py': MODULE, 'pkg/__init__.py': '"""Package."""\n', 'pkg/sub.py': 'x = 1\n',
            'test/test_alpha.py': '"""Secret test."""\n', 'encodings/cp1.py': '"""Table."""\n',
            'site-packages/other.py': '"""Foreign."""\n', 'broken.py': 'def (:\n',
            'empty.py': ''}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / 'latin.py').write_bytes('# -*- coding: latin-1 -*-\n"""caf\xe9"""\n'.encode('latin-1'))
    (root / 'bad.py').write_bytes(b'"""\xff\xfe"""\n')
    monkeypatch.setattr(stdlib, 'library_root', lambda: root)
    return root


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    """The dataset of the Python that runs the tests."""
    folder = tmp_path_factory.mktemp('stdlib')
    return folder, stdlib.prepare(folder)


def rows(builder, split):
    return [{key: value.decode() for key, value in row.items()}
            for row in builder.as_data_source(split)]


def test_docstrings_have_qualified_headings_and_places(library, tmp_path):
    builder = stdlib.prepare(tmp_path / 'data')
    found = {row['origin']: row['text'] for row in rows(builder, 'docstrings')}
    assert found == {
        'alpha.py:1': 'alpha\n\nModule text.\n',
        'alpha.py:5': 'alpha.Thing\n\nA thing.\n',
        'alpha.py:8': 'alpha.Thing.method\n\nDoes   it.\n\n    indented\nbase\n',
        'encodings/cp1.py:1': 'encodings.cp1\n\nTable.\n',
        'latin.py:2': 'latin\n\ncaf\xe9\n',
        'pkg/__init__.py:1': 'pkg\n\nPackage.\n',
    }
    assert stdlib.manifest(tmp_path / 'data')['dropped']['docstrings'] == {
        'duplicate docstring': 1, 'empty docstring': 1, 'test suite: repetitive tables of cases': 1,
        'unparsable file': 1, 'unreadable file': 1}


def test_source_leaves_out_tests_tables_and_foreign_code(library, tmp_path):
    builder = stdlib.prepare(tmp_path / 'data')
    found = rows(builder, 'source')
    assert [row['origin'] for row in found] == ['alpha.py', 'broken.py', 'latin.py',
                                                'pkg/__init__.py', 'pkg/sub.py']
    assert found[0]['text'] == MODULE
    assert found[0]['id'] == 'source/alpha.py'
    assert found[0]['license'] == 'PSF-2.0'
    assert found[0]['source'] == 'python-source'
    assert stdlib.manifest(tmp_path / 'data')['dropped']['source'] == {
        'generated: code pages are tables of numbers': 1, 'unreadable file': 1,
        'test suite: repetitive tables of cases': 1}


def test_two_builds_have_one_hash_and_another_text_another(library, tmp_path):
    for name in 'ab':
        stdlib.prepare(tmp_path / name)
    a, b = (stdlib.manifest(tmp_path / name) for name in 'ab')
    assert a['splits'] == b['splits']
    (library / 'alpha.py').write_text(MODULE.replace('bare', 'bear'))
    stdlib.prepare(tmp_path / 'c')
    c = stdlib.manifest(tmp_path / 'c')
    assert c['splits']['source']['sha256'] != a['splits']['source']['sha256']
    assert c['splits']['docstrings'] == a['splits']['docstrings']


def test_the_real_library_has_three_splits_of_plausible_size(real):
    folder, builder = real
    splits = stdlib.manifest(folder)['splits']
    assert set(splits) == set(builder.info.splits) == set(stdlib.SPLITS)
    for name, split in splits.items():
        assert split['documents'] == builder.info.splits[name].num_examples
    assert splits['docstrings']['documents'] > 5000
    assert splits['topics']['documents'] > 50
    assert 10e6 < sum(split['bytes'] for split in splits.values()) < 30e6
    docstrings = rows(builder, 'docstrings')
    texts = [row['text'] for row in docstrings]
    dumps = [text for text in texts if text.startswith('json.dumps\n\nSerialize ')]
    assert len(dumps) == 1
    assert len({row['id'] for row in docstrings}) == len(docstrings)
    assert not any('site-packages' in row['origin'] for row in rows(builder, 'source'))


def test_the_version_is_that_of_python(real):
    folder, builder = real
    assert str(builder.version) == '.'.join(map(str, sys.version_info[:3]))
    assert stdlib.manifest(folder)['python'] == sys.version


def test_a_second_call_finds_the_dataset(library, tmp_path, monkeypatch):
    stdlib.prepare(tmp_path / 'data')
    monkeypatch.setattr(stdlib, '_build', lambda partial: pytest.fail('built again'))
    assert len(rows(stdlib.prepare(tmp_path / 'data'), 'source')) == 5


@pytest.mark.parametrize('harm', ['flip a byte', 'remove a file', 'add a file'])
def test_a_damaged_dataset_is_refused(library, tmp_path, harm):
    stdlib.prepare(tmp_path / 'data')
    record = next((tmp_path / 'data').rglob('*source.array_record*'))
    if harm == 'flip a byte':
        data = bytearray(record.read_bytes())
        data[100] ^= 1
        record.write_bytes(data)
    elif harm == 'remove a file':
        record.unlink()
    else:
        (record.parent / 'more').write_text('')
    with pytest.raises(InputError, match='damaged.*differ from its manifest.*delete the folder'):
        stdlib.prepare(tmp_path / 'data')


def test_a_folder_without_manifest_is_refused(library, tmp_path):
    stdlib.prepare(tmp_path / 'data')
    next((tmp_path / 'data').rglob('manifest.json')).unlink()
    with pytest.raises(InputError, match='no readable manifest'):
        stdlib.prepare(tmp_path / 'data')


KILLED = '''
import os, signal, sys
from pathlib import Path
from jaxllm.data import stdlib
root, data, where = sys.argv[1:]
stdlib.library_root = lambda: Path(root)
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
def half(split, dropped, documents=stdlib.documents):
    found = documents(split, dropped)
    yield next(found)
    if split == 'source':
        die()
    yield from found
if where == 'in a split':
    stdlib.documents = half
elif where == 'before the manifest':
    stdlib._file_hashes = die
elif where == 'before the rename':
    rename = os.rename
    stdlib.os.rename = lambda a, b: (
        die() if Path(a, stdlib.MANIFEST).exists() else rename(a, b))
stdlib.prepare(data)
'''


@pytest.mark.parametrize('where', ['in a split', 'before the manifest', 'before the rename'])
def test_a_killed_build_leaves_nothing_that_looks_complete(library, tmp_path, where):
    data = tmp_path / 'data'
    done = subprocess.run([sys.executable, '-c', KILLED, library, data, where],
                          capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (data / stdlib.NAME / stdlib.VERSION).exists()
    assert len(list(data.glob('.*'))) == 1  # the abandoned folder
    assert len(rows(stdlib.prepare(data), 'source')) == 5
    assert os.listdir(data) == [stdlib.NAME]


def test_a_build_that_runs_elsewhere_is_left_alone(library, tmp_path):
    data = tmp_path / 'data'
    running = data / f'{stdlib._partial_prefix(os.getppid())}x'
    running.mkdir(parents=True)
    stdlib.prepare(data)
    assert running.exists()


def test_of_two_builds_at_once_the_first_stays(library, tmp_path, monkeypatch):
    data, build = tmp_path / 'data', stdlib._build

    def overtaken(partial):
        monkeypatch.setattr(stdlib, '_build', build)
        stdlib.prepare(data)
        build(partial)

    monkeypatch.setattr(stdlib, '_build', overtaken)
    assert len(rows(stdlib.prepare(data), 'source')) == 5
    assert os.listdir(data) == [stdlib.NAME]


def test_tensorflow_is_never_imported(library, tmp_path):
    """Neither while building nor while reading, although it could be imported."""
    stub = tmp_path / 'path' / 'tensorflow'
    stub.mkdir(parents=True)
    (stub / '__init__.py').write_text('raise SystemExit("tensorflow was imported")\n')
    code = f'''
import sys
from pathlib import Path
from jaxllm.data import records, stdlib
stdlib.library_root = lambda: Path({str(library)!r})
spec = records.SourceSpec('py', 'python:stdlib', split='source')
assert len(list(records.read_source(spec, records.Rejects()))) == 5
assert 'tensorflow' not in sys.modules
'''
    path = os.pathsep.join([str(stub.parent), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': path})
    assert done.returncode == 0, done.stderr


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('JAXLLM_CACHE', str(tmp_path / 'here'))
    assert cache_dir() == tmp_path / 'here'
    monkeypatch.delenv('JAXLLM_CACHE')
    assert str(cache_dir()).endswith('.cache/jaxllm')


def test_a_prepared_dataset_can_be_moved(library, tmp_path):
    stdlib.prepare(tmp_path / 'data')
    shutil.move(tmp_path / 'data', tmp_path / 'moved')
    assert len(rows(stdlib.prepare(tmp_path / 'moved'), 'source')) == 5
    text = json.dumps(stdlib.manifest(tmp_path / 'moved'))
    assert str(tmp_path) not in text
