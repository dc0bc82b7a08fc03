"""Data flows one way: a module imports only what stands left of it."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'jaxllm'
ORDER = ('errors', 'rng', 'config', 'sweep', 'sharding', 'world', 'data', 'models', 'objectives',
         'train', 'decode', 'rag', 'rl', 'feedback', 'evals', 'report', 'stages',
         'huge_pages', 'main')
FILES = sorted(PACKAGE.rglob('*.py'))
# Who may see a ConfigDict; everything else takes plain values.
WITH_CONFIGS = ('config', 'stages', 'main')


def layer(path):
    """'train' of jaxllm/train/loop.py, 'config' of jaxllm/config.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported(tree):
    """(line, dotted name) of every import of this package, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'line {node.lineno}: a relative import'
            names = ([f'jaxllm.{alias.name}' for alias in node.names] if node.module == 'jaxllm'
                     else [node.module])
        else:
            continue
        for name in names:
            if name.split('.')[0] == 'jaxllm':
                yield node.lineno, name


def problems(path, source):
    """What breaks the rules in the source of one file."""
    tree, own, found = ast.parse(source), layer(path), []
    if own != '__init__' and own not in ORDER:
        return [f'{path}: {own} has no place in the order of packages']
    for line, name in imported(tree):
        other = (name.split('.') + [''])[1]
        if other == own:
            continue
        if own == '__init__' or other not in ORDER or ORDER.index(other) > ORDER.index(own):
            found.append(f'{path}:{line}: {own} imports {name}')
    if own not in WITH_CONFIGS:
        found += [f'{path}:{node.lineno}: a ConfigDict in {own}' for node in ast.walk(tree)
                  if any('ml_collections' in str(getattr(node, field, ''))
                         or getattr(node, field, '') == 'ConfigDict'
                         for field in ('module', 'name', 'attr', 'id'))]
    return found


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_left(path):
    assert problems(path, path.read_text(encoding='utf-8')) == []


@pytest.mark.parametrize('file, source', [
    ('data/x.py', 'from jaxllm.train.loop import train'),
    ('data/x.py', 'from jaxllm import decode'),
    ('data/x.py', 'def f():\n    import jaxllm.stages.run'),
    ('config.py', 'from jaxllm.sharding import make_mesh'),
    ('errors.py', 'import jaxllm'),
    ('report/x.py', 'import jaxllm.stages'),
    ('helpers.py', 'import os'),
    ('data/x.py', 'import ml_collections'),
    ('train/x.py', 'from ml_collections import ConfigDict'),
    ('train/x.py', 'import ml_collections.config_dict as c'),
])
def test_what_is_forbidden_is_found(file, source):
    assert len(problems(PACKAGE / file, source)) >= 1


@pytest.mark.parametrize('file, source', [
    ('data/x.py', 'from jaxllm.data import store\nfrom jaxllm import errors, config'),
    ('stages/x.py', 'import ml_collections\nfrom jaxllm.report.run import write_report'),
    ('errors.py', 'import os'),
    ('main.py', 'from jaxllm.stages import run'),
])
def test_what_is_allowed_is_not_found(file, source):
    assert problems(PACKAGE / file, source) == []


def test_the_tests_see_the_package():
    assert {'config.py', 'main.py', 'loop.py', 'run.py'} <= {path.name for path in FILES}


def test_a_command_loads_nothing_that_it_does_not_need():
    """Torch takes seconds, in every process; it may be installed and is used by nobody here."""
    pytest.importorskip('torch')
    stages = [f'jaxllm.stages.{path.stem}' for path in sorted((PACKAGE / 'stages').glob('*.py'))]
    code = (f'import importlib, sys\nfor name in {stages}: importlib.import_module(name)\n'
            'print([name for name in ("torch", "transformers", "tensorflow") '
            'if name in sys.modules])')
    out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                         check=True, env=os.environ | {'PYTHONPATH': str(ROOT)})
    assert out.stdout.strip() == '[]'
