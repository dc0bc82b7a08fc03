"""One job of a sweep as a process of its own: its folder, lock, cores, log and end."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

from jaxllm import config as configs
from jaxllm import sweep
from jaxllm.report import done

_ACCELERATORS = ('/dev/nvidia0', '/dev/accel0', '/dev/vfio/0', '/dev/kfd')


def default_processes():
    """How many jobs to run at once: 2, but 1 on one core or an accelerator, which one job fills."""
    platforms = os.environ.get('JAX_PLATFORMS', '')
    accelerator = platforms != 'cpu' and any(map(os.path.exists, _ACCELERATORS))
    return 1 if accelerator else min(2, len(_cores()))


def _cores():
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(
        range(os.cpu_count() or 1))


def shares(processes):
    """The cores of each of so many processes: equal disjoint shares, at least one core each."""
    cores = _cores()
    return [cores[i * len(cores) // processes:(i + 1) * len(cores) // processes]
            or [cores[i % len(cores)]] for i in range(processes)]


class JobRun:
    """A job and its process. `folder` is its run directory; its parents are beside it."""

    def __init__(self, job, runs):
        self.job, self.folder, self.runs = job, runs / job.name, runs
        self.process, self.began, self._lock = None, 0.0, None

    @property
    def log(self):
        return self.folder / 'log.txt'

    def done(self):
        return done.is_done(self.folder)

    def undo(self):
        """Takes the mark of a done job away: what it was made from is made again."""
        done.remove(self.folder)

    def took_s(self):
        """How long the job took, which is done."""
        if self.process:
            return self.seconds()
        mark = done.read(self.folder)
        return mark['seconds'] if mark else 0.0  # gone, where another process makes it again

    def seconds(self):
        """How long the process has run."""
        return time.monotonic() - self.began

    def claim(self):
        """Takes the job for this sweep. False while another process runs it.

        The lock is inherited by the job's process: it is free once that has ended, whatever becomes
        of the sweep.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = _try_lock(self.runs / f'.{self.job.name}.lock')
        if lock is None:
            return False
        by_hand = _try_lock(self.folder / '.lock')  # the lock of `jaxllm run`
        if by_hand is None:
            lock.close()
            return False
        by_hand.close()
        self._lock = lock
        return True

    def command(self):
        """An ordinary run, which can as well be started by hand."""
        return [sys.executable, '-m', 'jaxllm.main', 'run', '--stop_at_eof',
                f'--config={self.folder / "config.json"}', f'--workdir={self.folder}']

    def start(self, cores):
        """Starts the claimed job on some cores. The log of an earlier attempt is kept above."""
        places = {need: str(self.runs / need) for need in self.job.needs}
        values = sweep.resolve(self.job.config, places)
        # Written anew: after a move of the sweep, the parents are elsewhere.
        configs.write_atomic(self.folder / 'config.json',
                             json.dumps(values, indent=2, sort_keys=True) + '\n')
        with open(self.log, 'ab') as log, _on_cores(cores):
            # The pipe to its stdin tells the job when this process is gone; a Ctrl-C at the
            # terminal reaches this process alone.
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                pass_fds=(self._lock.fileno(),), start_new_session=True)
        self.began = time.monotonic()

    def poll(self):
        """The exit code, or None while the process runs. An end without done.json is no good one.
        """
        code = self.process.poll()
        if code is None:
            return None
        self.process.stdin.close()
        self.release()
        if code == 0 and not self.done():
            return 1
        return 128 - code if code < 0 else code

    def release(self):
        """Gives up a claim."""
        if self._lock:
            self._lock.close()
        self._lock = None

    def stop(self, at_once=False):
        """Asks the process to save and end, or ends it and what it started."""
        if at_once:
            with contextlib.suppress(ProcessLookupError):  # it ended in this very moment
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.terminate()

    def abandon(self):
        """Ends the process at once and waits for its end."""
        self.stop(at_once=True)
        self.process.wait()
        self.process.stdin.close()
        self.release()

    def step(self):
        """(steps done, steps in all) of a training run, or None."""
        try:
            total = self.job.config['train']['num_steps']
            with open(self.folder / 'metrics.jsonl', 'rb') as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                lines = file.read().split(b'\n')[1:-1]
            return json.loads(lines[-1])['step'], total
        except (OSError, ValueError, IndexError, KeyError):
            return None

    def tail(self, lines=12):
        """A list of the last lines of the log."""
        if not self.log.exists():
            return []
        text = self.log.read_text(encoding='utf-8', errors='replace')
        return text.rstrip().splitlines()[-lines:]


def _try_lock(path):
    """The open, locked file, or None where another process holds the lock."""
    file = open(path, 'a', encoding='utf-8')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


@contextlib.contextmanager
def _on_cores(cores):
    """A process that is started inside inherits these cores as its own."""
    if not hasattr(os, 'sched_setaffinity'):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
