"""A verifier of Python programs by unit tests, in the sandbox."""

import concurrent.futures
import dataclasses
import json
import re
import secrets

from jaxllm.errors import InputError
from jaxllm.rl import sandbox
from jaxllm.rl.verifiers.fields import field_of

_FENCED = re.compile(r'```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)', re.DOTALL | re.IGNORECASE)
# Runs the program and then each test in its namespace; a line with the secret word says that one
# has passed. What the program prints goes nowhere. Leaving early leaves the tests unpassed.
_HARNESS = '''
import json, os
with open('task.json', encoding='utf-8') as file:
    task = json.load(file)
os.remove('task.json')
def run():
    word, told = task.pop('word'), os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    names = {'__name__': 'program'}
    exec(compile(task['program'], 'program.py', 'exec'), names)
    for number, test in enumerate(task['tests']):
        try:
            exec(compile(test, f'test_{number}.py', 'exec'), names)
        except Exception:
            continue
        os.write(told, f'{word} {number}\\n'.encode())
run()
'''


@dataclasses.dataclass(frozen=True)
class UnitTests:
    """field: of the record, with the tests: a list of statements such as 'assert f(2) == 4', or one
    text, which is one test. setup: field with code to run before the program, '' = none.
    share: reward the share of passed tests; else 1 for all of them and 0 for fewer.
    timeout_s, memory_mb, processes: of one program with all its tests, see sandbox.Limits.
    parallel: programs at once.
    """
    field: str = 'tests'
    setup: str = ''
    share: bool = False
    timeout_s: float = 5.0
    memory_mb: int = 512
    processes: int = 16
    parallel: int = 2

    def __post_init__(self):
        self.limits()
        if self.parallel < 1:
            raise InputError(f'unit_tests parallel={self.parallel}: expected at least 1')

    def limits(self):
        return sandbox.Limits(timeout_s=self.timeout_s, memory_mb=self.memory_mb,
                              processes=self.processes)


def unit_tests(records, settings: UnitTests):
    """1 where the program of a response passes its tests (or the share of them), else 0.

    The program is the last ``` block, or the whole response without one. A test passes if it
    raises nothing. Tests run in order in one process: one which ends it or loops fails those
    behind it as well. A program that looks for its tests can cheat, with values that are equal to
    anything or by reading the interpreter's frames; see `jaxllm.rl.sandbox` on what is isolated.
    """
    with concurrent.futures.ThreadPoolExecutor(settings.parallel) as pool:
        return list(pool.map(lambda record: _passes(record, settings), records))


def program_of(response):
    """The last fenced block of a response, also one that is cut off, or all of it."""
    blocks = _FENCED.findall(response)
    return blocks[-1] if blocks else response


def _passes(record, settings):
    tests = field_of(record, settings.field)
    tests = [tests] if isinstance(tests, str) else list(tests)
    if not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise InputError(f'the field {settings.field!r} of a record is {tests!r:.200}; expected '
                         'one or several tests in Python')
    setup = field_of(record, settings.setup) + '\n' if settings.setup else ''
    word = secrets.token_hex(16)
    task = {'word': word, 'program': setup + program_of(record.response), 'tests': tests}
    outcome = sandbox.run({'main.py': _HARNESS, 'task.json': json.dumps(task)},
                          limits=settings.limits())
    passed = set(outcome.stdout.splitlines()) & {f'{word} {i}' for i in range(len(tests))}
    share = len(passed) / len(tests)
    return share if settings.share else float(share == 1)
