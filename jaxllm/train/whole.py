"""One display for a row of runs: which step it is, what it does, how long the whole still takes."""

import math
import sys
import time

import tqdm

from jaxllm.train.progress import duration

_PRIOR_S = 60.0  # seconds that a machine has to run before its own speed outweighs what is expected


class Whole:
    """Progress over the steps of a chain: a bar on a terminal, the time that is left in lines."""

    def __init__(self, expected_s, done=(), *, enabled=True, file=None, clock=time.monotonic):
        """Opens the display.

        Args:
            expected_s: {step in their order: seconds that it is expected to take, 0 = unknown}.
            done: names of steps that need not run again.
            enabled: False on processes that should be silent.
            file: where to; stderr if None.
            clock: () -> seconds.
        """
        self.file, self.enabled, self._clock = file or sys.stderr, enabled, clock
        self._expected, self._done = dict(expected_s), set(done)
        self._known = all(self._expected.values())
        self._spent_s = self._planned_s = 0.0  # of the steps that this session has run
        self.step, self._text = '', ''
        self._bar = None
        if enabled and self.file.isatty():
            self._bar = tqdm.tqdm(total=100, file=self.file, dynamic_ncols=True, leave=True,
                                  bar_format='{desc} {bar:20} {percentage:3.0f}%{postfix}')

    def begin(self, step):
        """A step starts."""
        self.step, self._text = step, ''
        self._began = self._since = self._clock()
        self._share = 0.0
        self._show()

    def end(self):
        """The step came to its end."""
        self._spent_s += self._clock() - self._began
        self._planned_s += self._expected[self.step]
        self._done.add(self.step)
        self.step = self._text = ''
        self._show()

    def inside(self, text, share):
        """What the step does right now; `share` of what began when the share was 0 is done."""
        if share <= 0:
            self._since = self._clock()
        self._text, self._share = text, share
        self._show()

    def says(self, text):
        """What happens next."""
        self._text = text.partition('\n')[0]
        self.line(text)
        self._show()

    def line(self, text):
        """Prints a line, with the time that is left where there is no bar."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self.file)
            return
        left = self.left_s()
        tail = f'; {self._place()}, about {duration(left)} to the end' if (
            left is not None and 'ETA' in text) else ''
        print(text + tail, file=self.file, flush=True)

    def left_s(self):
        """Seconds until the end, or None where nothing says how long steps take."""
        if not self._known:
            return None
        pace = (self._spent_s + _PRIOR_S) / (self._planned_s + _PRIOR_S)
        later = sum(s for name, s in self._expected.items()
                    if name not in self._done and name != self.step)
        return later * pace + (self._own_s(pace) if self.step else 0.0)

    def _own_s(self, pace):
        """Seconds that are left of this step: by its own pace, or by what is expected of it."""
        now = self._clock()
        if self._share > 0.02:
            return (now - self._since) * (1 - self._share) / self._share
        return max(self._expected[self.step] * pace - (now - self._began), 0.0)

    def _place(self):
        names = list(self._expected)
        at = names.index(self.step) + 1 if self.step else len(self._done)
        return f'step {at} of {len(names)}'

    def _percent(self):
        left = self.left_s()
        if left is None:
            return 100 * len(self._done) / len(self._expected)
        total = sum(self._expected.values())
        gone = sum(s for name, s in self._expected.items() if name in self._done)
        if self.step:
            gone += self._expected[self.step] - min(self._own_s(1.0), self._expected[self.step])
        return 100 * gone / total

    def _show(self):
        if self._bar is None:
            return
        left = self.left_s()
        parts = [self._text if len(self._text) < 60 else f'{self._text[:59]}…',
                 '' if left is None else f'about {duration(left)} left']
        self._bar.set_description_str(f'{self._place()} {self.step}'.strip(), refresh=False)
        self._bar.set_postfix_str(' · '.join(filter(None, parts)), refresh=False)
        self._bar.n = math.floor(min(self._percent(), 100))
        self._bar.refresh()

    def close(self):
        """Leaves the last state on the screen."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
