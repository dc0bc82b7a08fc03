"""Runs one reward function for `reward_process`, in a process that `reward_watch` starts.

Its stdin brings requests, its stdout takes replies; both are hidden from the function.
"""

import dataclasses
import importlib
import inspect
import json
import math
import numbers
import os
import pickle
import struct
import traceback
import typing

import numpy as np

from jaxllm.config import section
from jaxllm.errors import InputError


def load(where, path, settings):
    """records -> whatever the function returns, with its settings bound.

    The function is f(records), f(records, *, name=..., ...), or f(records, settings) where
    `settings` is annotated with a frozen dataclass, which may refuse values.

    Args: where: 'config.rewards.name', for messages. path: dotted. settings: a dict.
    Raises InputError: no such function, or settings that it does not take.
    """
    function = _find(path)
    try:
        parameters = list(inspect.signature(function).parameters.values())
        hints = typing.get_type_hints(function)
    except (TypeError, ValueError, NameError) as error:
        raise InputError(f'its arguments cannot be read ({error})') from error
    kind = hints.get(parameters[1].name) if len(parameters) > 1 else None
    if dataclasses.is_dataclass(kind):
        bound = (section(kind, settings, f'{where.removeprefix("config.")}.settings'),)
        return lambda records: function(records, *bound)
    try:
        inspect.signature(function).bind([], **settings)
    except TypeError as error:
        raise InputError(f'{error}; it takes {_listed(parameters[1:]) or "no settings"}, '
                         f'config has {sorted(settings) or "none"}') from error
    return lambda records: function(records, **settings)


def _listed(parameters):
    return ', '.join(map(str, parameters))


def _find(path):
    module, _, name = path.rpartition('.')
    if not module:
        raise InputError("expected a dotted path, such as 'my_rewards.score'")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + '.')):
            raise InputError(f'there is no module {error.name!r}; it must be installed, or be in '
                             f'the folder of the command or on PYTHONPATH') from error
        raise InputError(f'module {module!r} cannot be imported: {error}') from error
    except Exception as error:
        raise InputError(f'module {module!r} cannot be imported: {_told(error)}') from error
    function = getattr(found, name, None)
    if not callable(function):
        names = sorted(key for key, value in vars(found).items()
                       if callable(value) and not key.startswith('_'))
        raise InputError(f'module {module!r} has no function {name!r}; it has '
                         f'{", ".join(names) or "none"}')
    return function


def _told(error):
    """'ValueError: text (file.py, line 3)'"""
    text = f'{type(error).__name__}: {error}'[:1000]
    frames = traceback.extract_tb(error.__traceback__)
    return f'{text} ({frames[-1].filename}, line {frames[-1].lineno})' if frames else text


def score(function, records):
    """{'results': [[value, reason]], 'error': why there are none}"""
    try:
        returned = function(records)
        values = returned if isinstance(returned, (list, tuple)) else np.asarray(returned)
        if not isinstance(values, (list, tuple)) and not values.ndim:
            return {'results': [], 'error': f'it returned {returned!r:.100}; expected a list with '
                                            'one number per record'}
    except (Exception, SystemExit) as error:
        return {'results': [], 'error': f'it raised {_told(error)}'}
    if len(values) != len(records):
        return {'results': [], 'error': f'it returned {len(values)} rewards for {len(records)} '
                                        f'record{"s"[:len(records) > 1]}'}
    return {'results': [_number(value) for value in values], 'error': ''}


def _number(value):
    """(float, '') or (0.0, what is wrong)"""
    if getattr(value, 'shape', None) == () and not isinstance(value, (np.generic, numbers.Number)):
        value = np.asarray(value)[()]
    if not isinstance(value, (numbers.Real, np.bool_)):
        return 0.0, f'it returned {value!r:.100} of type {type(value).__name__}, which is no number'
    try:
        with np.errstate(over='ignore'):
            number = float(np.float32(float(value)))
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return 0.0, f'it returned {value!r:.100}, which is not finite in float32'
    return number, ''


def main():
    requests, replies, function = os.fdopen(os.dup(0), 'rb'), os.dup(1), None
    with open(os.devnull, 'rb') as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    while header := requests.read(8):
        size, = struct.unpack('<Q', header)
        kind, *args = pickle.loads(requests.read(size))
        if kind == 'open':
            try:
                function, reply = load(*args), {'error': ''}
            except InputError as error:
                reply = {'error': str(error)}
            except Exception as error:
                reply = {'error': f'its settings {args[-1]} raise {_told(error)}'}
        else:
            reply = score(function, *args)
        line = json.dumps(reply).encode() + b'\n'
        while line:
            line = line[os.write(replies, line):]
