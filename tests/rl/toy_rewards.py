"""Reward functions, good and bad, that tests name by path: each runs in a process of its own."""

import dataclasses
import os
import re
import signal
import sys
import time

import numpy as np

from jaxllm.errors import InputError

NOT_CALLABLE = 3
_calls = 0


def words(records):
    """The good one."""
    return [len(record.response.split()) for record in records]


def scaled(records, *, factor, offset=0.0):
    return [record.tokens * factor + offset for record in records]


@dataclasses.dataclass(frozen=True)
class Bonus:
    amount: float
    names: tuple = ()

    def __post_init__(self):
        if self.amount < 0:
            raise InputError(f'bonus amount={self.amount}: expected a number from 0')


def bonus(records, settings: Bonus):
    return [settings.amount * (record.response in settings.names) for record in records]


def obey(records, *, good=0.7):
    """Does to a batch what the first record that is not 'ok' says."""
    out = []
    for record in records:
        match record.response:
            case 'raise':
                raise KeyError('no such city')
            case 'exit':
                sys.exit(3)
            case 'die':
                os.kill(os.getpid(), signal.SIGSEGV)
            case 'sleep':
                time.sleep(60)
            case 'regex':
                re.match('(a+)+$', 'a' * 40 + 'b')     # holds the interpreter's lock
            case 'short':
                return out
            case 'long':
                return [0.0] * (len(records) + 1)
            case 'none':
                return None
            case 'column':
                return np.ones((len(records), 1))
            case 'print':
                print('noise on stdout')
                os.write(1, b'more noise\n')
            case 'stdin':
                out.append(float(len(sys.stdin.read()) + len(os.read(0, 9))))
                continue
        out.append({'nan': float('nan'), 'inf': float('-inf'), 'huge': 1e39, 'text': '0.7',
                    'nothing': None, 'int': 3, 'bool': True, 'big': 10 ** 400,
                    'numpy': np.float64(0.25), 'integer': np.int8(-2),
                    'array': np.array(0.5)}.get(record.response, good))
    return out


def as_array(records):
    return np.arange(len(records)) * 0 + 2


def by_order(records):
    return [float(i) for i in range(len(records))]


def counts_calls(records):
    global _calls
    _calls += 1
    return [float(_calls)] * len(records)


def process(records):
    return [float(os.getpid())] * len(records)
