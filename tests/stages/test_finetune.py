"""Five steps on one's own data: through the command line, to a report; what is done stays done."""

import json

import pytest
import runs

from jaxllm import main
from jaxllm.stages import artifact

EXAMPLE = runs.ROOT / 'experiments' / 'finetune_example.jsonl'
SMALL = runs.overrides(evaluate__max_new_tokens=6, evaluate__max_prompts=3, evaluate__max_probes=2,
                       evaluate__seeds=2, evaluate__seed_prompts=2)


@pytest.fixture(scope='module')
def bases(tmp_path_factory, shared_cache, text):
    """Two bases; the second has learned a little more."""
    folder = tmp_path_factory.mktemp('bases')
    for name, steps in (('one', 4), ('two', 12)):
        runs.run(runs.argv(folder / name, text, train__num_steps=steps), devices=8,
                 JAXLLM_CACHE=str(shared_cache))
    return folder


def argv(workdir, *models, data=EXAMPLE, more=()):
    return ['finetune', f'--data={data}', *(f'--model={model}' for model in models),
            f'--workdir={workdir}', *SMALL, *more]


def test_from_a_file_to_a_report(bases, tmp_path, capsys):
    workdir = tmp_path / 'mine'
    command = argv(workdir, bases / 'one', bases / 'two',
                   more=['--epochs=1', '--rank=4'])
    assert runs.run_here(command) == 0
    out = capsys.readouterr()
    for step in range(1, 6):
        assert f'step {step} of 5' in out.err
    assert 'recommended: ' in out.err and '40 records read, 0 dropped' in out.err
    found = json.loads((workdir / 'finetune.json').read_text())
    assert found['prepare']['counts']['train'] + found['prepare']['counts']['held_out'] == 40
    assert {row['model'] for row in found['candidates']} == {
        str(bases / name) for name in ('one', 'two')}
    assert {'nll', 'score', 'follows', 'format', 'fact/right', 'general'} <= (
        found['compared'].keys())
    assert found['compared']['nll']['n'] == found['prepare']['counts']['held_out']
    assert found['reasons']['rank'] == found['reasons']['epochs'] == 'as you asked'
    assert artifact.load(workdir / 'sft').base.lora.rank == 4
    lineage = json.loads((workdir / 'lineage.json').read_text())
    assert set(lineage['parents']) == {'init_from', 'result'}
    page = (workdir / 'report.html').read_text()
    for words in ('Did it help?', 'Side by side', 'Step 1: your data', 'jaxllm revert',
                  'Words used here', 'Ride well'):
        assert words in page
    assert 'src="http' not in page and 'href="http' not in page
    # Again: nothing is trained or asked anew, and the numbers are the same.
    before = (workdir / 'after.json').stat().st_mtime_ns
    assert runs.run_here(command) == 0
    assert (workdir / 'after.json').stat().st_mtime_ns == before
    again = json.loads((workdir / 'finetune.json').read_text())
    assert again['compared'] == found['compared']
    capsys.readouterr()
    assert main.main(['report', str(workdir)]) == 0


@pytest.mark.long
def test_settings_are_swept_one_at_a_time(bases, tmp_path):
    workdir = tmp_path / 'mine'
    assert runs.run_here(argv(workdir, bases / 'one',
                              more=['--epochs=1', '--rank=4', '--sweep'])) == 0
    found = json.loads((workdir / 'finetune.json').read_text())
    assert [row['name'] for row in found['sweep']][:2] == ['as chosen', 'half the learning rate']
    assert 'One setting changed' in (workdir / 'report.html').read_text()


def test_preferences_and_changed_data(bases, tmp_path, capsys):
    data = tmp_path / 'pairs.jsonl'
    rows = [json.loads(line) for line in EXAMPLE.read_text().splitlines()]
    data.write_text(''.join(json.dumps({'prompt': row['prompt'], 'chosen': row['response'],
                                        'rejected': 'Go away.'}) + '\n' for row in rows))
    command = argv(tmp_path / 'mine', bases / 'two', data=data,
                   more=['--method=full', '--epochs=1'])
    assert runs.run_here(command) == 0
    found = json.loads((tmp_path / 'mine' / 'finetune.json').read_text())
    assert found['compared']['preferred']['n'] == found['prepare']['counts']['held_out']
    assert artifact.load(tmp_path / 'mine' / 'sft').base.lora is None
    capsys.readouterr()
    data.write_text(data.read_text() + data.read_text()[:300].split('\n')[0] + '\n')
    assert runs.run_here(command) == 2
    assert 'has changed since' in capsys.readouterr().err


def test_a_dry_run_trains_nothing(bases, tmp_path, capsys):
    assert runs.run_here([*argv(tmp_path / 'x', bases / 'one'), '--dry_run']) == 0
    out = capsys.readouterr().out
    assert 'qlora' in out and 'minutes' in out and '40 records read' in out
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('content, parts', [
    ('', ['is empty']),
    ('{"prompt": "a", "response": "b"}\n', ['1 record(s)', 'at least 4']),
    ('{"prompt": "a", "response": "b"}\n{"prompt":\n', ['2 record(s)']),
    ('{"text": "a"}\n' * 9, ['pairs.jsonl:1', 'unknown format']),
    ('{"messages": [{"role": "oracle", "content": "x"}]}\n' * 9, ['pairs.jsonl:1', 'oracle']),
], ids=['empty', 'one', 'broken', 'format', 'role'])
def test_data_that_is_none(content, parts, bases, tmp_path, capsys):
    path = tmp_path / 'pairs.jsonl'
    path.write_text(content)
    assert runs.run_here(argv(tmp_path / 'x', bases / 'one', data=path)) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(part in err for part in parts), err


@pytest.mark.parametrize('arguments, parts', [
    (['--model=nowhere.gguf'], ['nowhere.gguf does not exist']),
    ([], ['no model', '--model=smollm2.gguf']),
    (['--model=@one', '--rank=4000'], ['lora.rank=4000 must be from 1 to']),
    (['--model=@one', '--drop=everything'], ["'everything' is unknown", 'near_duplicate']),
    (['--model=@one', '--held_out=nothing.jsonl'], ["held_out='nothing.jsonl' is no file"]),
    (['--model=@one', '--template=nothing'], ["'nothing' is unknown"]),
    (['--model=@one', '--config.evaluate.seeds=0'], ['evaluate.seeds=0']),
    (['--model=@one', '--replay=1.5'], ['settings.replay=1.5 must be below 1']),
], ids=str)
def test_arguments_that_cannot_be(arguments, parts, bases, tmp_path, capsys):
    arguments = [x.replace('@one', str(bases / 'one')) for x in arguments]
    code = runs.run_here(['finetune', f'--data={EXAMPLE}', f'--workdir={tmp_path / "x"}',
                          *arguments])
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and all(part in err for part in parts), err
