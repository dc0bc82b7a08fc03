"""The supervisor of one sandboxed program; `jaxllm.rl.sandbox` starts it as a script of its own.

It isolates what can be isolated, starts the program under its limits, waits for it, and leaves
only when every process that came of it is dead and reaped. Nothing of jaxllm is imported here.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time

_NEWUSER, _NEWPID, _NEWNET, _NEWIPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 1, 4, 8
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47
_CAP_DAC_READ_SEARCH = 2
_FIRST_USER, _USERS = 61_000, 4_000  # where no system has people or services
_TICK_S = 0.05

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option, *values):
    return _libc.prctl(option, *map(ctypes.c_ulong, (*values, 0, 0, 0, 0)[:4])) == 0


def _isolate():
    """Own network, process and IPC namespaces, as root or in a user namespace; whether it did."""
    user, group = os.geteuid(), os.getegid()
    own = _NEWNET | _NEWPID | _NEWIPC
    if _libc.unshare(own if user == 0 else own | _NEWUSER) != 0:
        return False
    if user:
        for name, text in (('setgroups', 'deny'), ('uid_map', f'{user} {user} 1'),
                           ('gid_map', f'{group} {group} 1')):
            with open(f'/proc/self/{name}', 'w', encoding='ascii') as file:
                file.write(text)
    return True


def _threads_of(user):
    """How many threads a user has: what RLIMIT_NPROC counts."""
    total = 0
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            if os.stat(f'/proc/{pid}').st_uid == user:
                total += len(os.listdir(f'/proc/{pid}/task'))
        except OSError:     # it has ended meanwhile
            continue
    return total


def _drop_root(user):
    """From root to a user who owns nothing; who may still read where Python cannot be read else."""
    os.setgroups([])
    os.setgid(user)
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setresuid(user, user, user)
    if os.access(sys.executable, os.X_OK) and os.access(os.__file__, os.R_OK):
        bits = 0
    else:
        bits = 1 << _CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)
    if _libc.capset(header, data) != 0:
        # Not allowed to keep it: keep nothing.
        _libc.capset(header, (ctypes.c_uint32 * 6)())
    elif bits:
        _prctl(_PR_CAP_AMBIENT, 2, _CAP_DAC_READ_SEARCH)


def _can_drop(user):
    """Whether Python still starts when root has been dropped; tried in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            _drop_root(user)
            os.execve(sys.executable, [sys.executable, '-I', '-S', '-c', ''], {})
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _become(task, user, isolated):
    """This process turns into the program."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for name in ('SIGINT', 'SIGTERM', 'SIGPIPE', 'SIGXFSZ'):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    count = task['processes']
    if user:
        _drop_root(user)
    elif os.geteuid():
        # In a user namespace the supervisor and its init count; without one, all of the user's do.
        count += 2 if isolated else _threads_of(os.geteuid())
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for name, limit in (('CPU', task['cpu_s']), ('AS', task['memory_bytes']), ('CORE', 0),
                        ('FSIZE', task['file_bytes']), ('NOFILE', task['open_files']),
                        ('NPROC', count)):
        resource.setrlimit(getattr(resource, f'RLIMIT_{name}'), (limit, limit))
    os.umask(0o077)
    env = {'PATH': '/usr/bin:/bin', 'HOME': os.getcwd(), 'TMPDIR': os.getcwd(), 'LANG': 'C.UTF-8'}
    os.execve(sys.executable, [sys.executable, '-I', task['file']], env)


def _code(status):
    """The exit code of a process, or 128 + the signal that ended it, as a shell says it."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _start(task, user, isolated):
    """Forks the program; isolated: below a first process of its own, whose death ends them all."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if isolated:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            program = os.fork()
            if program:
                while True:
                    ended, status = os.wait()
                    if ended == program:
                        os._exit(_code(status))
        _become(task, user, isolated)
    except Exception as error:
        os.write(2, f'the sandbox could not start the program: {error}\n'.encode())
    finally:
        os._exit(125)


def _descendants():
    """Pids of all processes below this one, orphans among them, since it is their reaper."""
    children = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as file:
                parent = int(file.read().rpartition(')')[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(pid))
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _kill_all():
    """Kills and reaps every descendant, whatever group or session it has moved to."""
    for _ in range(2000):
        for pid in _descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _wait(pid, task, count_them):
    """(exit code or None, why it was stopped) of the program."""
    deadline = time.monotonic() + task['timeout_s']
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return None, 'time'
        info = signal.sigtimedwait((signal.SIGCHLD, signal.SIGTERM), min(left, _TICK_S))
        if info is not None and info.si_signo == signal.SIGTERM:
            return None, 'output'
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == pid:
                return _code(status), ''
            if not ended:
                break
        if count_them and len(_descendants()) > task['processes'] + 2:
            return None, 'processes'


def main():
    task = json.loads(sys.argv[1])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != task['parent']:
        return
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD, signal.SIGTERM))
    user = _FIRST_USER + os.getpid() % _USERS if os.geteuid() == 0 else 0
    if user and not _can_drop(user):
        user = 0
    if user:
        for path in ('.', *os.listdir('.')):
            os.chown(path, user, user)
    isolated = _isolate()
    root = os.geteuid() == 0 and not user
    pid = _start(task, user, isolated)
    code, stopped = _wait(pid, task, count_them=root)
    _kill_all()
    report = {'returncode': code, 'stopped': stopped, 'isolated_network': isolated,
              'isolated_processes': isolated, 'as_root': root}
    os.write(task['report'], json.dumps(report).encode())


if __name__ == '__main__':
    main()
