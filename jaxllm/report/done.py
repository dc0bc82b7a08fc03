"""done.json, the mark of a run that came to its normal end, and what it takes for it to count."""

import hashlib
import json
import pathlib

from jaxllm.config import fingerprint_of, write_atomic
from jaxllm.errors import InputError

FILE = 'done.json'
_INPUTS = ('items_file', 'text', 'tasks')  # settings that name files which a run reads


def write(folder, config, seconds, outputs, inputs):
    """Marks a run as done.

    Args:
      folder: its directory.
      config: resolved, as nested dicts.
      seconds: how long it took.
      outputs: paths in its directory without which it does not count as done.
      inputs: input_hashes(config) from before it read them.

    Raises:
      InputError: one of the outputs is not there.
    """
    lacking = [name for name in outputs if not (folder / name).exists()]
    if lacking:
        raise InputError(f'{folder} has no {", ".join(lacking)} at the end of the run, which '
                         f'{config["stage"]} lists in OUTPUTS; let it write them')
    write_atomic(folder / FILE, json.dumps({
        'stage': config['stage'], 'fingerprint': fingerprint_of(config),
        'seconds': round(seconds, 1), 'outputs': list(outputs), 'inputs': inputs}) + '\n')


def is_done(folder):
    """Whether the run in a directory came to its end, with what it has there now.

    It did not if its config.json or a file that it read says something else by now, or if an output
    is gone. An input file that is gone proves nothing: results may be read on another machine.

    Raises:
      InputError: done.json is damaged.
    """
    mark = read(folder)
    if mark is None or not all((folder / name).exists() for name in mark['outputs']):
        return False
    config = _json(folder / 'config.json')
    if config is None or fingerprint_of(config) != mark['fingerprint']:
        return False
    found = input_hashes(config)
    return all(found.get(key, old) == old for key, old in mark['inputs'].items())


def read(folder):
    """The content of done.json, or None where there is none.

    Raises:
      InputError: it is empty or damaged.
    """
    mark = _json(folder / FILE)
    kinds = {'fingerprint': str, 'seconds': (int, float), 'outputs': list, 'inputs': dict}
    if mark is not None and not all(isinstance(mark.get(key), kind) for key, kind in kinds.items()):
        raise _damaged(folder / FILE, f'is damaged (it needs {", ".join(kinds)})')
    return mark


def remove(folder):
    """Takes the mark away: the run is not done any more."""
    (folder / FILE).unlink(missing_ok=True)


def input_hashes(config):
    """{'items_file': sha256} of the files that the settings of a run name, folders included.

    What is no file (the name of a task, an empty text) is left out.
    """
    found = {}
    for key in _INPUTS:
        value = config[key] if key in config else ''
        names = filter(None, value.split(',')) if isinstance(value, str) else ()
        paths = [path for path in map(pathlib.Path, names) if path.exists()]
        if paths:
            found[key] = _hash_of(paths)
    return found


def _hash_of(paths):
    """sha256 of files, and of the files in folders, by name and content."""
    total = hashlib.sha256()
    for path in paths:
        files = sorted(item for item in path.rglob('*') if item.is_file()) if path.is_dir() else [
            path]
        for file in files:
            with open(file, 'rb') as opened:
                digest = hashlib.file_digest(opened, 'sha256').hexdigest()
            total.update(f'{file.relative_to(path)} {digest}\n'.encode())
    return total.hexdigest()


def _json(path):
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        state = 'damaged' if path.stat().st_size else 'empty'
        raise _damaged(path, f'is {state} ({error})') from error
    if not isinstance(found, dict):
        raise _damaged(path, 'is damaged (it holds no object)')
    return found


def _damaged(path, what):
    return InputError(f'{path} {what}; remove it, and the command that began the run goes on with '
                      'it to its end')
