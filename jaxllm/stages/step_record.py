"""How long each step of a chain has run, and what memory it took: one line per attempt."""

import contextlib
import json
import pathlib
import time

from jaxllm.train import flops

FILE = 'steps.jsonl'
_CLEAR = pathlib.Path('/proc/self/clear_refs')
_STATUS = pathlib.Path('/proc/self/status')


@contextlib.contextmanager
def recorded(workdir, step):
    """Appends two lines to workdir/steps.jsonl: that the step began, and how it ended.

    {'step', 'event': 'begin'}, and {'step', 'event': 'end' or 'stop', 'seconds',
    'peak_rss_bytes'}; after a kill the second one is missing.
    """
    own = _forget_peak()
    _append(workdir, {'step': step, 'event': 'begin'})
    began, event = time.monotonic(), 'stop'
    try:
        yield
        event = 'end'
    finally:
        _append(workdir, {'step': step, 'event': event,
                          'seconds': round(time.monotonic() - began, 1),
                          'peak_rss_bytes': _peak() if own else flops.peak_rss_bytes()})


def _append(workdir, row):
    with open(workdir / FILE, 'a', encoding='utf-8') as file:
        file.write(json.dumps(row) + '\n')


def _forget_peak():
    """Lets the kernel count the peak anew, so that a step is not charged for an earlier one.
    Returns whether it can; elsewhere the peak is that of the whole process so far."""
    try:
        _CLEAR.write_text('5')
        return _STATUS.exists()
    except OSError:
        return False


def _peak():
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith('VmHWM:'))
    return int(line.split()[1]) * 1024
