"""Supervised fine-tuning: learning to answer and to stop, adapters, exact resume, bad input."""

import json
import shutil
import signal

import numpy as np
import pytest
import runs

from jaxllm import main
from jaxllm.data import tokenizer
from jaxllm.stages import artifact, base

SFT = runs.ROOT / 'experiments' / 'sft.py'
WORDS = ('red', 'blue', 'green', 'round', 'flat', 'loud', 'soft', 'cold')


def write_pairs(path, count=64):
    """Questions about numbers whose answers are words; the last digit decides."""
    path.write_text(''.join(json.dumps({
        'prompt': f'number {i} please', 'response': f'it is {WORDS[i % 8]}'}) + '\n'
        for i in range(count)))
    return path


def argv(workdir, parent, data, *, arg='', **values):
    defaults = dict(init_from=parent, train__num_steps=6, train__log_every=1, train__eval_every=2,
                    train__save_every=2, train__sample_every=3, train__patience=0,
                    train__batch_size=8, data__seq_len=64, optim__warmup_steps=1, eval__max_rows=8,
                    chat__stop_prompts=4, sample__sampling__max_new_tokens=4,
                    metrics__tensorboard=False, sample__prompts="('number 3 please',)",
                    data__holdout_share=0.2)
    config = f'{SFT}:data={data}' + (f',{arg}' if arg else '')
    return ['run', f'--config={config}', f'--workdir={workdir}',
            *runs.overrides(**defaults | values)]


LORA = dict(arg='lora', lora__rank=4)


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
def adapted(tmp_path_factory, shared_cache, parent, data):
    """A run that trained an adapter."""
    workdir = tmp_path_factory.mktemp('adapted') / 'lora'
    runs.run(argv(workdir, parent, data, **LORA), devices=8, JAXLLM_CACHE=str(shared_cache))
    return workdir


def hashes(path):
    return base.tensor_hashes(base.load_plain(base.open_base(path), artifact.make_mesh()))


def test_it_learns_to_answer_and_to_stop(tmp_path, parent, data):
    """Sixty-four pairs by heart: greedy answers are right and end by themselves."""
    workdir = tmp_path / 'run'
    assert runs.run_here(argv(workdir, parent, data, train__num_steps=150, train__eval_every=150,
                              train__save_every=150, optim__lr=1e-2, train__sample_every=0,
                              chat__stop_prompts=20, data__holdout_share=0.05)) == 0
    losses = runs.losses(workdir)
    assert losses[150] < 0.1 * losses[1]
    stops = json.loads((workdir / 'stops.json').read_text())
    assert stops['asked'] >= 1 and stops['share'] == 1.0
    sample = runs.records(workdir, file='samples.jsonl')[-1]
    assert sample['finish'] in ('stop', 'length') and sample['completion'].startswith('it')
    gaps = [line['val/gap'] for line in runs.records(workdir, 'eval')]
    np.testing.assert_allclose(gaps[-1], runs.records(workdir, 'eval')[-1]['val/loss']
                               - runs.records(workdir, 'eval')[-1]['train_sample/loss'])
    summary = json.loads((workdir / 'data' / 'summary.json').read_text())
    # 'it is WORD' and the end token of every conversation.
    assert summary[0]['learned tokens'] == sum(len(f'it is {WORDS[i % 8]}') + 1 for i in range(64))
    assert 'Validation loss' in (workdir / 'report.html').read_text()


@pytest.mark.parametrize('options', [
    {}, LORA, pytest.param(LORA | dict(lora__dora=True), marks=pytest.mark.long),
    LORA | dict(lora__base='nf4'),
    pytest.param(LORA | dict(lora__base='int8', lora__train_embeddings=True),
                 marks=pytest.mark.long), dict(neftune_alpha=5.0),
    dict(arg='replay=0.5'), dict(fresh_weights=True), dict(chat__template='mistral'),
    dict(compute__remat='full', compute__dtype='bfloat16')], ids=str)
def test_variants(options, tmp_path, parent, data):
    workdir = tmp_path / 'run'
    assert runs.run_here(argv(workdir, parent, data, **options)) == 0
    losses, evals = runs.losses(workdir), runs.records(workdir, 'eval')
    assert losses.keys() == set(range(1, 7)) and losses[6] < losses[1]
    assert {'val/loss', 'val/gap', 'val/mine/loss'} <= evals[0].keys()
    assert ('val/docstrings/loss' in evals[0]) == (options == dict(arg='replay=0.5'))
    lineage = json.loads((workdir / 'lineage.json').read_text())
    assert lineage['parents']['init_from']['run'] == str(parent)
    if 'lora__rank' in options:
        assert lineage['num_trained'] < lineage['num_params']
    run = artifact.load(workdir)
    assert run.template is not None and run.stop_ids


def test_an_adapter_changes_nothing_of_its_base(adapted, parent):
    before = hashes(parent)
    run, old = artifact.load(adapted), artifact.load(parent)
    assert hashes(parent) == before
    for leaves, plain in ((run.params['layers']['layer_0']['mlp']['up'],
                           old.params['layers']['layer_0']['mlp']['up']),):
        np.testing.assert_array_equal(leaves['kernel'], plain['kernel'])
        assert np.asarray(leaves['lora_b']).any()
    assert hashes(adapted) != before


def test_a_run_may_start_from_an_adapter(tmp_path, adapted, data):
    """Its base and it, merged, are what the new adapter stands on: at step 0 nothing changes."""
    workdir = tmp_path / 'run'
    assert runs.run_here(argv(workdir, adapted, data, **LORA)) == 0
    last = min(line['val/loss'] for line in runs.records(adapted, 'eval'))
    assert runs.records(workdir, 'eval')[0]['val/loss'] == pytest.approx(last, rel=1e-5)


def test_a_run_may_start_from_a_model_file(tmp_path, parent, data, capsys):
    """A GGUF file that the base was exported to: the same start, and its hash in the lineage."""
    file = tmp_path / 'base.gguf'
    assert main.main(['export', str(parent), '--format=gguf', '--kind=f32', f'--out={file}']) == 0
    losses = []
    for name, init_from in (('file', file), ('run', parent)):
        assert runs.run_here(argv(tmp_path / name, init_from, data, **LORA,
                                  train__num_steps=2)) == 0
        losses.append(runs.records(tmp_path / name, 'eval')[0]['val/loss'])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    lineage = json.loads((tmp_path / 'file' / 'lineage.json').read_text())
    assert lineage['parents']['init_from']['run'] == str(file)
    capsys.readouterr()
    assert main.main(['lineage', str(tmp_path / 'file')]) == 0
    assert 'model file, llama, sha256' in capsys.readouterr().out
    assert main.main(['revert', str(tmp_path / 'file')]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    file.write_bytes(file.read_bytes()[:-8] + b'ZZZZZZZZ')
    refused(capsys, ['chat', f'--workdir={tmp_path / "file"}', '--prompt=x'], 'another model')


@pytest.mark.kill
@pytest.mark.parametrize('options', [
    pytest.param({}, id='full', marks=pytest.mark.long),
    pytest.param(LORA | dict(neftune_alpha=5.0), id='lora')])
def test_killed_runs_end_as_whole_ones(options, tmp_path, parent, data, shared_cache):
    settings = options | dict(train__num_steps=24, train__save_every=3, train__eval_every=3)
    whole, workdir = tmp_path / 'whole', tmp_path / 'killed'
    cache = dict(JAXLLM_CACHE=str(shared_cache))
    runs.run(argv(whole, parent, data, **settings), **cache)
    command = argv(workdir, parent, data, **settings)
    for target, how in ((7, signal.SIGKILL), (17, signal.SIGTERM)):
        process = runs.start(command, **cache)
        assert runs.wait_for(lambda at=target: runs.last_step(workdir) >= at, process)
        process.send_signal(how)
        code, _, err = runs.finish(process)
        assert code == (143 if how == signal.SIGTERM else -how), err
    runs.run(command, **cache)
    arrays = runs.assert_same_run(workdir, whole, 24)
    assert any('lora_a' in name for name in arrays) == bool(options)


def test_early_stopping_keeps_the_best(tmp_path, parent, data):
    """With far too large a step the loss only rises: the run ends after two evaluations more."""
    workdir = tmp_path / 'run'
    assert runs.run_here(argv(workdir, parent, data, train__num_steps=40, train__patience=2,
                              optim__lr=3.0, optim__schedule='constant')) == 0
    evals = runs.records(workdir, 'eval')
    best = min(range(len(evals)), key=lambda i: evals[i]['val/loss'])
    assert len(evals) == best + 3 and evals[-1]['step'] < 40
    assert any('stopped early' in note['text'] for note in runs.records(workdir, 'note'))
    assert artifact.load(workdir).step == max(evals[best]['step'], 2)
    assert (workdir / 'done.json').exists()


def refused(capsys, arguments, *parts):
    assert runs.run_here(arguments) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and all(part in err for part in parts), err


@pytest.mark.parametrize('options, parts', [
    (dict(init_from=''), ['init_from is empty', 'FILE.gguf']),
    (dict(init_from='nowhere.gguf'), ['nowhere.gguf does not exist']),
    (dict(lora__rank=4, lora__targets="('attention/z',)"), ["'attention/z' matches no layer"]),
    (dict(lora__rank=400), ['lora.rank=400 must be from 1 to 24']),
    (dict(chat__template='alpaca'), ["'alpaca' is unknown", 'chatml']),
    (dict(chat__template='gemma'), ['gemma ends answers with']),
    (dict(fresh_weights=True, lora__rank=4), ['fresh_weights=True with an adapter']),
    (dict(neftune_alpha=-1.0), ['neftune_alpha=-1.0']),
    (dict(train__batch_size=9), ['batch_size=9 does not divide']),
    (dict(train__patience=2, train__eval_every=3), ['must divide train.eval_every=3']),
], ids=str)
def test_a_config_that_cannot_be(options, parts, tmp_path, parent, data, capsys):
    refused(capsys, argv(tmp_path / 'run', parent, data, **options), *parts)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('content, parts', [
    ('', ['no conversation', 'no record at all']),
    ('{"prompt": "a", "response": "b"}\n{"prompt": \n', ['pairs.jsonl:2', 'bad JSON']),
    ('{"messages": [{"role": "oracle", "content": "x"}]}\n' * 2, ['pairs.jsonl:1', 'oracle']),
    ('{"messages": [{"role": "user", "content": "x"}]}\n' * 2, ['pairs.jsonl:1', 'no answer']),
    (json.dumps({'prompt': 'x' * 200, 'response': 'y'}) + '\n', ['pairs.jsonl:1', 'too long']),
], ids=['empty', 'broken', 'role', 'no answer', 'too long'])
def test_data_that_cannot_be_learned_from(content, parts, tmp_path, parent, capsys):
    path = tmp_path / 'pairs.jsonl'
    path.write_text(content)
    assert runs.run_here(argv(tmp_path / 'run', parent, path)) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(part in err for part in parts), err


def test_chat_with_a_model_that_answers(adapted, parent, tmp_path, capsys):
    one = ['chat', f'--workdir={adapted}', '--temperature=0', '--max_new_tokens=5']
    assert main.main([*one, '--prompt=number 3 please']) == 0
    assert capsys.readouterr().out.endswith('\n')
    (tmp_path / 'm.json').write_text(json.dumps([{'role': 'user', 'content': 'number 3 please'}]))
    assert main.main([*one, f'--messages={tmp_path / "m.json"}', '--system=Be brief.']) in (0, 2)
    capsys.readouterr()
    for arguments, parts in (
            (['chat', f'--workdir={parent}', '--system=x', '--prompt=x'], ['base model']),
            ([*one, f'--messages={tmp_path}/none.json'], ['none.json', 'JSON list']),
            ([*one, '--prompt=' + 'x' * 3000], ['3', 'context'])):
        refused(capsys, arguments, *parts)


def test_talking_with_commands(adapted, monkeypatch, capsys):
    lines = iter(['number 3 please', 'and 4?', '/system Be brief.', '/probs hi', '/reset',
                  '/raw def', '/temperature 0', '/nonsense', '/help', '/quit'])
    monkeypatch.setattr('builtins.input', lambda prompt: next(lines))
    assert main.main(['chat', f'--workdir={adapted}', '--max_new_tokens=4']) == 0
    out = capsys.readouterr().out
    assert 'a chat model. /help for help.' in out and '/nonsense is no command' in out
    assert out.count('%') == 10 and '/raw TEXT' in out


def test_talking_to_a_chain(adapted, parent, tmp_path, monkeypatch, capsys):
    """Two runs as the steps of a chain: switching, comparing, what might have been written."""
    (tmp_path / 'base').symlink_to(parent)
    (tmp_path / 'sft').symlink_to(adapted)
    (tmp_path / 'config.json').write_text('{"stage": "jaxllm.stages.chain", "steps": {}}')
    (tmp_path / 'lineage.json').write_text('{"steps": ["base", "sft", "aligned"]}')

    def say(*lines):
        left = iter((*lines, '/quit'))
        monkeypatch.setattr('builtins.input', lambda prompt: next(left))
        assert main.main(['chat', f'--workdir={tmp_path}', '--max_new_tokens=4']) == 0
        return capsys.readouterr().out

    out = say('/probs', '/compare', 'number 3 please', '/probs', '/compare', '/model nobody')
    assert f'{tmp_path}/sft, step 6: a chat model. /help for help.' in out
    assert 'Models: base, sft;' in out
    assert 'no answer to look at yet' in out and 'nothing to ask yet' in out
    assert out.count('instead') == 1 and out.count('%') >= 6
    assert out.index("--- base, asked as 'Question: ...") < out.index('--- sft\n')
    assert "'nobody' is no model here; there are base, sft, and this is sft" in out
    out = say('/model base', 'number 3 please', '/system x', '/help', '/model sft', '/help')
    assert 'a base model, asked as' in out and 'knows no system prompt' in out
    assert out.count('/compare TEXT') == 2 and out.count('/system TEXT') == 1


def test_a_record_shown(data, adapted, capsys):
    assert main.main(['data', 'show', str(data), f'--model={adapted}', '--record=2']) == 0
    out = capsys.readouterr().out
    assert 'record 2 of 64' in out and f'{data}:2' in out
    assert '[i] [t] [·] [i] [s] [·] [b] [l] [u] [e]' in out
    learned = len('it is blue') + 1
    assert f'{learned} of them are learned' in out
    refused(capsys, ['data', 'show', str(data), '--record=99'], '--record=99', '1 to 64')


def test_a_tokenizer_of_another_model(tmp_path, parent, data, capsys):
    other = tmp_path / 'other'
    shutil.copytree(parent, other)
    shutil.rmtree(other / 'tokenizer')
    tokenizer.char_tokenizer(['abc' * 100], 291).save(other / 'tokenizer')
    code = runs.run_here(argv(tmp_path / 'run', other, data))
    err = capsys.readouterr().err
    assert code == 2 and '291' in err and '288' in err
