"""The token store: what goes in comes out, and a damaged one is never opened."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from toy_store import FIRST_BYTE, ByteTokenizer, Doc, make_store, random_text

from jaxllm.data import store as store_lib
from jaxllm.data.store import TokenStore, write_store
from jaxllm.errors import InputError

FILES = ['train.tokens.bin', 'train.offsets.bin', 'train.text_bytes.bin', 'train.documents.jsonl',
         'validation.tokens.bin', 'token_bytes.bin']


def documents(count, seed=3):
    rng = np.random.default_rng(seed)
    return [Doc(random_text(rng, int(n)) + ' é', id=f'doc{i}', license='MIT' if i % 3 else 'GPL',
                source=f'source{i % 2}', origin=f'page {i}')
            for i, n in enumerate(rng.integers(3, 60, count))]


@pytest.fixture
def folder(tmp_path):
    """A store with both splits."""
    write_store(documents(60), ByteTokenizer(), tmp_path / 'store', holdout_share=0.2,
                source_fingerprint='web-v1', batch_documents=7)
    return tmp_path / 'store'


def test_documents_come_back(folder):
    store = TokenStore.open(folder)
    expected = {doc.id: doc for doc in documents(60)}
    seen = set()
    for split in (store.train, store.validation):
        for i in range(split.num_documents):
            facts = split.describe(i)
            doc = expected[facts['id']]
            seen.add(doc.id)
            assert facts == {'id': doc.id, 'source': doc.source, 'license': doc.license,
                             'origin': doc.origin}
            raw = np.frombuffer(doc.text.encode(), np.uint8)
            np.testing.assert_array_equal(split.document(i), [1, *(raw + FIRST_BYTE), 2])
            assert split.text_bytes[i] == len(raw)
            assert split.lengths[i] == len(raw) + 2
    assert seen == set(expected)
    assert 0 < store.validation.num_documents < 30
    assert store.train.tokens.dtype == np.uint16


def test_manifest_counts_and_provenance(folder):
    store = TokenStore.open(folder)
    manifest = store.manifest
    assert manifest['source_fingerprint'] == 'web-v1'
    assert manifest['tokenizer_fingerprint'] == ByteTokenizer().fingerprint
    both = [manifest['splits'][split] for split in ('train', 'validation')]
    docs = documents(60)
    assert sum(s['documents'] for s in both) == 60
    assert sum(s['text_bytes'] for s in both) == sum(len(d.text.encode()) for d in docs)
    assert sum(s['by_license']['GPL']['documents'] for s in both) == 20
    assert both[0]['tokens'] == store.train.num_tokens
    assert sum(c['tokens'] for c in both[0]['by_source'].values()) == both[0]['tokens']


def test_duplicates_are_on_one_side(tmp_path):
    docs = [Doc(f'text number {i % 40}', id=f'{i}') for i in range(200)]
    write_store(docs, ByteTokenizer(), tmp_path / 's', holdout_share=0.3, source_fingerprint='')
    store = TokenStore.open(tmp_path / 's')
    train, validation = ({bytes(split.document(i)) for i in range(split.num_documents)}
                         for split in (store.train, store.validation))
    assert train and validation and not train & validation
    assert len(train | validation) == 40


def test_holdout_share_is_met(tmp_path):
    docs = [Doc(f'{i}') for i in range(4000)]
    write_store(docs, ByteTokenizer(), tmp_path / 's', holdout_share=0.1, source_fingerprint='')
    assert 320 < TokenStore.open(tmp_path / 's').validation.num_documents < 480


def test_same_documents_same_fingerprint(tmp_path):
    a, b, c = (make_store(tmp_path / f'{k}', [5, 9, 30], seed=seed)
               for k, seed in enumerate((1, 1, 2)))
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert a.train.fingerprint != a.validation.fingerprint


def test_large_vocabulary_takes_four_bytes(tmp_path):
    store = make_store(tmp_path / 's', [9, 12], tokenizer=ByteTokenizer(offset=70_000))
    assert store.train.tokens.dtype == np.uint32
    assert store.train.tokens.max() > 70_000


def test_encodes_in_bounded_batches(tmp_path):
    read = []

    def stream():
        for doc in documents(50):
            read.append(doc)
            yield doc

    class Watching(ByteTokenizer):
        def encode_batch(self, texts):
            read_ahead.append(len(read) - encoded[0])
            encoded[0] += len(texts)
            return super().encode_batch(texts)

    encoded, read_ahead = [0], []
    tokenizer = Watching()
    write_store(stream(), tokenizer, tmp_path / 's', holdout_share=0.2, source_fingerprint='',
                batch_documents=8, batch_characters=300)
    assert encoded == [50]
    assert tokenizer.largest_batch == 8
    assert max(read_ahead) <= 9  # One document is read to see that the batch is full.


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('damage', ['flip', 'truncate', 'missing'])
def test_damaged_file_is_named(folder, name, damage):
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == 'missing':
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == 'flip' else content[:-1])
    with pytest.raises(InputError, match=rf'{name}.*delete .*tokenize'):
        TokenStore.open(folder)


def test_without_verify_only_sizes_are_checked(folder):
    path = folder / 'train.tokens.bin'
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    TokenStore.open(folder, verify=False)
    path.write_bytes(content[:-2])
    with pytest.raises(InputError, match='train.tokens.bin has'):
        TokenStore.open(folder, verify=False)


@pytest.mark.parametrize('content, message', [
    ('{"format": "other"', 'is not JSON'),
    ('{"format": "other", "version": 1}', "has format and version .'other', 1."),
    ('[]', 'has format and version'),
    ('{"format": "jaxllm-token-store", "version": 99}', '99'),
])
def test_foreign_manifest(folder, content, message):
    (folder / 'manifest.json').write_text(content)
    with pytest.raises(InputError, match=message):
        TokenStore.open(folder)


def test_edited_manifest(folder):
    manifest = json.loads((folder / 'manifest.json').read_text())
    manifest['eos_id'] = 5
    (folder / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(InputError, match='was changed'):
        TokenStore.open(folder)


def test_no_store(tmp_path):
    with pytest.raises(InputError, match='not a token store'):
        TokenStore.open(tmp_path)


@pytest.mark.parametrize('docs', [[], [Doc('')]])
def test_empty_corpus(tmp_path, docs):
    with pytest.raises(InputError, match='no documents'):
        write_store(docs, ByteTokenizer(), tmp_path / 's', holdout_share=0.1,
                    source_fingerprint='')
    assert not (tmp_path / 's').exists()


def test_documents_without_text_are_counted(tmp_path):
    write_store([Doc('a'), Doc(''), Doc('b')], ByteTokenizer(), tmp_path / 's', holdout_share=0,
                source_fingerprint='')
    store = TokenStore.open(tmp_path / 's')
    assert store.train.num_documents == 2
    assert store.manifest['skipped_without_text'] == 1
    assert store.validation.num_documents == store.validation.num_tokens == 0


def test_empty_validation_names_a_share_that_works(tmp_path):
    docs = documents(20)
    with pytest.raises(InputError, match='holds out none of 20') as error:
        write_store(docs, ByteTokenizer(), tmp_path / 's', holdout_share=1e-9,
                    source_fingerprint='')
    share = float(str(error.value).split('at least ')[1].split(',')[0])
    write_store(docs, ByteTokenizer(), tmp_path / 's', holdout_share=share, source_fingerprint='')
    assert TokenStore.open(tmp_path / 's').validation.num_documents == 1


def test_empty_training_split(tmp_path):
    with pytest.raises(InputError, match='leaves no training document of 1'):
        write_store([Doc('a')], ByteTokenizer(), tmp_path / 's', holdout_share=0.999,
                    source_fingerprint='')


@pytest.mark.parametrize('share', [-0.1, 1.0])
def test_bad_share(tmp_path, share):
    with pytest.raises(InputError, match='holdout_share'):
        write_store([Doc('a')], ByteTokenizer(), tmp_path / 's', holdout_share=share,
                    source_fingerprint='')


def test_existing_folder_is_kept(folder):
    before = TokenStore.open(folder).fingerprint
    with pytest.raises(InputError, match='exists already'):
        write_store(documents(5), ByteTokenizer(), folder, holdout_share=0, source_fingerprint='')
    assert TokenStore.open(folder).fingerprint == before


def test_lone_surrogate_names_the_document(tmp_path):
    with pytest.raises(InputError, match='document bad .*surrogates'):
        write_store([Doc('a'), Doc('x \ud800', id='bad')], ByteTokenizer(), tmp_path / 's',
                    holdout_share=0, source_fingerprint='')


def test_id_outside_the_vocabulary(tmp_path):
    tokenizer = ByteTokenizer()
    tokenizer.vocab_size = 100
    with pytest.raises(ValueError, match='ids from 1 to'):
        write_store([Doc('zzz')], tokenizer, tmp_path / 's', holdout_share=0,
                    source_fingerprint='')


def test_failed_build_leaves_nothing(tmp_path):
    def failing():
        yield from documents(30)
        raise OSError('the source went away')

    with pytest.raises(OSError, match='went away'):
        write_store(failing(), ByteTokenizer(), tmp_path / 's', holdout_share=0.2,
                    source_fingerprint='', batch_documents=4)
    assert [path.name for path in tmp_path.iterdir()] == ['.s.lock']


def test_killed_build_leaves_nothing_that_opens(tmp_path):
    program = textwrap.dedent('''
        import os, signal, sys
        from toy_store import ByteTokenizer, Doc
        from jaxllm.data.store import write_store

        def documents():
            for i in range(40):
                yield Doc(f'text {i}')
            os.kill(os.getpid(), signal.SIGKILL)

        write_store(documents(), ByteTokenizer(), sys.argv[1], holdout_share=0.2,
                    source_fingerprint='', batch_documents=4)
    ''')
    here = pathlib.Path(__file__).parent
    env = os.environ | {'PYTHONPATH': os.pathsep.join([str(here), str(here.parents[1])])}
    done = subprocess.run([sys.executable, '-c', program, str(tmp_path / 's')], env=env)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / '.s.building').exists()
    assert not (tmp_path / 's').exists()
    write_store(documents(30), ByteTokenizer(), tmp_path / 's', holdout_share=0.2,
                source_fingerprint='')
    store = TokenStore.open(tmp_path / 's')
    assert store.train.num_documents + store.validation.num_documents == 30
    assert not (tmp_path / '.s.building').exists()


def test_kill_between_manifest_and_rename(tmp_path, monkeypatch):
    def no_rename(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store_lib.os, 'rename', no_rename)
    with pytest.raises(KeyboardInterrupt):
        write_store(documents(30), ByteTokenizer(), tmp_path / 's', holdout_share=0.2,
                    source_fingerprint='')
    assert not (tmp_path / 's').exists()
