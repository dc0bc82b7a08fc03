"""A step of a run is opened, from a relative path too, and several models are asked the same."""

import jax
import pytest
import runs

from jaxllm.errors import InputError
from jaxllm.stages.ask import ask
from jaxllm.stages.inspect import open_step


@pytest.fixture(scope='module')
def run(tmp_path_factory, text):
    workdir = tmp_path_factory.mktemp('inside') / 'run'
    assert runs.run_here(runs.argv(workdir, text, train__num_steps=2, optim__warmup_steps=1,
                                   train__log_every=1, train__eval_every=2, train__save_every=2,
                                   train__sample_every=0, sample__prompts='()')) == 0
    return workdir


def test_open_step(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    step = open_step('run')
    assert step.number == 2 and step.lr > 0
    batch = step.source(2)
    with jax.set_mesh(step.trainer.mesh):
        seen = step.inspect(batch, row=1, top_candidates=2)
    assert (seen.tokens_BL == batch['tokens']).all() and seen.row == 1
    assert runs.run_here(['inspect', '--workdir=run']) == 0
    assert f'loss {seen.loss:.4g}' in capsys.readouterr().out
    with pytest.raises(InputError, match='no run directory'):
        open_step('nothing')


def test_ask(run):
    rows = ask({'one': run, 'two': run}, ['def', 'class'], max_new_tokens=3)
    assert [row['prompt'] for row in rows] == ['def', 'class']
    assert all(row['one'] == row['two'] for row in rows)
    assert all(len(row['one']) <= 3 * 20 for row in rows)
