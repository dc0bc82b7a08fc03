"""The process that one reward function runs in: started once, started again after a kill."""

import json
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import time
import weakref

from jaxllm.errors import InputError

START_S = 120.0     # to import the function
MAX_HANGS = 3       # singly tried records that may hang or end the process before it is given up
_CHUNK = 1 << 16
_ENDED = 'its process'


class FunctionProcess:
    """A reward function in a process that can be killed.

    Requests go to its stdin, pickled; replies come from its stdout, as JSON. What the function
    prints goes to stderr. Where this process dies, that one is killed as well.
    """

    def __init__(self, where, path, settings):
        """Args: where: for messages. path: of the function. settings: a dict.

        Raises InputError: no such function, or settings that it does not take.
        """
        self._where, self._path, self._settings = where, path, settings
        self._child = self._end = None
        self._start()

    def score(self, records, timeout_s):
        """(results, '') with a (value, reason) per record, or ([], reason) where the call failed.

        Values are finite floats; a reason that is not '' says what is wrong with one.
        """
        self._be_ready()
        reply, reason = self._ask(('score', list(records)), timeout_s)
        if reason:
            self.close()
            return [], reason
        return [tuple(one) for one in reply['results']], reply['error']

    def score_singly(self, records, timeout_s, reason, first_only):
        """(value, reason) per record, each scored alone, after a batch of them failed.

        The time is limited to four timeouts in all (starting the process anew is not counted), and
        after MAX_HANGS hangs the others are not tried: they fail too.

        Args:
          reason: why the batch failed. first_only: try no more after the first that fails.
        """
        results, hangs, left = [], 0, 4 * timeout_s
        for record in records:
            if hangs >= MAX_HANGS or left <= 0:
                results.append((0.0, f'not tried, after the whole batch failed ({reason})'))
                continue
            self._be_ready()
            start = time.monotonic()
            one, why = self.score([record], min(timeout_s, left))
            left -= time.monotonic() - start
            hangs += bool(why) and not one and self._child is None
            results.append((0.0, why) if why else one[0])
            if first_only and results[-1][1]:
                break
        results += [(0.0, '')] * (len(records) - len(results))
        # Each alone went well: a failure of the batch as a whole, or one that came and went. A
        # process that somebody else killed (the kernel, short of memory) is no failure of a record.
        if first_only and not reason.startswith(_ENDED) and not any(why for _, why in results):
            results[0] = (0.0, f'{reason}, for the batch of {len(records)} records as a whole')
        return results

    def close(self):
        """Kills the process and its group."""
        self._child = None
        if self._end:
            self._end()

    def _be_ready(self):
        if self._child is None or self._child.poll() is not None:
            self._start()

    def _start(self):
        self.close()
        env = os.environ | {'JAX_PLATFORMS': 'cpu',     # the accelerator is the trainer's
                            'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
        self._child = subprocess.Popen(
            [sys.executable, '-m', 'jaxllm.rl.reward_watch', str(os.getpid())], env=env, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        # Also where nobody closes it: at the end of the interpreter, or of this object.
        self._end = weakref.finalize(self, _end, self._child)
        os.set_blocking(self._child.stdin.fileno(), False)
        os.set_blocking(self._child.stdout.fileno(), False)
        reply, reason = self._ask(('open', self._where, self._path, self._settings), START_S)
        reason = reason or reply['error']
        if reason:
            self.close()
            raise InputError(f'{self._where}.path={self._path!r}: {reason}')

    def _ask(self, request, timeout_s):
        """(reply, '') or (None, what went wrong)."""
        data = pickle.dumps(request)
        data = memoryview(struct.pack('<Q', len(data)) + data)
        told, deadline = b'', time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            selector.register(self._child.stdin, selectors.EVENT_WRITE)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None, f'no answer within {timeout_s:g} s'
                for key, _ in selector.select(left):
                    if key.fileobj is self._child.stdin:
                        data, gone = self._send(data)
                        if gone or not data:
                            selector.unregister(self._child.stdin)
                        continue
                    part = os.read(key.fd, _CHUNK)
                    told += part
                    if told.endswith(b'\n'):
                        return json.loads(told), ''
                    if not part:
                        return None, self._how_it_ended()

    def _send(self, data):
        """(what is left to send, whether the process is gone)."""
        try:
            return data[os.write(self._child.stdin.fileno(), data[:_CHUNK]):], False
        except BlockingIOError:
            return data, False
        except BrokenPipeError:     # the reading side tells how it ended
            return data, True

    def _how_it_ended(self):
        try:
            code = self._child.wait(5.0)
        except subprocess.TimeoutExpired:
            return 'it closed its connection'
        return (f'{_ENDED} was ended by signal {-code} ({signal.Signals(-code).name})'
                if code < 0 else f'{_ENDED} ended with exit code {code}')


def _end(child):
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:      # it has ended by itself, and all of its group
        pass
    child.stdin.close()
    child.stdout.close()
    child.wait()
