"""Config files: loading, overriding and checking them, fingerprints, run directories.

A config file has `get_config(arg='') -> ml_collections.ConfigDict`; `FILE.py:ARG` passes `ARG`, a
short typed string for knobs that change several settings at once. The config.json of a run is a
config file, too: all its settings, with references between them resolved to values. Only this
module, `stages`, `main` and the experiment files see a ConfigDict; everything else takes plain
values.
"""

import contextlib
import difflib
import fcntl
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import shutil

import ml_collections
from absl import flags
from ml_collections import config_flags

from jaxllm.errors import InputError

# Settings that may differ when a run is resumed: they do not change its numbers, or are the way
# past a reward function that fails.
_FREE_ON_RESUME = re.compile(
    r'(steps\.[^.]+\.)?((sharding|checkpoint|metrics|alarms)\.|train\.profile_step'
    r'|rewards\.[^.]+\.(on_error|timeout_s|check_repeat)$)')


def parse_arg(arg, **defaults):
    """Parses 'smoke,size=125m,seq_len=2048' into a ConfigDict with the types of `defaults`.

    A name alone sets a bool to True. Raises InputError for an unknown name or a wrong type.
    """
    values = dict(defaults)
    for item in filter(None, arg.split(',')):
        name, has_value, text = item.partition('=')
        if name not in defaults:
            raise InputError(f'config argument {name!r} is unknown; this file takes '
                             f'{", ".join(f"{k}={v}" for k, v in defaults.items())}')
        kind = type(defaults[name])
        if kind is bool:
            if text.lower() not in ('', 'true', 'false', '1', '0'):
                raise InputError(f'config argument {item!r}: expected true or false')
            values[name] = text.lower() in ('', 'true', '1')
            continue
        try:
            if not has_value:
                raise ValueError(f'no value; write {name}=VALUE')
            values[name] = kind(text)
        except ValueError as error:
            raise InputError(f'config argument {item!r}: expected {kind.__name__} ({error})'
                             ) from error
    return ml_collections.ConfigDict(values)


def load(argv):
    """The ConfigDict of `--config=FILE[:arg] --config.key=value ...`, locked.

    Raises:
      InputError: no such file, an unknown key (with the nearest known one), a value of another
        type, an argument that is no override.
    """
    files = [arg.removeprefix('--config=') for arg in argv if arg.startswith('--config=')]
    if not files:
        raise InputError('no config; use --config=FILE.py, e.g. --config=experiments/pretrain.py')
    rest = [arg for arg in argv if not arg.startswith('--config=')]
    return override(load_file(files[-1]), rest).lock()


def override(config, args):
    """`config` with `--config.key=value` of each of `args`. Raises InputError as `load`."""
    known = flatten(config)
    for arg in args:
        key, has_value, text = arg.removeprefix('--config.').partition('=')
        if not arg.startswith('--config.'):
            raise InputError(f'{arg!r} is unknown; overrides look like '
                             '--config.train.num_steps=100')
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4) or [sorted(known)[0]]
            raise InputError(f'--config.{key} is unknown; did you mean --config.{near[0]}?')
        if not has_value:
            raise InputError(f'{arg} has no value; write {arg}=VALUE')
        config = _override(config, arg, known[key], text)
    return config


def load_file(file):
    """The ConfigDict of FILE.py[:arg] or of a run's config.json, without overrides.

    Raises InputError: no such file, or no config in it.
    """
    path, _, arg = file.partition(':')
    if not path.endswith('.json'):
        module = load_module(path)
        if not hasattr(module, 'get_config'):
            raise InputError(f'{path} has no get_config(arg), which returns the config')
        return module.get_config(arg)
    _check_exists(path)
    if arg:
        raise InputError(f'{file}: a resolved config takes no argument; use --config={path} and '
                         '--config.key=value')
    try:
        values = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise InputError(f'{path} is no valid JSON ({error}); expected the config.json of a run'
                         ) from error
    if not isinstance(values, dict):
        raise InputError(f'{path} holds no config; expected the config.json of a run')
    return from_dict(values)


def load_module(path):
    """The Python file of a config as a module, run anew. Raises InputError: no such file."""
    _check_exists(path)
    if not path.endswith('.py'):
        raise InputError(f'{path} is no Python file; a config file defines get_config(arg)')
    spec = importlib.util.spec_from_file_location('jaxllm_config_file', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_exists(path):
    if not os.path.isfile(path):
        raise InputError(f'{path} does not exist; expected a config file such as '
                         'experiments/pretrain.py')


def from_dict(values):
    """A ConfigDict of resolved values; lists become tuples, as overrides know them."""
    return ml_collections.ConfigDict(_with_tuples(values))


def _with_tuples(value):
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def set_values(config, values, where):
    """Sets leaves of a config in place; what refers to them follows.

    Args:
      values: {'section.key': value}; a dict as value sets several leaves of a section.
      where: who sets them, for messages.

    Raises:
      InputError: an unknown key (with the nearest known one), or a value of another type.
    """
    known = flatten(config)
    with config.unlocked():
        for key, value in flatten(values).items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.4) or [sorted(known)[0]]
                raise InputError(f'{where} sets {key}, which is unknown; did you mean {near[0]}?')
            *sections, leaf = key.split('.')
            section = config
            for name in sections:
                section = section[name]
            section[leaf] = _of_type(value, known[key], f'{where} sets {key}={value!r}')


def _of_type(value, present, what):
    """`value` as the type of the `present` one: an int may be a float, a list a tuple."""
    kind = type(present)
    if kind is float and type(value) is int or kind is tuple and type(value) is list:
        return kind(value)
    if type(value) is not kind:
        raise InputError(f'{what}: expected {kind.__name__}, such as the present {present!r}')
    return value


def _override(config, arg, present, text):
    """`config` with one override of the type of the `present` value."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=['', arg])
    try:
        values(['', arg])
    except (flags.Error, TypeError, ValueError) as error:
        raise InputError(f'{arg}: expected {type(present).__name__}, such as the present '
                         f'{present!r}, got {text!r}') from error
    return values['config'].value


def flatten(config, prefix=''):
    """{'section.key': value} of a ConfigDict or nested dict."""
    out = {}
    for key, value in config.items():
        if isinstance(value, (dict, ml_collections.ConfigDict)):
            out |= flatten(value, f'{prefix}{key}.')
        else:
            out[prefix + key] = value
    return out


def to_json(config):
    """The resolved config as JSON text, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def to_plain(config):
    """The resolved config as what its JSON says: dicts, lists and scalars."""
    return json.loads(to_json(config))


def fingerprint(config):
    """A hash of all of the resolved config that changes the numbers of a run."""
    return fingerprint_of(to_plain(config))


def fingerprint_of(values):
    """The same of a resolved config as nested dicts."""
    kept = {key: value for key, value in flatten(values).items() if not _free(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _free(key):
    """Whether a setting, also one of a step of a chain, may differ when a run is resumed."""
    return _FREE_ON_RESUME.match(key) is not None


def cache_dir():
    """Where datasets and compiled programs are kept between runs: $JAXLLM_CACHE or ~/.cache."""
    return pathlib.Path(os.environ.get('JAXLLM_CACHE', '~/.cache/jaxllm')).expanduser()


def section(kind, config_section, name):
    """A frozen dataclass `kind` of a config section; unknown or missing keys are an InputError."""
    values = {key: (tuple(value) if isinstance(value, (list, tuple)) else value)
              for key, value in config_section.items()}
    try:
        return kind(**values)
    except TypeError as error:
        text = str(error).partition('__init__() ')[2] or str(error)
        raise InputError(f'config.{name}: {text}; its keys are '
                         f'{", ".join(kind.__dataclass_fields__)}') from error


def check_keys(config, keys):
    """Raises InputError unless the top-level keys of `config` are exactly `keys`."""
    for key in sorted(set(config) ^ set(keys)):
        what = 'is missing' if key in keys else 'is read by nobody'
        raise InputError(f'config.{key} {what}; the keys are {", ".join(keys)}')


def claim_workdir(workdir, config):
    """Writes config.json to a new run directory, or checks that the run there has this config.

    What an attempt of another config left behind that never came to training is removed.

    Raises:
      InputError: the directory holds a run of another config, or something that is no run.
    """
    file = workdir / 'config.json'
    if file.exists():
        old, new = flatten(json.loads(file.read_text())), flatten(to_plain(config))
        changed = [f'{key} {old.get(key, "absent")!r} -> {new.get(key, "absent")!r}'
                   for key in sorted(old.keys() | new.keys())
                   if old.get(key, '') != new.get(key, '') and not _free(key)]
        if changed and (workdir / 'lineage.json').exists():
            raise InputError(f'{workdir} holds a run of another config ({"; ".join(changed[:4])}'
                             f'{"; ..." if len(changed) > 4 else ""}); use a new --workdir, or '
                             'the old config to go on with it')
        if changed:
            # Neither is finished: a stage writes lineage.json when its own work begins or ends.
            for left in ('tokenizer', 'data'):
                shutil.rmtree(workdir / left, ignore_errors=True)
    elif any(path.name != '.lock' for path in workdir.iterdir()):
        raise InputError(f'{workdir} is not empty and holds no run (no config.json); use a new '
                         '--workdir')
    write_atomic(file, to_json(config))


@contextlib.contextmanager
def one_builder(path):
    """A lock across the processes of a machine on what is built at `path`: the first builds it, the
    others find it built. The kernel frees the lock of a dead process. On machines that share no
    disk, each builds its own copy, the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f'.{path.name}.lock', 'w', encoding='utf-8') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomic(path, text):
    """Writes a text file so that it is there whole or not at all, also after a loss of power."""
    partial = path.with_name(path.name + '.partial')
    with open(partial, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
