"""Where a run comes from: parents with fingerprints, code, packages, Python, data."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess

from jaxllm.config import fingerprint, flatten, to_json, write_atomic
from jaxllm.errors import InputError

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets',
             'ml_collections', 'chex', 'grain', 'tokenizers', 'numpy')

# Settings of a model that change how it is computed and not what.
_HOW_NOT_WHAT = ('attention.impl', 'attention.chunk_size', 'remat', 'dtype')


def parent_of(config):
    """The run directory that `config.init_from` names, or None.

    Raises:
      InputError: it is no run, it has no checkpoint, or its model computes something else.
    """
    if not config.init_from:
        return None
    parent = pathlib.Path(config.init_from).resolve()
    if not (parent / 'lineage.json').exists():
        raise InputError(f'config.init_from={config.init_from} is no run directory (no '
                         'lineage.json there); give the --workdir of an earlier run')
    if not any(path.name.isdigit() for path in (parent / 'checkpoints').glob('*')):
        raise InputError(f'config.init_from={config.init_from} has no checkpoint; let that run '
                         'save one first')
    theirs = flatten(json.loads((parent / 'config.json').read_text())['model'])
    ours = flatten(json.loads(to_json(config))['model'])
    other = [f'{key} {theirs.get(key)!r} there, {ours[key]!r} here' for key in ours
             if theirs.get(key) != ours[key] and key not in _HOW_NOT_WHAT]
    if other:
        raise InputError(f'the model of config.init_from={config.init_from} is another one '
                         f'({"; ".join(other[:4])}); use the same config.model')
    return parent


def write_lineage(workdir, config, *, roles=(), **facts):
    """Writes lineage.json when a run starts, and adds a session to it when it goes on.

    Args:
      roles: {role: (run directory, step)} of the artefacts this one is made from, such as
        'init_from'.
      facts: JSON that identifies what was made: tokenizer and data fingerprints, sizes.
    """
    session = {'git': _git(), 'python': platform.python_version(),
               'platform': platform.platform(),
               'packages': {name: importlib.metadata.version(name) for name in _PACKAGES}}
    if (workdir / 'lineage.json').exists():
        lineage = read_lineage(workdir)
        if lineage['sessions'][-1] != session:
            lineage['sessions'].append(session)
    else:
        parents = {role: {'run': str(run), 'step': step,
                          'fingerprint': read_lineage(run)['fingerprint']}
                   for role, (run, step) in dict(roles).items()}
        lineage = {'stage': config.stage, 'fingerprint': fingerprint(config), 'parents': parents,
                   **facts, **session, 'sessions': [session]}
    write_atomic(workdir / 'lineage.json', json.dumps(lineage, indent=1))


def read_lineage(run):
    return json.loads((pathlib.Path(run) / 'lineage.json').read_text())


def _git():
    """Revision of the code, '+' behind it where files were changed; '' outside a repository."""
    try:
        folder = pathlib.Path(__file__).parent
        revision = subprocess.run(['git', 'describe', '--always', '--dirty=+'], cwd=folder,
                                  capture_output=True, text=True, timeout=10, check=True)
        return revision.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''
