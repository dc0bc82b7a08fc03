"""The evaluation stage: files, the same twice, errors before anything compiles."""

import dataclasses
import json
import shutil

import pytest
import runs

from jaxllm.errors import InputError
from jaxllm.stages import artifact, evaluate
from jaxllm.stages.base import open_base
from jaxllm.train.checkpoint import saved_step
from jaxllm.world import spec

EVALUATE = runs.ROOT / 'experiments' / 'evaluate.py'
SHORT = dict(train__num_steps=3, train__log_every=1, train__save_every=3, train__eval_every=0,
             train__sample_every=0, sample__prompts='()')
ITEMS = [{'prompt': 'the model', 'candidates': ['learns text', 'step'], 'answer': 1, 'topic': 'a'},
         {'id': 'b', 'prompt': 'import', 'candidates': ['def', 'mesh'], 'answer': 'def'}]


@pytest.fixture(scope='module')
def run(tmp_path_factory, shared_cache, text):
    """A run without a world, never written to."""
    workdir = tmp_path_factory.mktemp('evaluated') / 'run'
    runs.run(runs.argv(workdir, text, **SHORT), devices=8, JAXLLM_CACHE=str(shared_cache))
    return workdir


@pytest.fixture
def items(tmp_path):
    path = tmp_path / 'items.jsonl'
    path.write_text('\n'.join(map(json.dumps, ITEMS)))
    return path


def _argv(run, workdir, **values):
    return ['run', f'--config={EVALUATE}', f'--workdir={workdir}',
            *runs.overrides(run=run, settings__draws=50, settings__max_documents=2,
                            settings__max_passages=4, **values)]


def test_a_run_without_a_world(run, items, tmp_path, capsys):
    first, again = tmp_path / 'first', tmp_path / 'again'
    for workdir in (first, again):
        assert runs.run_here(_argv(run, workdir, items_file=items)) == 0
    for name in ('results.json', 'items.jsonl', 'results.txt', 'overlap.jsonl'):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    results = json.loads((first / 'results.json').read_text())
    assert results['suites'] == ['perplexity', 'choice', 'extraction']
    assert (results['world'], results['step']) == (None, 3)
    assert results['overlap']['items'] == 2
    metrics = results['metrics']
    assert metrics['choice/acc']['n'] == 2 and metrics['bits_per_byte/text']['n'] == 2
    assert 6 < metrics['bits_per_byte']['value'] < 10  # after three steps: about log2(288) per byte
    rows = [json.loads(line) for line in (first / 'items.jsonl').read_text().splitlines()]
    chosen = [row for row in rows if row['suite'] == 'choice']
    assert [(row['id'], row['topic'], row['answer']) for row in chosen] == [
        ('items.jsonl:1', 'a', 'step'), ('b', None, 'def')]
    lineage = json.loads((first / 'lineage.json').read_text())
    assert lineage['parents']['run']['run'] == str(run)
    assert lineage['num_params'] == results['num_params']
    (first / 'report.html').unlink()
    assert runs.run_here(['report', first]) == 0
    page = (first / 'report.html').read_text()
    assert 'Multiple choice' in page and 'bits_per_byte/text' in page
    assert 'No curves yet' not in page


@pytest.mark.parametrize('options, parts', [
    (dict(run=''), ['config.run is empty']),
    (dict(run='nowhere'), ['config.run=nowhere', 'no run directory']),
    (dict(suites="('recall',)"), ["'recall'", 'no config.world', 'perplexity']),
    (dict(suites="('recal',)"), ["'recal' is unknown", 'recall']),
    (dict(suites="('choice',)"), ["'choice' has no items", 'items_file']),
    (dict(items_file='none.jsonl'), ['none.jsonl', 'no file']),
    (dict(text='nowhere'), ['nowhere']),
    (dict(checkpoint='first'), ["config.checkpoint='first'", 'last']),
    (dict(settings__split='dev'), ['settings.split', 'validation']),
])
def test_bad_input(options, parts, run, tmp_path, capsys):
    _refused(capsys, _argv(**{'run': run, 'workdir': tmp_path / 'x'} | options), parts)
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('lost, parts', [
    ('checkpoints', ['has no checkpoint']), ('tokenizer', ['has no tokenizer']),
    ('lineage.json', ['has not begun'])])
def test_runs_that_cannot_be_evaluated(lost, parts, run, tmp_path, capsys):
    copy = tmp_path / 'run'
    shutil.copytree(run, copy)
    shutil.rmtree(copy / lost) if (copy / lost).is_dir() else (copy / lost).unlink()
    _refused(capsys, _argv(copy, tmp_path / 'x'), [str(copy), *parts])


def test_a_damaged_config_is_named(run, tmp_path, capsys):
    copy = tmp_path / 'run'
    shutil.copytree(run, copy)
    for content, part in (('{"stage": ', 'cannot be read'), ('[]', 'has no stage')):
        (copy / 'config.json').write_text(content)
        _refused(capsys, _argv(copy, tmp_path / 'x'), [str(copy / 'config.json'), part])


def _run_folder(path, parent=None, **config):
    path.mkdir()
    (path / 'config.json').write_text(json.dumps({'stage': 'jaxllm.stages.pretrain', **config}))
    parents = {'init_from': {'run': str(parent)}} if parent else {}
    (path / 'lineage.json').write_text(json.dumps({'parents': parents, 'git': 'abc'}))
    return path


def test_the_world_of_a_run_is_looked_up_in_its_parents(tmp_path):
    world = dict(seed=0, scale='nano', intervention=dataclasses.asdict(spec.Intervention()))
    base = _run_folder(tmp_path / 'base', world=world)
    child = _run_folder(tmp_path / 'child', parent=base)
    with pytest.raises(InputError, match='does not say which world'):
        evaluate.world_of(child)
    record = json.loads((base / 'lineage.json').read_text())
    record['world'] = spec.WorldSpec(0, 'nano', spec.Intervention()).fingerprint
    (base / 'lineage.json').write_text(json.dumps(record))
    assert evaluate.world_of(child) == world
    base.rename(tmp_path / 'elsewhere')
    with pytest.raises(InputError, match=f'come from {base}, which is not there'):
        evaluate.world_of(child)
    assert evaluate.world_of(_run_folder(tmp_path / 'plain')) is None


def test_two_rows_with_one_id():
    rows = [{'suite': 'recall', 'id': 'a'}, {'suite': 'answers', 'id': 'a'}]
    evaluate.check_rows(rows)
    with pytest.raises(InputError, match="suite answers has 2 rows with the id 'a'"):
        evaluate.check_rows([*rows, rows[1]])


def test_the_last_and_the_best_checkpoint(run, tmp_path):
    for checkpoint in ('last', 'best'):
        assert artifact.load(run, checkpoint).step == saved_step(run / 'checkpoints', checkpoint)
    with pytest.raises(InputError, match="checkpoint='first'"):
        artifact.load(run, 'first')
    with pytest.raises(InputError, match='no checkpoint of step 999'):
        open_base(run, 999)


def test_a_bad_item_and_a_repeated_id(run, tmp_path, capsys):
    path = tmp_path / 'items.jsonl'
    path.write_text(json.dumps(ITEMS[1]) + '\n{"prompt": "x"}\n')
    _refused(capsys, _argv(run, tmp_path / 'x', items_file=path), [f'{path}:2', 'candidates'])
    path.write_text(2 * (json.dumps(ITEMS[1]) + '\n'))
    _refused(capsys, _argv(run, tmp_path / 'x', items_file=path), [str(path), "'b'"])


def test_a_dry_run_says_what_would_be_asked(run, items, tmp_path, capsys):
    assert runs.run_here([*_argv(run, tmp_path / 'x', items_file=items), '--dry_run']) == 0
    assert 'perplexity, choice, extraction' in capsys.readouterr().out


def _refused(capsys, arguments, parts):
    capsys.readouterr()
    assert runs.run_here(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines()
               if line.startswith('jaxllm: ')]
    for part in parts:
        assert part in line, line
