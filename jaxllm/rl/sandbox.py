"""Runs a Python program that a model wrote, under limits, and leaves nothing of it behind.

This is no security boundary. It is meant for programs that are wrong, not for programs that attack:
the kernel is shared, and what follows is all that there is.

Prevented: running longer than the timeout or the CPU time; more memory per process, processes,
open files or bytes per file than the limits; output beyond its limit; keyboard input; core dumps;
any process of it that outlives the call (also one that ignores SIGTERM, leaves its process group or
becomes a daemon). Its environment is empty but for PATH, HOME, TMPDIR and LANG, its folder a
temporary one that is removed. Where the kernel lets this user have namespaces, it has no network
and sees no processes to send signals to; `Outcome.isolated_network` says whether. Started by root,
it runs as a user who owns no file, if Python can be started so; `Outcome.as_root` says if not.

Not prevented: reading every file that the user may read (all files, where root starts it and only
root can read Python); writing where the user may write, so /tmp or, not started by root, the home
folder; filling the disk with many files; the memory limit times the number of processes; and,
without namespaces, the network and signals to other processes of the user. Use a virtual machine or
a container for programs that you fear.
"""

import dataclasses
import json
import os
import pathlib
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from jaxllm.errors import InputError

_CHILD = pathlib.Path(__file__).with_name('sandbox_child.py')
_GRACE_S = 10.0     # for the supervisor to start and to clear up, beyond the program's own time
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    timeout_s: seconds on the clock. cpu_s: seconds of CPU per process, 0 = the timeout, rounded up.
    memory_mb: address space per process. processes: processes and threads, with the first one.
    file_mb: size of any one file. output_kb: of stdout and of stderr, each; more stops it.
    """
    timeout_s: float = 5.0
    cpu_s: int = 0
    memory_mb: int = 512
    processes: int = 16
    file_mb: int = 16
    open_files: int = 64
    output_kb: int = 64

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), {'cpu_s': 0, 'memory_mb': 32}
            if not value >= least.get(field.name, 1e-3):
                raise InputError(f'sandbox limit {field.name}={value}: expected at least '
                                 f'{least.get(field.name, "something")}')


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a program.

    returncode: its exit code, 128 + signal if one ended it, None if it was stopped.
    stopped: '' if it ended by itself, else which limit it ran into: 'time', 'output', 'processes';
      memory, CPU and file size show in the return code or as the program's own exception.
    stdout, stderr: the beginnings, as text.
    """
    returncode: int | None
    stopped: str
    stdout: str
    stderr: str
    isolated_network: bool
    isolated_processes: bool
    as_root: bool

    @property
    def ok(self):
        return self.returncode == 0


def run(files, main='main.py', limits=None):
    """Runs `python -I main` in a temporary folder that holds `files` and is removed afterwards.

    Args:
      files: {name: text}, names without folders. main: the one to run. limits: Limits.

    Returns:
      Outcome. A program that fails is no error.

    Raises:
      InputError: a name with a folder in it, or no such `main`. OSError: it could not be started.
    """
    limits = limits or Limits()
    if main not in files or any(os.path.basename(name) != name or not name for name in files):
        raise InputError(f'files {sorted(files)} with {main!r} to run: expected names without '
                         'folders, and the one to run among them')
    folder = tempfile.mkdtemp(prefix='jaxllm-sandbox-')
    try:
        for name, text in files.items():
            # Half an emoji, which a model may well write, has no UTF-8.
            pathlib.Path(folder, name).write_bytes(text.encode('utf-8', 'replace'))
        return _run(folder, main, limits)
    finally:
        _remove(folder)


def _run(folder, main, limits):
    report, report_end = os.pipe()
    task = {'file': main, 'parent': os.getpid(), 'report': report_end,
            'timeout_s': limits.timeout_s, 'cpu_s': limits.cpu_s or int(limits.timeout_s) + 1,
            'memory_bytes': limits.memory_mb << 20, 'processes': limits.processes,
            'file_bytes': limits.file_mb << 20, 'open_files': limits.open_files}
    try:
        with subprocess.Popen(
                [sys.executable, '-I', '-S', str(_CHILD), json.dumps(task)], cwd=folder, env={},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=(report_end,), start_new_session=True) as child:
            os.close(report_end)
            report_end = -1
            try:
                texts = _read(child, limits)
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
        said = os.read(report, _CHUNK)
    finally:
        os.close(report)
        if report_end >= 0:
            os.close(report_end)
    result = json.loads(said) if said else {
        'returncode': None, 'stopped': 'time', 'isolated_network': False,
        'isolated_processes': False, 'as_root': os.geteuid() == 0}
    return Outcome(stdout=texts[0], stderr=texts[1], **result)


def _read(child, limits):
    """(stdout, stderr) up to their limits, when the supervisor has ended or had its time."""
    kept, most = {child.stdout: b'', child.stderr: b''}, limits.output_kb << 10
    deadline = time.monotonic() + limits.timeout_s + _GRACE_S
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(deadline - time.monotonic()):
                part = os.read(key.fd, _CHUNK)
                if not part:
                    selector.unregister(key.fileobj)
                elif len(kept[key.fileobj]) + len(part) > most:
                    kept[key.fileobj] = (kept[key.fileobj] + part)[:most]
                    child.send_signal(signal.SIGTERM)
                else:
                    kept[key.fileobj] += part
    if time.monotonic() < deadline:
        try:
            child.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
    return [text.decode('utf-8', 'replace') for text in kept.values()]


def _remove(folder):
    """Removes a folder, also one with folders in it that are locked or nested very deeply."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        subprocess.run(['rm', '-rf', folder], check=False, capture_output=True)
        if os.path.exists(folder):
            subprocess.run(['chmod', '-R', 'u+rwx', folder], check=False, capture_output=True)
            subprocess.run(['rm', '-rf', folder], check=False, capture_output=True)
