"""A TFDS dataset of text that every Python installation has: its own standard library."""

import ast
import contextlib
import hashlib
import inspect
import io
import json
import os
import platform
import shutil
import socket
import sys
import sysconfig
import tempfile
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from jaxllm.errors import InputError

SPLITS = ('docstrings', 'topics', 'source')
LICENSE = 'PSF-2.0'
NAME = 'python_stdlib'
VERSION = '.'.join(map(str, sys.version_info[:3]))
MANIFEST = 'manifest.json'

# Not part of the standard library, or no text: not even counted.
FOREIGN_FOLDERS = {'site-packages', 'dist-packages', '__pycache__'}
# What is left out of every split, by a folder in its path, and why.
TESTS = 'test suite: repetitive tables of cases'
EXCLUDED_FOLDERS = {
    'test': TESTS, 'tests': TESTS, 'idle_test': TESTS,
    'lib2to3': 'removed in 3.13: grammar and fixers of Python 2',
    'pydoc_data': 'generated: its text is the split topics',
}
# What is left out of the split source only: these modules have few docstrings, all harmless.
GENERATED_PREFIXES = {
    'encodings/': 'generated: code pages are tables of numbers',
    'html/entities.py': 'generated: a table of entities',
    '_sysconfigdata': 'generated: build settings of one machine',
    'config-': 'generated: build settings of one machine',
}


class PythonStdlib(tfds.core.GeneratorBasedBuilder):
    """Docstrings, help topics and source of this Python's standard library, sorted by file."""

    VERSION = tfds.core.Version(VERSION)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, license=LICENSE, homepage='https://docs.python.org',
            description='Docstrings, help topics and source files of the standard library of '
                        f'Python {VERSION}.',
            features=tfds.features.FeaturesDict({
                name: tfds.features.Text()
                for name in ('text', 'id', 'source', 'license', 'origin')}),
            disable_shuffling=True)

    def _split_generators(self, dl_manager):
        self.report = {'splits': {}, 'dropped': {}}
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        dropped = Counter()
        found = list(documents(split, dropped))
        self.report['splits'][split] = _digest(text for _, text in found)
        self.report['dropped'][split] = dict(sorted(dropped.items()))
        for i, (origin, text) in enumerate(found):
            yield i, {'text': text, 'id': f'{split}/{origin}', 'source': f'python-{split}',
                      'license': LICENSE, 'origin': origin}


def prepare(data_dir: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """Builds the dataset into `data_dir`, or finds it there and checks it against its manifest.

    The dataset is built in a folder beside and renamed when it is complete, so that a build that
    is killed leaves nothing that looks like a dataset.

    Raises: InputError if the dataset found is damaged.
    """
    data_dir = Path(data_dir).absolute()
    final = data_dir / NAME / VERSION
    if not final.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(data_dir)
        partial = Path(tempfile.mkdtemp(dir=data_dir, prefix=_partial_prefix(os.getpid())))
        try:
            _build(partial)
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(partial / NAME / VERSION, final)
            except OSError:
                if not final.exists():  # else another process was first
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _verify(final)
    return tfds.builder_from_directory(final)


def manifest(data_dir: str | os.PathLike) -> dict:
    """The manifest of a prepared dataset: counts, bytes and hashes per split, what was left out."""
    file = Path(data_dir).absolute() / NAME / VERSION / MANIFEST
    try:
        return json.loads(file.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise InputError(f'no readable manifest {file}: {error}; expected one beside a complete '
                         f'dataset; delete {file.parent} and prepare it again') from error


def library_root() -> Path:
    """Folder of this Python's standard library."""
    return Path(sysconfig.get_paths()['stdlib'])


def documents(split: str, dropped: Counter) -> Iterator[tuple[str, str]]:
    """(origin, text) of one split; `dropped` counts what is left out, by reason."""
    if split == 'topics':
        from pydoc_data import topics
        for name, text in sorted(topics.topics.items()):
            yield f'pydoc_data/topics.py:{name}', text.strip() + '\n'
        return
    root = library_root()
    seen = set()
    for name in stdlib_files(root, split, dropped):
        text = _read_source(root / name, dropped)
        if split == 'source' and text.strip():
            yield name, text
        elif split == 'docstrings':
            yield from _docstrings(name, text, seen, dropped)


def stdlib_files(root: Path, split: str, dropped: Counter) -> list[str]:
    """Sorted relative paths of the .py files that a split is made of."""
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in FOREIGN_FOLDERS]
        for file in files:
            path = PurePosixPath(Path(folder, file).relative_to(root).as_posix())
            if path.suffix != '.py':
                continue
            reason = _excluded(path, split)
            if reason:
                dropped[reason] += 1
            else:
                names.append(str(path))
    return sorted(names)


def _excluded(path: PurePosixPath, split: str) -> str:
    """Why a file is left out of a split, or ''."""
    for part in path.parts[:-1]:
        if part in EXCLUDED_FOLDERS:
            return EXCLUDED_FOLDERS[part]
    if split == 'source':
        for prefix, reason in GENERATED_PREFIXES.items():
            if str(path).startswith(prefix):
                return reason
    return ''


def _read_source(file: Path, dropped: Counter) -> str:
    """Text of a source file in its declared encoding; '' if it has none that works."""
    try:
        with tokenize.open(file) as stream:
            return stream.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        dropped['unreadable file'] += 1
        return ''


def _docstrings(name: str, text: str, seen: set, dropped: Counter) -> Iterator[tuple[str, str]]:
    """(origin, 'qualified.name' + docstring) of every documented thing in a module."""
    module = name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # invalid escapes in strings of old modules
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            dropped['unparsable file'] += 1
            return
    for qualified, node in _documented(tree, module):
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            continue
        docstring = inspect.cleandoc(docstring).strip()
        if not docstring:
            dropped['empty docstring'] += 1
        elif docstring in seen:
            dropped['duplicate docstring'] += 1
        else:
            seen.add(docstring)
            line = node.body[0].lineno
            yield f'{name}:{line}', f'{qualified}\n\n{docstring}\n'


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    """The module, its classes and functions, in the order of the file."""
    named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, (ast.Module, *named)):
        yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*named, ast.If, ast.Try, ast.With)):
            yield from _documented(child, f'{name}.{child.name}' if isinstance(child, named)
                                   else name)


def _build(partial: Path) -> None:
    """Writes dataset and manifest under `partial`."""
    builder = PythonStdlib(data_dir=partial, file_format='array_record')
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    folder = partial / NAME / VERSION
    content = {'name': NAME, 'version': VERSION, 'license': LICENSE, 'python': sys.version,
               'platform': platform.platform(), **builder.report, 'files': _file_hashes(folder)}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + '\n', 'utf-8')


def _digest(texts: Iterable[str]) -> dict:
    """Count, bytes and sha256 of texts whatever their order (each preceded by its length)."""
    raws = sorted(text.encode('utf-8') for text in texts)
    digest = hashlib.sha256()
    for raw in raws:
        digest.update(len(raw).to_bytes(8, 'little') + raw)
    return {'documents': len(raws), 'bytes': sum(map(len, raws)), 'sha256': digest.hexdigest()}


def _verify(folder: Path) -> None:
    """Raises InputError unless every file is as the manifest says."""
    expected = manifest(folder.parent.parent)['files']
    got = _file_hashes(folder)
    wrong = sorted(name for name in expected.keys() | got.keys()
                   if (name in expected) != (name in got) or expected[name] != got[name])
    if wrong:
        raise InputError(f'dataset {folder} is damaged: {wrong[:3]} differ from its manifest; '
                         'delete the folder and prepare it again')


def _file_hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.iterdir()) if file.name != MANIFEST}


def _partial_prefix(pid: int) -> str:
    return f'.{NAME}-{socket.gethostname()}-{pid}-'


def _remove_abandoned(data_dir: Path) -> None:
    """Removes what killed builds of this host left behind; running ones are left alone."""
    start = f'.{NAME}-{socket.gethostname()}-'
    for folder in data_dir.glob(f'{start}*'):
        pid = folder.name.removeprefix(start).split('-')[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
