"""The filters in front of the stores: made once, the same again, in the report, off by default."""

import json

import pytest
import runs

from jaxllm import config as configs
from jaxllm.config import section
from jaxllm.data import tokenizer as tokenizers
from jaxllm.errors import InputError
from jaxllm.report import cleaning as report
from jaxllm.stages import cleaning, corpus


def config_of(folder, arg='clean', **values):
    return configs.load([f'--config={runs.PRETRAIN}:text={folder},{arg}', *runs.overrides(
        data__holdout_share=0.3, **values)])


@pytest.fixture
def folder(tmp_path):
    """Eleven texts: a copy, a broken one, an advertisement, and eight that stay."""
    runs.write_text(tmp_path / 'text', documents=8)
    for name, text in dict(copy=(tmp_path / 'text' / '003.txt').read_text().upper(),
                           odd='=== 12 | 33 --- 57 ### 9', zad='Buy cheap pillows!!! 40 % off, '
                           'only 3 days left. Order now: offer 77AB-9.').items():
        (tmp_path / 'text' / f'{name}.txt').write_text(text)
    return tmp_path / 'text'


def stores(config, workdir):
    specs = corpus.source_specs(config)
    return corpus.make_stores(config.data, specs, tokenizers.byte_tokenizer(), workdir / 'data')


def test_what_is_removed_is_in_no_store_and_is_counted(folder, tmp_path):
    config = config_of(folder)
    store = stores(config, tmp_path / 'run')['text']
    assert store.train.num_documents + store.validation.num_documents == 8
    found = json.loads((tmp_path / 'run' / 'data' / 'cleaning.json').read_text())['text']
    assert found['read'] == 11 and found['kept'] == 8
    assert found['dropped'] == {'exact': {'copy': 1}, 'quality': {'few letters': 1},
                                'spam': {'spam': 1}}
    lines = (tmp_path / 'run' / 'data' / 'cleaned' / 'text.jsonl').read_bytes()
    stores(config, tmp_path / 'again')
    assert (tmp_path / 'again' / 'data' / 'cleaned' / 'text.jsonl').read_bytes() == lines
    page = report.removed({'<b>': found})
    assert 'exact copies' in page and 'few letters' in page and '<b>' not in page


def test_the_tokenizer_learns_from_what_stays(folder, tmp_path):
    config = config_of(folder, tokenizer__kind='char')
    read = corpus.reader(config.data, tmp_path / 'data')
    tokenizer = corpus.make_tokenizer(
        section(corpus.TokenizerConfig, config.tokenizer, 'tokenizer'),
        corpus.source_specs(config), tmp_path / 'tokenizer', read)
    plain = corpus.make_tokenizer(
        section(corpus.TokenizerConfig, config.tokenizer, 'tokenizer'),
        corpus.source_specs(config), tmp_path / 'plain')
    assert tokenizer.fingerprint != plain.fingerprint


def test_off_by_default(folder, tmp_path):
    config = config_of(folder, arg='infill=none')
    assert 'clean' not in config.data and cleaning.settings(config.data) is None
    store = stores(config, tmp_path / 'run')['text']
    assert store.train.num_documents + store.validation.num_documents == 11
    assert not (tmp_path / 'run' / 'data' / 'cleaning.json').exists()


def test_settings_of_a_section(folder):
    config = config_of(folder).unlock()
    config.data.clean.near = dict(least=0.9)
    config.data.clean.steps = ('near',)
    assert cleaning.settings(config.data).near.least == 0.9
    config.data.clean.near = dict(most=0.9)
    with pytest.raises(InputError, match='config.data.clean.near'):
        cleaning.settings(config.data)


def test_cleaned_texts_of_another_run_are_taken(folder, tmp_path):
    config = config_of(folder)
    made = stores(config, tmp_path / 'run')['text']
    config = config.unlock()
    config.data.clean.run = str(tmp_path / 'run')
    taken = stores(config, tmp_path / 'next')['text']
    assert taken.train.fingerprint == made.train.fingerprint
    for name in ('cleaned/text.jsonl', 'cleaning.json', 'rejects-text.json'):
        assert ((tmp_path / 'next' / 'data' / name).read_bytes()
                == (tmp_path / 'run' / 'data' / name).read_bytes())
    config.data.clean.spam = 0.9
    with pytest.raises(InputError, match="run has not cleaned the source text with these .* of "
                                         "others.*--config.data.clean.run=''"):
        stores(config, tmp_path / 'other')
    config.data.clean.run = str(tmp_path / 'nowhere')
    with pytest.raises(InputError, match='is missing'):
        stores(config, tmp_path / 'other')
