"""The file that answers go to: appended under a lock and flushed to the disk, read as it grows."""

import contextlib
import fcntl
import json
import os
import threading

FILE = 'answers.jsonl'


class Store:
    """An append-only file of JSON objects that several processes write to at once.

    A line that a crash cut short is moved to FILE.torn and reported; nothing is ever rewritten.

    Attributes:
        problems: what was wrong with the file, in words.
    """

    def __init__(self, path, problem_of=lambda record: ''):
        """Args: problem_of(record): why a record cannot be used, or ''; it is then left out."""
        self.path, self.problems, self._problem_of = path, [], problem_of
        self._mutex = threading.RLock()
        self._offset, self._lines, self._records = 0, 0, []
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with self._lock(fcntl.LOCK_EX):
            self._repair()

    def append(self, record, after=None):
        """Appends a record; it is on the disk when this returns.

        Args:
            after: called with all records, under the lock; if it returns False, nothing is written.

        Returns: whether the record was written.

        Raises:
            OSError: no space; the file is then as it was.
        """
        line = json.dumps(record, ensure_ascii=False).encode() + b'\n'
        with self._lock(fcntl.LOCK_EX):
            self._repair()  # another process may have died since
            self._read()
            if after is not None and not after(self._records):
                return False
            size = os.fstat(self._file).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._file, line[written:])
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, size)
                raise
            self._read()
        return True

    def records(self):
        """All records so far, also those of other processes."""
        with self._lock(fcntl.LOCK_SH):
            self._read()
            return list(self._records)

    def close(self):
        os.close(self._file)

    @contextlib.contextmanager
    def _lock(self, kind):
        with self._mutex:  # flock does not tell the threads of a process apart
            fcntl.flock(self._file, kind)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _read(self):
        size = os.fstat(self._file).st_size
        data = os.pread(self._file, size - self._offset, self._offset)
        whole = data[:data.rfind(b'\n') + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._lines += 1
            record = _parsed(line)
            problem = 'no JSON object' if record is None else self._problem_of(record)
            if not problem:
                self._records.append(record)
            elif line.strip():
                self.problems.append(f'{self.path}:{self._lines} was left out: {problem} '
                                     f'({line[:80]!r})')

    def _repair(self):
        """Ends the last line, or moves it away if it was cut short. Needs the exclusive lock."""
        size = os.fstat(self._file).st_size
        if not size or os.pread(self._file, 1, size - 1) == b'\n':
            return
        start = self._last_line(size)
        tail = os.pread(self._file, size - start, start)
        if _parsed(tail) is not None:  # only its end is missing
            os.write(self._file, b'\n')
        else:
            torn = self.path.with_name(f'{self.path.name}.torn')
            with open(torn, 'ab') as file:
                file.write(tail + b'\n')
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(self._file, start)
            self.problems.append(f'{self.path}: the last line had been cut short by a crash and '
                                 f'was moved to {torn.name} ({len(tail)} bytes); that answer has '
                                 'to be given again')
        os.fsync(self._file)

    def _last_line(self, size):
        """Where the last line begins."""
        end = size
        while end:
            start = max(0, end - 65536)
            at = os.pread(self._file, end - start, start).rfind(b'\n')
            if at >= 0:
                return start + at + 1
            end = start
        return 0


def _parsed(line):
    """The object of a line, or None."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
