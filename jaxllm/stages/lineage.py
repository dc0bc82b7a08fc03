"""Where a run comes from: parents with fingerprints, code, packages, Python, data."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
from typing import NamedTuple

from jaxllm.config import fingerprint, write_atomic
from jaxllm.train.progress import stage as say

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets',
             'ml_collections', 'chex', 'grain', 'tokenizers', 'numpy')


DESCENDANTS = 'descendants.jsonl'  # of a run: what was made from it


class Parent(NamedTuple):
    """What a run was made from: a run directory or a model file, and which state of it."""
    run: pathlib.Path
    step: int          # of the checkpoint; 0 for a model file
    fingerprint: str   # of the run's settings, or the sha256 of a model file's content


def write_lineage(workdir, config, *, roles=(), **facts):
    """Writes lineage.json when a run starts, and adds a session to it when it goes on.

    Args:
      roles: {role: Parent} of the artefacts this one is made from, such as 'init_from'.
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
        parents = {role: parent._asdict() | {'run': str(parent.run)}
                   for role, parent in dict(roles).items()}
        lineage = {'stage': config.stage, 'fingerprint': fingerprint(config), 'parents': parents,
                   **facts, **session, 'sessions': [session]}
        _tell_parents(workdir, dict(roles))
    write_atomic(workdir / 'lineage.json', json.dumps(lineage, indent=1))


def makers(paths):
    """{role: Parent} of those of {role: path or ''} that lie in the directory of a run, which has
    made them. A run that has made several stands once."""
    found = {}
    for role, path in paths.items():
        path = pathlib.Path(path).resolve() if path else None
        homes = [home for home in (path, *path.parents)
                 if (home / 'lineage.json').exists()] if path and path.exists() else []
        if homes and homes[0] not in {parent.run for parent in found.values()}:
            found[role] = Parent(homes[0], 0, read_lineage(homes[0])['fingerprint'])
    return found


def _tell_parents(workdir, roles):
    """Adds this run to the list of descendants of each parent run that can be written to."""
    for role, parent in roles.items():
        if (pathlib.Path(parent.run) / 'lineage.json').exists():
            line = json.dumps({'role': role, 'run': str(pathlib.Path(workdir).resolve())}) + '\n'
            try:
                with open(pathlib.Path(parent.run) / DESCENDANTS, 'a', encoding='utf-8') as file:
                    file.write(line)
            except OSError as error:
                say(f'{parent.run} cannot be told of its descendant: {error}')


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
