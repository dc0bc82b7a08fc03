"""Runs the jobs of a sweep in parallel processes, parents first, and shows how far it is."""

import signal
import sys
import time

import tqdm

from jaxllm.stages.jobs import JobRun, shares
from jaxllm.train.progress import duration

_POLL_S = 0.1
_TODO, _RUNNING, _DONE, _FAILED, _NOT_RUN = 'to do', 'running', 'done', 'failed', 'not run'


class Runner:
    """Runs jobs until none is left that can be run.

    A job that another process runs is waited for. What a failed job was needed for is not run; all
    else is.
    """

    def __init__(self, jobs, runs, processes, display):
        """`jobs`: {name: Job}, parents first; `runs`: the folder of their run directories."""
        self.runs = {name: JobRun(job, runs) for name, job in jobs.items()}
        self.state = {}
        for name, run in self.runs.items():
            self.state[name] = _DONE if run.done() else _TODO
            if self.state[name] == _DONE and any(self.state[need] != _DONE
                                                 for need in run.job.needs):
                run.undo()
                self.state[name] = _TODO
        self.cores = shares(processes)
        self.slots = {}        # {slot: name of the job that runs there}
        self.code = 0
        self.signals = []      # what came, in order
        self.display = display

    def run(self):
        """Returns 0, the exit code of the first job that failed, or 128 + signal."""
        old = {signum: signal.signal(signum, lambda signum, frame: self.signals.append(signum))
               for signum in (signal.SIGINT, signal.SIGTERM)}
        self.display.start(self)
        heeded = 0
        try:
            while True:
                self._reap()
                if not self.signals:
                    self._start_what_can_be()
                if heeded < len(self.signals):
                    # The jobs are asked to save first; a second signal ends them at once.
                    self._stop(at_once=len(self.signals) > 1)
                    heeded = len(self.signals)
                if not self.slots and (self.signals or not self.count(_TODO)):
                    break
                self.display.update()
                time.sleep(_POLL_S)
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)
            for name in self.slots.values():  # there are some only after an error of this process
                self.runs[name].abandon()
        if self.signals:
            self.display.line(f'stopped by {signal.Signals(self.signals[0]).name}; the same '
                              'command goes on')
            return 128 + self.signals[0]
        self.display.summary()
        return self.code

    def count(self, *states):
        return sum(state in states for state in self.state.values())

    def _stop(self, at_once):
        for name in self.slots.values():
            self.runs[name].stop(at_once)

    def _reap(self):
        """Takes note of the processes that ended."""
        for slot, name in list(self.slots.items()):
            run = self.runs[name]
            code = run.poll()
            if code is None:
                continue
            del self.slots[slot]
            if code == 0:
                self.state[name] = _DONE
                self.display.done(run)
            elif self.signals:
                self.state[name] = _TODO
            else:
                self.state[name] = _FAILED
                self.code = self.code or code
                self.display.failed(run, code)

    def _start_what_can_be(self):
        """Fills the free slots."""
        ready = []
        for name, run in self.runs.items():
            needs = {self.state[need] for need in run.job.needs}
            if self.state[name] != _TODO:
                continue
            if needs & {_FAILED, _NOT_RUN}:
                self.state[name] = _NOT_RUN
            elif needs <= {_DONE}:
                ready.append(name)
        # While a job is all that can run, the cores of the others would be idle.
        alone = len(ready) == 1 and not self.slots
        for name in ready:
            self._start(name, self.runs[name], alone)

    def _start(self, name, run, alone):
        """Starts a job, unless there is no free slot or another process runs it."""
        free = [slot for slot in range(len(self.cores)) if slot not in self.slots]
        if run.done():  # by another process
            self.state[name] = _DONE
            self.display.done(run)
        elif free and not run.claim():
            self.display.waiting(run)
        elif free and run.done():  # in this very moment
            run.release()
        elif free:
            run.start(sorted(set().union(*self.cores)) if alone else self.cores[free[0]])
            self.slots[free[0]], self.state[name] = name, _RUNNING
            self.display.started(run)


class Display:
    """How far a sweep is: one bar on a terminal, a line per event elsewhere.

    Args:
      labels: {job: what it is, for people}.
      file: where to; stderr if None.
    """

    def __init__(self, labels, file=None):
        self.labels, self.file = labels, file or sys.stderr
        self.bar, self.runner, self.shown, self.waited_for = None, None, 0.0, set()

    def start(self, runner):
        self.runner = runner
        done = runner.count(_DONE)
        self.line(f'{len(runner.runs)} jobs, {done} of them done before, '
                  f'{len(runner.cores)} at once')
        if self.file.isatty():
            self.bar = tqdm.tqdm(total=len(runner.runs), initial=done, desc='sweep', unit='job',
                                 file=self.file, dynamic_ncols=True,
                                 bar_format='{desc} {n_fmt}/{total_fmt} |{bar}| {postfix}')

    def started(self, run):
        self.line(f'started  {self._what(run)}')

    def waiting(self, run):
        if run.job.name not in self.waited_for:
            self.waited_for.add(run.job.name)
            self.line(f'waiting  {self._what(run)}: another process runs it')

    def done(self, run):
        took = f' in {duration(run.seconds())}' if run.process else ' by another process'
        self.line(f'done     {self._what(run)}{took}; {self._left()}')
        if self.bar is not None:
            self.bar.update(1)

    def failed(self, run, code):
        tail = ''.join(f'\n  | {line}' for line in run.tail())
        self.line(f'FAILED   {self._what(run)}: exit code {code}; the end of {run.log}:{tail}')

    def summary(self):
        parts = [f'{count} {state}' for state in (_DONE, _FAILED, _NOT_RUN)
                 if (count := self.runner.count(state))]
        self.line(f'jobs: {", ".join(parts) or "none"}')
        for name, state in self.runner.state.items():
            if state == _NOT_RUN:
                self.line(f'not run  {self._what(self.runner.runs[name])}: a job that it needs '
                          'failed')

    def update(self):
        """Draws the bar anew, at most once a second."""
        if self.bar is None or time.monotonic() - self.shown < 1:
            return
        self.shown = time.monotonic()
        running = []
        for name in self.runner.slots.values():
            run = self.runner.runs[name]
            step = run.step()
            running.append(self.labels[name] + (f' {step[0]:,}/{step[1]:,}' if step else ''))
        self.bar.set_postfix_str(f'{self._left()}  [{" | ".join(running)}]')

    def line(self, text):
        """Prints a line without breaking the bar."""
        if self.bar is not None:
            self.bar.write(text, file=self.file)
        else:
            print(text, file=self.file, flush=True)

    def _what(self, run):
        return f'{self.labels[run.job.name]} ({run.job.name})'

    def _left(self):
        """'2 running, 5 to go, about 3 m 20 s left', judged by done jobs of the same stages."""
        runner = self.runner
        todo = runner.count(_TODO)
        parts = [f'{runner.count(_RUNNING)} running', f'{todo} to go']
        if runner.count(_FAILED):
            parts.append(f'{runner.count(_FAILED)} failed')
        left_s = self._seconds_left()
        if left_s is not None:
            parts.append(f'about {duration(left_s)} left')
        return ', '.join(parts)

    def _seconds_left(self):
        took = {}
        for name, run in self.runner.runs.items():
            if self.runner.state[name] == _DONE:
                took.setdefault(run.job.stage, []).append(run.took_s())
        if not took:
            return None
        everything = [value for values in took.values() for value in values]
        left = 0.0
        for name, run in self.runner.runs.items():
            state = self.runner.state[name]
            if state in (_TODO, _RUNNING):
                values = took.get(run.job.stage) or everything
                mean = sum(values) / len(values)
                left += max(mean - run.seconds(), 0) if state == _RUNNING else mean
        return left / len(self.runner.cores)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()
