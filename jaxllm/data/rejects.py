"""Counts the records that could not be read, and writes down each with its place and reason."""

import json
import math
import os
from collections import Counter, defaultdict
from pathlib import Path

from jaxllm.errors import InputError

SHOWN = 5


class Rejects:
    """Reads and rejects per source and reason, and a rejects.jsonl with where each one was.

    A line of the file is {source, origin, reason, start}; `start` is the beginning of the raw
    record. An earlier file of that name is replaced.
    """

    def __init__(self, path: str | os.PathLike = '', max_logged: int = 100_000):
        """Args: path: of rejects.jsonl, '' writes none; max_logged: lines written at most."""
        self._path = path
        self._max_logged = max_logged
        self._logged = 0
        self._reads = Counter()
        self._reasons = defaultdict(Counter)  # source -> reason -> count
        self._first = defaultdict(list)  # source -> the first few (origin, reason)
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text('')

    def read(self, source: str) -> None:
        """Counts one record, good or bad."""
        self._reads[source] += 1

    def reject(self, source: str, origin: str, reason: str, start: str = '') -> None:
        """Counts and writes down one bad record, which `read` has counted before.

        Args: reason: 'kind' or 'kind: particulars'; the summary counts by kind.
        """
        self._reasons[source][reason.partition(':')[0]] += 1
        if len(self._first[source]) < SHOWN:
            self._first[source].append((origin, reason))
        if self._path and self._logged < self._max_logged:
            self._logged += 1
            with open(self._path, 'a', encoding='utf-8') as file:
                row = {'source': source, 'origin': origin, 'reason': reason, 'start': start}
                file.write(json.dumps(row) + '\n')

    def count(self, source: str) -> int:
        """Rejects of one source."""
        return self._reasons[source].total()

    def summary(self) -> dict:
        """{source: {read, rejected, reasons: {reason: count}}}."""
        return {source: {'read': self._reads[source], 'rejected': self.count(source),
                         'reasons': dict(sorted(self._reasons[source].items()))}
                for source in sorted(self._reads)}

    def describe(self, source: str) -> str:
        """The first few rejects of a source in a line, '' if it has none."""
        if not self.count(source):
            return ''
        first = '; '.join(f'{origin}: {reason}' for origin, reason in self._first[source])
        more = self.count(source) - len(self._first[source])
        return (f'{self.count(source)} of {self._reads[source]} records rejected ({first}'
                + (f'; and {more} more)' if more else ')'))

    def check(self, max_share: float) -> None:
        """Raises InputError naming the first bad places if a source lost more than `max_share`,
        which is config.data.max_reject_share."""
        for source in sorted(self._reads):
            share = self.count(source) / self._reads[source]
            if share > max_share:
                where = f', all listed in {self._path}' if self._path else ''
                enough = math.ceil(100 * share) / 100
                raise InputError(
                    f'source {source!r}: {self.describe(source)}{where}: {share:.2%}, expected at '
                    f'most {max_share:.2%} (data.max_reject_share={max_share:g}); repair them, or '
                    f'do without them by --config.data.max_reject_share={enough:g}')
