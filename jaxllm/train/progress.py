"""What a person sees while a run goes on: one bar on a terminal, occasional lines elsewhere.

A run that is a step of something larger shows itself in the display of the whole (whole.py). Which
display that is hangs on who called whom, and on nothing that a run computes: it is a context
variable, as the level of a logger would be, and no argument of every function in between.
"""

import contextlib
import contextvars
import sys
import time

import tqdm

_WHOLE = contextvars.ContextVar('the display that runs are shown in', default=None)


@contextlib.contextmanager
def shown_in(whole):
    """While in scope, runs show themselves in `whole`, which has line(text), says(text) and
    inside(text, share), the share of its steps that a run has done since it started or None."""
    token = _WHOLE.set(whole)
    try:
        yield whole
    finally:
        _WHOLE.reset(token)


def stage(name, file=None):
    """Prints one line about what happens next: stage(f'packing {n:,} documents ...')."""
    whole = _WHOLE.get()
    if whole is not None and file is None:
        whole.says(name)
    else:
        print(name, file=file or sys.stderr, flush=True)


def describe(fields):
    """'loss 2.3146  val_bpb 0.9871  tokens/s 12,345' from a dict of numbers, in its order."""
    return '  '.join(f'{name} {value:,.0f}' if abs(value) >= 1000 else f'{name} {value:.4g}'
                     for name, value in fields.items())


def duration(seconds):
    """'2 h 05 m', '3 m 07 s' or '12 s'."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f'{seconds // 3600:,} h {seconds % 3600 // 60:02d} m'
    if seconds >= 60:
        return f'{seconds // 60} m {seconds % 60:02d} s'
    return f'{seconds} s'


class Progress:
    """Progress over the steps of a run: step, loss, validation bits per byte, tokens/s, ETA."""

    def __init__(self, total, start=0, label='train', enabled=True, every_s=30., file=None):
        """Opens the display.

        Args:
            total: steps of the whole run.
            start: steps done before (a resumed run).
            label: what is being done.
            enabled: False on processes that should be silent.
            every_s: seconds between plain lines where the file is no terminal.
            file: where to; stderr if None.
        """
        self.file = file or sys.stderr
        self.total, self.start, self.label, self.every_s = total, start, label, every_s
        self.enabled, self.step, self.fields = enabled, start, {}
        self.began = self.printed = time.monotonic()
        self.bar, self.whole = None, _WHOLE.get() if enabled else None
        if enabled and self.whole is None and self.file.isatty():
            self.bar = tqdm.tqdm(total=total, initial=start, desc=label, unit='step',
                                 file=self.file, dynamic_ncols=True, leave=True)

    def update(self, step, **fields):
        """Shows that `step` steps are done.

        Args:
            step: steps done so far.
            **fields: numbers to show, e.g. loss=2.31, val_bpb=0.98, tokens_per_s=12345.; each
                stays until it gets a new value.
        """
        if not self.enabled:
            return
        done, self.step = step - self.step, step
        self.fields.update(fields)
        if self.bar is not None:
            self.bar.set_postfix_str(describe(self.fields), refresh=False)
            self.bar.update(done)
            return
        now = time.monotonic()
        text = f'{self.label} {step:,}/{self.total:,}  {describe(self.fields)}'
        if self.whole is not None:
            self.whole.inside(text, (step - self.start) / max(self.total - self.start, 1))
        if now - self.printed >= self.every_s or step >= self.total or step - self.start == 1:
            self.printed = now
            left_s = (now - self.began) / max(step - self.start, 1) * (self.total - step)
            self.line(f'{text}  ETA {duration(left_s)}')

    def line(self, text):
        """Prints a line without breaking the bar."""
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.write(text, file=self.file)
        elif self.whole is not None:
            self.whole.line(text)
        else:
            print(text, file=self.file, flush=True)

    def close(self):
        """Leaves the last state on the screen."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
