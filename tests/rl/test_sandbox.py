"""Programs that misbehave, in the sandbox: bounded, and nothing of them is left."""

import os
import pathlib
import tempfile
import time

import pytest

from jaxllm.errors import InputError
from jaxllm.rl import sandbox
from jaxllm.rl.sandbox import Limits, run

# A name that no other process has, so that leaks can be counted.
MARK = f'sandboxed-{os.getpid()}'
BARE = pathlib.Path(sandbox.__file__).with_name('sandbox_child.py')


@pytest.fixture(params=['namespaces', 'none'])
def child(request, monkeypatch, tmp_path):
    """With the namespaces of this machine, and as on one that has none for us."""
    if request.param == 'none':
        source = BARE.read_text(encoding='utf-8')
        call = "_libc.unshare(own if user == 0 else own | _NEWUSER) != 0"
        assert call in source
        file = tmp_path / 'child.py'
        file.write_text(source.replace(call, 'True'), encoding='utf-8')
        monkeypatch.setattr(sandbox, '_CHILD', file)
    return request.param


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp('sandboxes')
    folder.chmod(0o755)
    for parent in folder.parents[:2]:       # the program's own user has to get there
        parent.chmod(0o755)
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))
    yield
    assert os.listdir(folder) == []
    assert leaked() == []
    with pytest.raises(ChildProcessError):  # no zombies
        os.waitpid(-1, os.WNOHANG)


def leaked():
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            if MARK in pathlib.Path(f'/proc/{pid}/cmdline').read_text(errors='replace'):
                found.append(pid)
        except OSError:
            continue
    return found


def program(text, **limits):
    return run({'main.py': text}, limits=Limits(**limits))


# Starts processes that can be found by name: they ignore SIGTERM, in sessions of their own.
STUBBORN = f'''
import os, signal, subprocess, sys, time
def stubborn():
    return subprocess.Popen([sys.executable, '-I', '-S', '-c',
        'import signal, time; signal.signal(15, signal.SIG_IGN); signal.signal(1, signal.SIG_IGN);'
        'print("up", flush=True); time.sleep(100)', '{MARK}'],
        start_new_session=True, stdout=subprocess.PIPE)
'''


def test_a_program_runs(child):
    got = program('import os\nprint(sorted(os.environ), os.listdir("."), os.getcwd())\n'
                  'import sys; sys.stderr.write("told"); sys.exit(3)')
    assert (got.returncode, got.stopped, got.stderr, got.ok) == (3, '', 'told', False)
    assert got.stdout.startswith("['HOME', 'LANG', 'PATH', 'TMPDIR'")
    assert "['main.py']" in got.stdout
    assert program('').ok
    assert child == 'namespaces' or not (got.isolated_network or got.isolated_processes)


def test_stdin_is_closed_and_files_are_given():
    got = run({'a.py': 'import sys; print(repr(sys.stdin.read()), open("b.txt").read())',
               'b.txt': 'half an emoji \ud83d'}, main='a.py')
    assert got.stdout == "'' half an emoji ?\n"
    for files in ({'b.py': ''}, {'main.py': '', '../x': ''}, {'main.py': '', 'a/b': ''}):
        with pytest.raises(InputError, match='without folders'):
            run(files)


def test_a_signal_and_a_syntax_error_are_told():
    assert program('import os; os.abort()').returncode == 128 + 6
    got = program('def f(:')
    assert got.returncode == 1 and 'SyntaxError' in got.stderr


def test_an_infinite_loop_ends(child):
    start = time.monotonic()
    got = program('while True: pass', timeout_s=0.5)
    assert (got.returncode, got.stopped) == (None, 'time')
    assert time.monotonic() - start < 5


def test_cpu_time_is_limited():
    got = program('while True: pass', timeout_s=20.0, cpu_s=1)
    assert got.returncode in (128 + 9, 128 + 24) and got.stopped == ''


def test_a_timeout_kills_children_that_ignore_it(child):
    got = program(STUBBORN + 'for _ in "123": print(stubborn().stdout.readline(), flush=True)\n'
                  'signal.signal(15, signal.SIG_IGN)\ntime.sleep(100)', timeout_s=2.0)
    assert got.stopped == 'time' and got.stdout.count('up') == 3


def test_what_a_finished_program_leaves_behind_is_killed(child):
    start = time.monotonic()
    # A daemon: its parent ends at once, so that it has none that could wait for it.
    got = program(STUBBORN + 'if os.fork() == 0:\n    os.setsid()\n'
                  '    print(stubborn().stdout.readline(), flush=True)\n    os._exit(0)\n'
                  'os.wait()\nprint("done")', timeout_s=20.0)
    assert got.ok and 'up' in got.stdout and 'done' in got.stdout
    assert time.monotonic() - start < 15


def test_a_fork_bomb_is_bounded(child):
    got = program('import os, time\nfor n in range(1000):\n    try:\n        pid = os.fork()\n'
                  '    except OSError:\n        print(n)\n        break\n'
                  '    if pid == 0:\n        time.sleep(100)\n        os._exit(0)\n',
                  processes=7)
    # Counted too, where the user is ours and no namespace helps: what else runs meanwhile.
    assert got.ok and 1 <= int(got.stdout) <= 6 + 3
    got = program('import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n'
                  '        pass', processes=7, timeout_s=0.7)
    assert got.stopped == 'time'


def test_memory_is_limited():
    got = program('x = bytearray(1 << 30)', memory_mb=128)
    assert got.returncode == 1 and 'MemoryError' in got.stderr
    got = program('x = []\nwhile True: x.append("y" * 1000000)', memory_mb=64)
    assert got.returncode != 0 and got.stopped == ''


@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
def test_huge_output_is_cut(stream):
    got = program(f'import sys\nwhile True: sys.{stream}.write("x" * 10000)', output_kb=3,
                  timeout_s=20.0)
    assert got.stopped == 'output' and getattr(got, stream) == 'x' * 3 * 1024


def test_output_that_is_no_text_is_read():
    assert program('import os; os.write(1, bytes([104, 255, 105]))').stdout == 'h\ufffdi'


def test_files_are_limited():
    got = program('f = open("big", "wb")\nfor _ in range(3): f.write(bytes(1 << 20)); f.flush()',
                  file_mb=2)
    assert got.returncode != 0
    got = program('fs = [open(f"f{i}", "w") for i in range(99)]', open_files=20)
    assert got.returncode == 1 and 'Too many open files' in got.stderr


def test_deep_and_locked_folders_are_removed():
    program('import os\nfor i in range(60):\n    os.mkdir("a"); os.chdir("a")\n'
            'os.chmod("..", 0)\nos.chmod(".", 0)')


def test_there_is_no_network_where_there_are_namespaces():
    import socket
    with socket.create_server(('127.0.0.1', 0)) as server:
        text = ('import socket\n'
                f'socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 1).close()\n')
        got = program(text)
        if not got.isolated_network:
            pytest.skip('this kernel gives us no namespaces')
        assert got.returncode == 1 and 'unreachable' in got.stderr


def test_root_is_dropped_and_cannot_come_back(tmp_path):
    if os.geteuid():
        pytest.skip('not root')
    secret = tmp_path / 'owned_by_root'
    secret.write_text('mine')
    got = program(f'import os\nprint(os.getuid() != 0, os.geteuid() != 0)\nos.chmod({str(secret)!r}'
                  ', 0o777)')
    assert got.stdout == 'True True\n' and not got.as_root
    assert got.returncode == 1 and secret.read_text() == 'mine'
    got = program('import os\nos.setuid(0)')
    assert got.returncode == 1 and 'PermissionError' in got.stderr
    got = program(f'open({str(secret)!r}, "w")')
    assert got.returncode == 1


def test_programs_beside_each_other_do_not_meet():
    import concurrent.futures
    texts = [f'import os, time\ntime.sleep(0.2)\nprint({i}, os.listdir("."))' for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(program, texts))
    assert [one.stdout for one in got] == [f"{i} ['main.py']\n" for i in range(4)]


@pytest.mark.parametrize('limits', [dict(timeout_s=0), dict(memory_mb=1), dict(processes=0),
                                    dict(output_kb=-1), dict(timeout_s=float('nan'))])
def test_bad_limits_are_refused(limits):
    with pytest.raises(InputError, match=next(iter(limits))):
        Limits(**limits)
