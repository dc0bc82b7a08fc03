"""The display of several runs: what is left by its own pace, one bar, lines of runs within."""

import io

import pytest

from jaxllm.train import progress
from jaxllm.train.whole import Whole


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def test_what_is_left_follows_the_pace_of_this_machine(clock):
    whole = Whole({'a': 60, 'b': 120, 'c': 30}, file=io.StringIO(), clock=clock)
    assert whole.left_s() == 210
    whole.begin('a')
    clock.now = 20
    assert whole.left_s() == 190
    clock.now = 240  # four times what was expected
    assert whole.left_s() == 150, 'a step that takes longer has nothing left to expect'
    whole.end()
    pace = (240 + 60) / (60 + 60)
    assert whole.left_s() == pace * 150
    whole.begin('b')
    whole.inside('b 0/10', 0.0)
    clock.now = 250
    whole.inside('b 5/10', 0.5)
    assert whole.left_s() == 10 + pace * 30


def test_steps_that_are_done_cost_nothing_and_unknown_ones_are_not_guessed(clock):
    assert Whole({'a': 60, 'b': 5}, ['a'], file=io.StringIO(), clock=clock).left_s() == 5
    unknown = Whole({'a': 0, 'b': 0}, file=io.StringIO(), clock=clock)
    unknown.begin('a')
    unknown.line('train 1/2  ETA 3 s')
    assert unknown.left_s() is None and unknown.file.getvalue() == 'train 1/2  ETA 3 s\n'


def test_runs_within_print_their_lines_with_what_is_left_of_the_whole(clock):
    file = io.StringIO()
    with Whole({'a': 60, 'b': 120}, file=file, clock=clock) as whole, progress.shown_in(whole):
        whole.begin('a')
        progress.stage('packing ...')
        with progress.Progress(total=4, file=file, every_s=0) as inner:
            inner.update(1, loss=2.5)
    lines = file.getvalue().splitlines()
    assert lines[0] == 'packing ...'
    assert lines[1].startswith('train 1/4  loss 2.5  ETA ')
    assert lines[1].endswith('; step 1 of 2, about 2 m 00 s to the end')
    assert progress.Progress(total=1, file=file).whole is None


def test_a_terminal_sees_one_bar_for_all(clock):
    file = Terminal()
    with Whole({'a': 60, 'b': 120}, file=file, clock=clock) as whole, progress.shown_in(whole):
        whole.begin('a')
        with progress.Progress(total=4, file=file) as inner:
            assert inner.bar is None
            inner.update(2, loss=2.5)
            inner.line('a sample')
        whole.end()
    shown = file.getvalue()
    assert 'a sample\n' in shown and 'step 1 of 2 a' in shown and 'train 2/4' in shown
    assert '33%' in shown.split('\r')[-1]


def test_a_silent_one_says_nothing(clock, capsys):
    whole = Whole({'a': 1}, enabled=False, clock=clock)
    whole.begin('a')
    whole.says('text')
    whole.end()
    assert capsys.readouterr() == ('', '')
