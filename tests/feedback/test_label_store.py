"""Nothing that was said is lost: torn lines, several writers, kill -9."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest
from label_dirs import ROOT

from jaxllm.feedback.store import Store


def test_torn_lines_are_moved_away_and_reported(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_bytes(b'{"n": 1}\n{"n": 2, "te')
    store = Store(path)
    assert store.records() == [{'n': 1}]
    assert 'cut short by a crash' in store.problems[0] and '12 bytes' in store.problems[0]
    assert (tmp_path / 'a.jsonl.torn').read_bytes() == b'{"n": 2, "te\n'
    assert store.append({'n': 3})
    assert path.read_bytes() == b'{"n": 1}\n{"n": 3}\n'
    store.close()


def test_a_last_line_that_is_whole_is_kept(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_bytes(b'{"n": 1}')
    store = Store(path)
    store.append({'n': 2})
    assert store.records() == [{'n': 1}, {'n': 2}] and not store.problems
    store.close()


def test_a_torn_line_of_another_process_is_repaired_before_writing(tmp_path):
    store = Store(tmp_path / 'a.jsonl')
    store.append({'n': 1})
    with open(tmp_path / 'a.jsonl', 'ab') as file:
        file.write(b'{"n"' + b'x' * 70_000)
    store.append({'n': 2})
    assert store.records() == [{'n': 1}, {'n': 2}] and len(store.problems) == 1
    assert (tmp_path / 'a.jsonl').read_bytes() == b'{"n": 1}\n{"n": 2}\n'
    store.close()


def test_damage_in_the_middle_is_reported_with_its_line(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"n": 1}\n[1]\n{"bad": 1}\nxx\n{"n": 2}\n')
    store = Store(tmp_path / 'a.jsonl', lambda record: '' if 'n' in record else 'no n')
    assert store.records() == [{'n': 1}, {'n': 2}]
    assert [problem.split(' ', 1)[0].rpartition(':')[2] for problem in store.problems] == [
        '2', '3', '4']
    assert 'no JSON object' in store.problems[0] and 'no n' in store.problems[1]
    store.close()


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    store = Store(tmp_path / 'a.jsonl')
    store.append({'n': 1})
    write, calls = os.write, []

    def full(file, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write(file, data[:4])
    monkeypatch.setattr(os, 'write', full)
    with pytest.raises(OSError, match='No space'):
        store.append({'n': 2})
    monkeypatch.undo()
    assert len(calls) == 2 and (tmp_path / 'a.jsonl').read_bytes() == b'{"n": 1}\n'
    store.append({'n': 3})
    assert store.records() == [{'n': 1}, {'n': 3}]
    store.close()


def test_many_threads_and_stores_at_once(tmp_path):
    stores = [Store(tmp_path / 'a.jsonl') for _ in range(2)]

    def write(number):
        for i in range(10):
            stores[number % 2].append({'n': number, 'i': i, 'text': 'x' * 5000})
    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        assert sorted((r['n'], r['i']) for r in store.records()) == [
            (n, i) for n in range(6) for i in range(10)] and not store.problems
        store.close()


@pytest.mark.parametrize('kill_after', [1, 7])
def test_what_was_acknowledged_survives_kill_9(tmp_path, kill_after):
    code = ('import pathlib, sys; from jaxllm.feedback.store import Store\n'
            's = Store(pathlib.Path(sys.argv[1])); n = 0\n'
            'while True:\n'
            '    s.append({"n": n, "text": "x" * 200_000}); print(n, flush=True); n += 1')
    process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path / 'a.jsonl')],
                               stdout=subprocess.PIPE, text=True, cwd=ROOT)
    acknowledged = [int(process.stdout.readline()) for _ in range(kill_after)]
    process.kill()
    acknowledged += map(int, process.stdout.read().split())
    process.stdout.close()
    process.wait()
    store = Store(tmp_path / 'a.jsonl')
    found = [record['n'] for record in store.records()]
    assert found[:len(acknowledged)] == acknowledged and len(found) <= len(acknowledged) + 1
    store.append({'n': -1})
    for line in (tmp_path / 'a.jsonl').read_text().splitlines():
        json.loads(line)
    store.close()
