"""Where a run comes from: parents with fingerprints, code, packages, Python, data."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess

from jaxllm.config import fingerprint, write_atomic
from jaxllm.errors import InputError

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets',
             'ml_collections', 'chex', 'grain', 'tokenizers', 'numpy')


def parent_of(config):
    """The run directory that `config.init_from` names, or None.

    Raises:
      InputError: it is no run, or it has no checkpoint.
    """
    if not config.init_from:
        return None
    parent = pathlib.Path(config.init_from).resolve()
    if not (parent / 'lineage.json').exists():
        raise InputError(f'config.init_from={config.init_from} is no run directory (no '
                         'lineage.json there); give the --workdir of an earlier run')
    return parent


def write_lineage(workdir, config, *, tokenizer, data, num_params, roles):
    """Writes lineage.json. `roles` maps a role ('init_from', 'ref', ...) to a run directory."""
    parents = {role: {'run': str(run), 'fingerprint': read_lineage(run)['fingerprint']}
               for role, run in roles.items() if run}
    write_atomic(workdir / 'lineage.json', json.dumps({
        'stage': config.stage, 'fingerprint': fingerprint(config), 'parents': parents,
        'tokenizer': tokenizer, 'data': data, 'num_params': num_params,
        'git': _git(), 'python': platform.python_version(), 'platform': platform.platform(),
        'packages': {name: importlib.metadata.version(name) for name in _PACKAGES}}, indent=1))


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
