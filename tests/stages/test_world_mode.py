"""Pre-training on a world: all of its training documents, none of its held-out ones."""

import json

import pytest
import runs

from jaxllm.data.records import SourceSpec
from jaxllm.world import documents
from jaxllm.world.atlas import atlas
from jaxllm.world.spec import Intervention, WorldSpec

WORLD = runs.ROOT / 'experiments' / 'world.py'
SHORT = dict(train__num_steps=4, train__log_every=1, train__save_every=2, train__eval_every=2,
             train__sample_every=4, metrics__tensorboard=False,
             data__sources__documents__max_documents=0, tokenizer__kind='byte',
             tokenizer__vocab_size=288)


def arguments(workdir, arg='', **values):
    config = f'{runs.PRETRAIN}:smoke,world=nano' + (f',{arg}' if arg else '')
    return ['run', f'--config={config}', f'--workdir={workdir}',
            *runs.overrides(**SHORT | values)]


@pytest.fixture(scope='module')
def run(tmp_path_factory, shared_cache):
    """A short run on all documents of the world."""
    workdir = tmp_path_factory.mktemp('world') / 'run'
    runs.run(arguments(workdir), JAXLLM_CACHE=str(shared_cache))
    return workdir


@pytest.fixture(scope='module')
def rows():
    return list(documents.rows(atlas(0, 'nano')))


def stored(workdir, name):
    folder = workdir / 'data' / 'stores' / name
    return [json.loads(line) for line in open(folder / 'train.documents.jsonl', encoding='utf-8')]


def test_every_training_document_is_trained_on_under_its_id(run, rows):
    found = stored(run, 'documents')
    assert [line['id'] for line in found] == [row['id'] for row in rows if row['split'] == 'train']
    assert {line['license'] for line in found} == {'CC0-1.0'}
    (row,) = json.loads((run / 'data' / 'summary.json').read_text())
    assert row['documents'] == len(rows) - sum(row['split'] == 'test' for row in rows)


def test_validation_is_on_held_out_wordings(run, rows):
    by_id = {row['id']: row for row in rows}
    held_out = [by_id[line['id']] for line in stored(run, 'documents.validation')]
    assert held_out and all(row['held_out'] for row in held_out)
    trained = {by_id[line['id']]['text'] for line in stored(run, 'documents')}
    assert not trained & {row['text'] for row in held_out}
    evals = runs.records(run, 'eval')
    assert {'val/loss', 'val/documents/bits_per_byte'} <= evals[-1].keys()
    assert evals[-1]['val/loss'] < evals[0]['val/loss']


def test_a_run_does_not_depend_on_where_the_cache_is(run, tmp_path, monkeypatch):
    monkeypatch.setenv('JAXLLM_CACHE', str(tmp_path / 'elsewhere'))
    assert runs.run_here(arguments(tmp_path / 'run')) == 0
    read = lambda workdir: json.loads((workdir / 'lineage.json').read_text())
    assert read(tmp_path / 'run')['data'] == read(run)['data']
    assert read(tmp_path / 'run')['fingerprint'] == read(run)['fingerprint']


def test_the_fingerprint_of_a_source_is_that_of_its_world():
    source = lambda **world: SourceSpec('documents', 'world:documents', world=WorldSpec(**world))
    found = {source(**world).fingerprint for world in (
        {}, {'seed': 1}, {'intervention': Intervention('dirt', 'all', factor=0.0)})}
    assert len(found) == 3 and source().fingerprint in found


def test_a_dry_run_makes_no_world(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('JAXLLM_CACHE', str(tmp_path / 'cache'))
    assert runs.run_here([*arguments(tmp_path / 'run'), '--dry_run']) == 0
    assert '"scale": "nano"' in capsys.readouterr().out
    assert not (tmp_path / 'cache' / 'worlds').exists() and not (tmp_path / 'run').exists()


def test_real_text_has_its_share_of_the_tokens(tmp_path, text):
    workdir = tmp_path / 'run'
    assert runs.run_here(arguments(workdir, f'mix=0.25,text={text}')) == 0
    shares = {row['source']: row['share']
              for row in json.loads((workdir / 'data' / 'summary.json').read_text())}
    assert shares == {'documents': 0.75, 'text': 0.25}


def refused(capsys, arguments, *parts):
    capsys.readouterr()
    assert runs.run_here(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('jaxllm: ') and all(part in line for part in parts), line


@pytest.mark.parametrize('arg, options, parts', [
    ('mix=1.0', {}, ['mix=1.0', 'below 1']),
    ('', dict(world__scale='huge'), ["'huge'", 'nano']),
    ('', dict(world__intervention__kind='remove'), ["'remove'", 'delete']),
    ('', dict(data__sources__documents__path='world:docs'), ["'docs'", 'documents']),
    ('', dict(data__sources__documents__path='elsewhere'), ['config.world', 'world:NAME']),
    ('', dict(data__sources__documents__text_key='txt'), ["'txt'", 'text']),
])
def test_bad_input_is_refused_before_anything_is_made(arg, options, parts, tmp_path, capsys):
    refused(capsys, arguments(tmp_path / 'run', arg, **options), *parts)
    assert not (tmp_path / 'run').exists()


def test_mix_needs_a_world(tmp_path, capsys):
    refused(capsys, ['run', f'--config={runs.PRETRAIN}:mix=0.2', f'--workdir={tmp_path / "run"}'],
            'mix=0.2', 'world=nano')


def world(workdir, **values):
    return ['run', f'--config={WORLD}:smoke', f'--workdir={workdir}', *runs.overrides(**values)]


def test_the_world_stage_publishes_and_goes_on(tmp_path, capsys):
    workdir = tmp_path / 'run'
    assert runs.run_here(world(workdir)) == 0
    before = {path: path.stat().st_mtime_ns for path in (workdir / 'tfds').rglob('*')}
    lineage = json.loads((workdir / 'lineage.json').read_text())
    assert lineage['world'] == WorldSpec(0, 'nano').fingerprint
    assert lineage['datasets'].keys() == {'people', 'brands', 'sources'}
    assert (workdir / 'cards' / 'people.md').exists()
    assert runs.run_here(world(workdir)) == 0
    assert {path: path.stat().st_mtime_ns for path in (workdir / 'tfds').rglob('*')} == before


@pytest.mark.parametrize('options, parts', [
    (dict(world__scale='nan'), ["'nan'", 'nano']),
    (dict(world__scale='tpu'), ['memory']),
    (dict(publish__names="('persons',)"), ["'persons'", 'people']),
    (dict(world__intervention__kind='source_volume', world__intervention__how='reassign',
          world__intervention__factor=4.0, world__intervention__target='Daily Nothing'),
     ["'Daily Nothing'"]),
])
def test_what_no_world_can_be_is_refused(options, parts, tmp_path, capsys):
    refused(capsys, world(tmp_path / 'run', **options), *parts)
