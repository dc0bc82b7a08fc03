"""Direct preference runs: learning, the reference, adapters, exact resume, bad input."""

import json
import math
import os
import signal

import documented
import jax
import numpy as np
import pytest
import runs

from jaxllm import objectives
from jaxllm.sharding import make_mesh
from jaxllm.stages import ancestry
from jaxllm.stages import base as bases

DPO = runs.ROOT / 'experiments' / 'dpo.py'
METHODS = ('dpo', 'ipo', 'kto', 'orpo', 'simpo')


def write_pairs(path, count=60):
    """Who says please is to be answered with good words."""
    path.write_text(''.join(json.dumps({
        'prompt': f'number {i} please', 'chosen': f'good {"thing " * (i % 3)}',
        'rejected': f'bad {"stuff " * (i % 4)}'}) + '\n' for i in range(count)))
    return path


def argv(workdir, parent, data, *, arg='', **values):
    defaults = dict(init_from=parent, train__num_steps=6, train__log_every=1, train__eval_every=2,
                    train__save_every=2, train__patience=0, train__batch_size=8,
                    data__seq_len=96, data__holdout_share=0.25, optim__warmup_steps=1,
                    optim__lr=1e-3, metrics__tensorboard=False, sample__prompts='()')
    config = f'{DPO}:data={data}' + (f',{arg}' if arg else '')
    return ['run', f'--config={config}', f'--workdir={workdir}',
            *runs.overrides(**defaults | values)]


@pytest.fixture(scope='module')
def parent(tmp_path_factory, shared_cache, text):
    workdir = tmp_path_factory.mktemp('parent') / 'base'
    runs.run(runs.argv(workdir, text, train__num_steps=4, train__save_every=2), devices=8,
             JAXLLM_CACHE=str(shared_cache))
    return workdir


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp('data') / 'pairs.jsonl')


@pytest.fixture(scope='module')
def trained(tmp_path_factory, shared_cache, parent, data):
    """DPO, long enough to learn."""
    workdir = tmp_path_factory.mktemp('trained') / 'dpo'
    runs.run(argv(workdir, parent, data, train__num_steps=24, train__eval_every=8,
                  train__save_every=8, sample__prompts="('number 3 please',)"), devices=8,
             JAXLLM_CACHE=str(shared_cache))
    return workdir


def params_of(path):
    mesh = make_mesh()
    return bases.flat(bases.load_plain(bases.open_base(path), mesh))


def test_it_learns_and_says_what_changed(trained, parent, data):
    evals = runs.records(trained, 'eval')
    assert evals[0]['val/loss'] == pytest.approx(math.log(2), rel=1e-6)
    assert evals[0]['val/margin'] == 0 and evals[0]['val/pair_accuracy'] == 0.5
    assert evals[-1]['val/pair_accuracy'] > 0.9 and evals[-1]['val/loss'] < 0.5
    np.testing.assert_allclose(
        evals[-1]['val/margin'], evals[-1]['val/chosen_score'] - evals[-1]['val/rejected_score'],
        rtol=1e-4)
    lineage = json.loads((trained / 'lineage.json').read_text())
    assert {role: entry['run'] for role, entry in lineage['parents'].items()} == {
        'init_from': str(parent), 'ref': str(parent)}
    assert f'data mine: {data}, 45 comparisons' in ancestry.ancestors(trained).data[0]
    report = (trained / 'report.html').read_text()
    assert 'Pairs of answers' in report and '15 held out' in report
    assert runs.records(trained, file='samples.jsonl')[-1]['prompt'] == 'number 3 please'


def test_held_out_prompts_are_not_learned_from(trained):
    summary = json.loads((trained / 'data' / 'summary.json').read_text())
    assert (summary[0]['comparisons'], summary[0]['held out']) == (45, 15)
    assert json.loads((trained / 'data' / 'pairs.json').read_text()) == {
        'learned from': 45, 'held out': 15}


@pytest.mark.parametrize('method', METHODS)
def test_every_method_runs_and_its_loss_falls(method, tmp_path, parent, data):
    workdir = tmp_path / 'run'
    assert runs.run_here(argv(workdir, parent, data, arg=f'loss={method}', train__accum=2,
                              sharding__data=1, sharding__fsdp=4, sharding__tensor=2)) == 0
    evals = runs.records(workdir, 'eval')
    assert evals[-1]['val/loss'] < evals[0]['val/loss']
    assert (workdir / 'data' / 'reference-train.npz').exists() == (
        method in ('dpo', 'ipo', 'kto'))
    if method == 'kto':
        assert evals[0]['val/loss'] == pytest.approx(1.0, rel=1e-5)


def write_labelled(path, count=60):
    path.write_text(lines(*(dict(prompt=f'number {i} please', label=i % 3 > 0,
                                 completion='good thing' if i % 3 else 'bad stuff')
                            for i in range(count))))
    return path


def test_single_answers_that_are_good_or_bad(tmp_path, parent, capsys):
    """KTO needs no comparisons; losses on pairs do."""
    workdir, file = tmp_path / 'run', write_labelled(tmp_path / 'labelled.jsonl')
    command = argv(workdir, parent, '', arg='loss=kto', train__num_steps=12, train__eval_every=12)
    command[1] = command[1].replace('data=,', f'labelled={file},')
    assert runs.run_here(command) == 0
    evals = runs.records(workdir, 'eval')
    assert evals[0]['val/loss'] == pytest.approx(1.0, rel=1e-5)
    assert evals[-1]['val/loss'] < 0.95
    assert evals[-1]['val/chosen_score'] > evals[-1]['val/rejected_score']
    counts = json.loads((workdir / 'data' / 'pairs.json').read_text())
    assert counts['good answers'] == 40 and counts['bad answers'] == 20
    refused(capsys, [part.replace('loss=kto', 'loss=dpo').replace('/run', '/other')
                     for part in command], 'data.labelled', 'jaxllm.objectives.kto')


def test_the_reference_of_an_adapter(tmp_path, parent, data):
    """Of a fresh one the base without it, of a trained one that adapter: a margin of 0 at step 0,
    also on a base in four bits; and the parents are as they were."""
    before = params_of(parent)
    first, second = tmp_path / 'first', tmp_path / 'second'
    lora = dict(arg='lora', lora__rank=4, optim__lr=1e-2)
    assert runs.run_here(argv(first, parent, data, lora__base='nf4', **lora)) == 0
    assert runs.run_here(argv(second, first, data, **lora)) == 0
    for workdir in (first, second):
        evals = runs.records(workdir, 'eval')
        assert evals[0]['val/margin'] == 0
        assert evals[0]['val/loss'] == pytest.approx(math.log(2), rel=1e-6)
        assert abs(evals[-1]['val/margin']) > 0.01
    logprob = [runs.records(workdir, 'eval')[at]['val/chosen_logprob']
               for workdir, at in ((first, -1), (second, 0))]
    best = bases.open_base(first).step
    if best == 6:
        assert logprob[0] == pytest.approx(logprob[1], rel=1e-4)
    for name, x in params_of(parent).items():
        np.testing.assert_array_equal(x, before[name])
    roles = json.loads((second / 'lineage.json').read_text())['parents']
    assert roles['ref']['run'] == str(first)


@pytest.mark.long  # the trainer is that of SFT and PPO, whose kills are short
@pytest.mark.parametrize('options', [{}, dict(arg='loss=kto,lora', lora__rank=4)], ids=str)
def test_kills_leave_no_trace(options, tmp_path, parent, data, shared_cache):
    cache = dict(JAXLLM_CACHE=str(shared_cache))
    settings = dict(train__num_steps=16, train__save_every=3, train__eval_every=6) | options
    whole, workdir = tmp_path / 'whole', tmp_path / 'run'
    runs.run(argv(whole, parent, data, **settings), **cache)
    command = argv(workdir, parent, data, **settings)
    for target in (4, 10):
        process = runs.start(command, **cache)
        assert runs.wait_for(lambda at=target: runs.last_step(workdir) >= at, process)
        os.kill(process.pid, signal.SIGKILL)
        assert runs.finish(process)[0] == -signal.SIGKILL
    runs.run(command, **cache)
    runs.assert_same_run(workdir, whole, 16)


def test_the_reference_is_computed_once_and_anew_for_another_model(tmp_path, parent, data, capsys):
    workdir = tmp_path / 'run'
    command = argv(workdir, parent, data)
    assert runs.run_here(command) == 0
    assert 'log-probs of the reference' in capsys.readouterr().err
    file = workdir / 'data' / 'reference-train.npz'
    with np.load(file) as stored:
        about, found = json.loads(str(stored['about'])), stored['ref_logprobs']
    assert found.shape == (45, 2) and found.dtype == np.float32
    assert runs.run_here(command) == 0
    assert 'log-probs of the reference' not in capsys.readouterr().err
    np.savez(file, about=np.array(json.dumps(about | {'model': 'other'}, sort_keys=True)),
             ref_logprobs=0 * found)
    assert runs.run_here(command) == 0
    assert 'log-probs of the reference' in capsys.readouterr().err
    with np.load(file) as stored:
        np.testing.assert_allclose(stored['ref_logprobs'], found, rtol=1e-6)


def test_early_stopping(tmp_path, parent, data):
    workdir = tmp_path / 'run'
    assert runs.run_here(argv(workdir, parent, data, train__num_steps=40, train__patience=2,
                              optim__lr=3.0, optim__schedule='constant')) == 0
    assert runs.records(workdir, 'eval')[-1]['step'] < 40
    assert any('stopped early' in note['text'] for note in runs.records(workdir, 'note'))


def test_a_loss_of_ones_own(tmp_path, parent, monkeypatch):
    """Two files are all that a new loss takes: those that README.md shows, as they stand."""
    for path, source in documented.readme_files().items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(source, encoding='utf-8')
    monkeypatch.setattr(objectives, '__path__', [*objectives.__path__,
                                                 str(tmp_path / 'jaxllm' / 'objectives')])
    monkeypatch.chdir(runs.ROOT)
    data = tmp_path / 'pairs.jsonl'
    data.write_text(lines(*(dict(prompt=f'number {i} please', chosen='good', rejected='not so good')
                            for i in range(60))))
    workdir = tmp_path / 'run'
    command = argv(workdir, parent, data, objective__alpha=0.3)
    command[1] = command[1].replace(str(DPO), str(tmp_path / 'experiments' / 'rdpo.py'))
    assert runs.run_here(command) == 0
    evals = runs.records(workdir, 'eval')
    shorter = len('not so good') - len('good')  # tokens are bytes
    assert evals[0]['val/loss'] == pytest.approx(math.log1p(math.exp(0.3 * shorter)), rel=1e-5)
    assert evals[-1]['val/loss'] < evals[0]['val/loss']
    assert evals[-1]['val/margin'] > 0


def refused(capsys, arguments, *parts):
    assert runs.run_here(arguments) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(part in err for part in parts), err


@pytest.mark.parametrize('options, parts', [
    (dict(init_from=''), ['init_from is empty']),
    (dict(lora__base='nf4'), ['lora.rank=0', 'lora.base=float32']),
    (dict(method='jaxllm.objectives.lm'), ['no loss on pairs', 'jaxllm.objectives.dpo']),
    (dict(method='jaxllm.objectives.ipo'), ['config.objective', 'label_smoothing']),
    (dict(objective__beta=0.0), ['beta']),
    (dict(objective__robust=True), ['label_smoothing=0']),
    (dict(arg='feedback=elsewhere'), ['feedback', 'one of them']),
    (dict(arg='criterion=nice'), ["criterion='nice'", 'helpful']),
    (dict(arg='loss=kto', train__batch_size=1), ['batch_size=1', 'at least 2']),
    (dict(train__z_loss=1e-4), ['z_loss=0.0001']),
    (dict(data__pairs='some'), ["data.pairs='some'", 'best_worst']),
    (dict(data__comparisons__mine__weight=2.0), ['weight', 'max_records']),
    (dict(train__batch_size=9), ['batch_size=9 does not divide']),
], ids=str)
def test_a_config_that_cannot_be(options, parts, tmp_path, parent, data, capsys):
    refused(capsys, argv(tmp_path / 'run', parent, data, **options), *parts)
    assert not (tmp_path / 'run').exists()


def lines(*records):
    return ''.join(json.dumps(record) + '\n' for record in records)


@pytest.mark.parametrize('content, parts', [
    (lines(dict(prompt='x' * 200, chosen='a', rejected='b')), ['too long', 'seq_len=96']),
    (lines(dict(prompt='x', chosen='same', rejected='same')), ['equal responses']),
    (lines(*(dict(prompt=f'x{i}', responses=['a', 'b'], ranks=[1, 1]) for i in range(9))),
     ['0 comparisons to learn from']),
    (lines(dict(prompt='x', chosen='a', rejected='b')), ['1 different prompt']),
    (lines(*(dict(prompt=f'x{i}', chosen='a', rejected='b') for i in range(6))),
     ['fewer than train.batch_size=8']),
], ids=['too long', 'equal', 'ties', 'one prompt', 'few'])
def test_data_that_cannot_be_learned_from(content, parts, tmp_path, parent, capsys):
    path = tmp_path / 'pairs.jsonl'
    path.write_text(content)
    refused(capsys, argv(tmp_path / 'run', parent, path), *parts)


def test_a_resume_with_other_data(tmp_path, parent, data, capsys):
    other = write_pairs(tmp_path / 'pairs.jsonl', 48)
    workdir = tmp_path / 'run'
    assert runs.run_here(argv(workdir, parent, other)) == 0
    assert jax.device_count() == 8
    refused(capsys, argv(workdir, parent, data), 'another config')
