"""Pre-training on a world: all of its training documents, none of its held-out ones."""

import json

import pytest
import runs

from jaxllm import config as configs
from jaxllm.config import section
from jaxllm.data.records import SourceSpec
from jaxllm.stages import corpus, pretrain
from jaxllm.world import documents
from jaxllm.world.atlas import atlas
from jaxllm.world.spec import Intervention, WorldSpec

WORLD = runs.ROOT / 'experiments' / 'world.py'


def stores_of(folder, max_documents=0):
    """The stores of a world run with a tokenizer of bytes, without the training."""
    config = configs.load([f'--config={runs.PRETRAIN}:world=nano', *runs.overrides(
        tokenizer__kind='byte', tokenizer__vocab_size=288,
        data__sources__documents__max_documents=max_documents)])
    specs = corpus.source_specs(config)
    tokenizer = corpus.make_tokenizer(
        section(corpus.TokenizerConfig, config.tokenizer, 'tokenizer'), specs,
        folder / 'tokenizer')
    return corpus.make_stores(config.data, specs, tokenizer, folder / 'data')


@pytest.fixture(scope='module')
def store(tmp_path_factory, shared_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAXLLM_CACHE', str(shared_cache))
        return stores_of(tmp_path_factory.mktemp('world'))['documents']


@pytest.fixture(scope='module')
def rows():
    return list(documents.rows(atlas(0, 'nano')))


def ids(split):
    lines = (split.folder / f'{split.name}.documents.jsonl').read_text().splitlines()
    return [json.loads(line)['id'] for line in lines]


def test_every_training_document_is_trained_on_under_its_id(store, rows):
    assert ids(store.train) == [row['id'] for row in rows if row['split'] == 'train']


def test_validation_is_on_known_facts_in_new_texts_and_no_held_out_wording_is_read(store, rows):
    by_id = {row['id']: row for row in rows}
    told = [by_id[key] for key in ids(store.validation)]
    # 224 people are written about, four attributes.
    assert len(told) == 224 * 4 and not any(row['held_out'] for row in told)
    trained = [by_id[key] for key in ids(store.train)]
    assert {row['split'] for row in told} == {'validation'}
    assert {row['split'] for row in trained} == {'train'}
    fact = lambda row: (row['subject'], row['attribute'], row['value'])
    assert set(map(fact, told)) <= set(map(fact, trained))
    texts = {row['text'] for row in trained}
    assert len(texts) > 10_000 and not texts & {row['text'] for row in rows
                                                if row['split'] != 'train'}


def test_a_store_does_not_depend_on_where_the_cache_is(store, tmp_path, monkeypatch):
    here = stores_of(tmp_path / 'here', 50)['documents']
    monkeypatch.setenv('JAXLLM_CACHE', str(tmp_path / 'elsewhere'))
    other = stores_of(tmp_path / 'there', 50)['documents']
    assert {path.name for path in (tmp_path / 'elsewhere' / 'worlds').glob('*/tfds/*')} == {
        'documents', 'readings'}  # and nothing that pre-training does not read
    assert other.train.fingerprint == here.train.fingerprint != store.train.fingerprint
    assert other.validation.fingerprint == here.validation.fingerprint
    (tmp_path / 'elsewhere').rename(tmp_path / 'gone')
    again = stores_of(tmp_path / 'there', 50)['documents']
    assert again.train.fingerprint == here.train.fingerprint
    assert not (tmp_path / 'elsewhere').exists()  # a run that goes on needs the world no more


def arguments(workdir, arg='', **values):
    config = f'{runs.PRETRAIN}:smoke,world=nano' + (f',{arg}' if arg else '')
    return ['run', f'--config={config}', f'--workdir={workdir}', *runs.overrides(**values)]


def test_the_fingerprint_of_a_source_is_that_of_its_world():
    source = lambda **world: SourceSpec('documents', 'world:documents', world=WorldSpec(**world))
    found = {source(**world).fingerprint for world in (
        {}, {'seed': 1}, {'intervention': Intervention('dirt', 'all', factor=0.0)})}
    assert len(found) == 3 and source().fingerprint in found


def test_the_world_is_not_made_before_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXLLM_CACHE', str(tmp_path / 'cache'))
    pretrain.prepare(configs.load([f'--config={runs.PRETRAIN}:smoke,world=nano']))
    assert not (tmp_path / 'cache').exists()


def test_the_world_follows_the_seed_and_validates_on_its_own_split():
    load = lambda *options: configs.load([f'--config={runs.PRETRAIN}:world=nano,mix=0.2', *options])
    config = load('--config.seed=5')
    assert config.world.seed == 5
    assert config.data.sources.documents.validation_split == 'validation'
    assert 'validation_split' not in config.data.sources.topics
    config = load('--config.world.seed=5')  # another world for the same initialisation
    assert (config.world.seed, config.seed) == (5, 0)
    weights = {name: source.weight for name, source in config.data.sources.items()}
    assert weights == pytest.approx({'documents': 0.5, 'readings': 0.3, 'docstrings': 0.4 / 3,
                                    'topics': 0.2 / 3})
    assert config.model.d_model == 128 and config.model.num_layers == 2


def test_a_run_on_a_world_and_real_text(tmp_path, text):
    workdir = tmp_path / 'run'
    assert runs.run_here(arguments(workdir, f'mix=0.25,text={text}', tokenizer__kind='byte',
                                   tokenizer__vocab_size=288, metrics__tensorboard=False)) == 0
    shares = {row['source']: row['share']
              for row in json.loads((workdir / 'data' / 'summary.json').read_text())}
    assert shares == pytest.approx({'documents': 0.45, 'readings': 0.3, 'text': 0.25})
    evals = runs.records(workdir, 'eval')
    assert {'val/documents/loss', 'val/text/loss'} <= evals[-1].keys()
    assert evals[-1]['val/documents/loss'] < evals[0]['val/documents/loss']


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
    ('reading=0.9,mix=0.2', {}, ['reading=0.9', 'below 1']),
    ('reading=0', dict(data__sources__documents__path='elsewhere'), ['config.world', 'world:NAME']),
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
    (dict(publish__names="('persons',)"), ["'persons'", 'people']),
    (dict(world__intervention__kind='source_volume', world__intervention__how='reassign',
          world__intervention__factor=4.0, world__intervention__target='Daily Nothing'),
     ["'Daily Nothing'", 's15']),
])
def test_what_no_world_can_be_is_refused(options, parts, tmp_path, capsys):
    refused(capsys, world(tmp_path / 'run', **options), *parts)
    assert not (tmp_path / 'run').exists()


def test_a_world_that_does_not_fit_memory_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('jaxllm.world.atlas.available_memory', lambda: 2**20)
    refused(capsys, world(tmp_path / 'run'), 'memory', "'nano'", 'GiB')


def test_a_dry_run_of_the_world_counts(capsys):
    assert runs.run_here(['run', f'--config={WORLD}', '--dry_run']) == 0
    out = capsys.readouterr().out
    # 32 people in each of the bins 0, 1, 2, 4, 8, 16, 32, 64; four attributes.
    assert 'people      256\n' in out and f'documents   {32 * 127 * 4:,} that' in out
    assert 'memory' in out and 'counts' in out
