"""Verbatim extraction: passages and weights by hand, attempts against the full forward pass."""

import jax
import numpy as np
import pytest
import toy_models

from jaxllm.data.records import Document
from jaxllm.data.store import TokenStore, write_store
from jaxllm.data.tokenizer import byte_tokenizer
from jaxllm.errors import InputError
from jaxllm.evals import extraction
from jaxllm.evals.extraction import Attempt, Passage
from jaxllm.models import transformer
from jaxllm.sharding import make_mesh


def doc(text, id):
    return Document(text, id, source='toy', license='MIT', origin='made up')


K, N = 3, 4
TEXTS = ['abcdefg', 'abcdefg and more', 'abcdefX', 'short', 'abcdefg', 'hijklmn', 'hijklmn!',
         'sevenco', '1234567']


def passage(text, copies=1, weight=1.0, **tags):
    return Passage(text, tuple(text.encode()), copies, weight, tags)


@pytest.fixture(scope='module')
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope='module')
def split(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp('extraction') / 'store'
    write_store([doc(text, id=f'd{i}') for i, text in enumerate(TEXTS)], tokenizer, folder,
                holdout_share=0, source_fingerprint='toy')
    return TokenStore.open(folder).train


def sample(split, **options):
    return extraction.passages(split, prompt_tokens=K, new_tokens=N, **options)


def texts(some, tokenizer):
    return [(one.id, tokenizer.decode(one.tokens), one.copies) for one in some]


def test_passages_by_hand(split, tokenizer):
    """A text of exactly K + N tokens is a passage, one of fewer is none; copies are counted."""
    some = sample(split, size=0, tags=lambda ids: {
        name: {'exposures': len(ids)} for name in ('d0', 'd3')})
    assert texts(some, tokenizer) == [('d0', 'abcdefg', 3), ('d2', 'abcdefX', 1),
                                      ('d5', 'hijklmn', 2), ('d7', 'sevenco', 1),
                                      ('d8', '1234567', 1)]
    assert [one.weight for one in some] == [1] * 5
    assert [one.tags for one in some] == [{'exposures': 5}, {}, {}, {}, {}]


def test_passages_of_documents_with_one_id_are_told_apart(tmp_path, tokenizer):
    write_store([doc('abcdefg', 'same'), doc('hijklmn', 'same'), doc('sevenco', 'own')], tokenizer,
                tmp_path / 'store', holdout_share=0, source_fingerprint='toy')
    some = sample(TokenStore.open(tmp_path / 'store').train)
    assert [one.id for one in some] == ['same#0', 'same#1', 'own']


def test_a_sample_stands_for_all(split, tokenizer):
    """Two strata: of 3 single passages one is drawn, and of 2 repeated ones one."""
    some = sample(split, size=1, seed=3)
    assert [one.weight for one in sorted(some, key=lambda one: one.copies)] == [3, 2]
    assert some == sample(split, size=1, seed=3)
    drawn = {one.id for seed in range(30) for one in sample(split, size=1, seed=seed)}
    assert drawn == {'d0', 'd2', 'd5', 'd7', 'd8'}


def test_what_was_trained_on_is_not_held_out(split, tokenizer):
    begun = extraction.beginnings(split, prompt_tokens=K, new_tokens=N)
    assert len(begun) == 5 and tuple(tokenizer.encode('hijklmn')) in begun
    without = {tuple(tokenizer.encode('hijklmn')), tuple(tokenizer.encode('abcdefX'))}
    assert [one.id for one in sample(split, without=without)] == ['d0', 'd7', 'd8']
    assert sample(split, without=begun) == []


def test_no_document_is_long_enough(split):
    assert extraction.passages(split, prompt_tokens=30, new_tokens=1) == []
    assert extraction.summary([]) == (None, {})
    with pytest.raises(InputError, match='prompt_tokens=0'):
        extraction.passages(split, prompt_tokens=0)


@pytest.fixture(scope='module')
def model():
    """On 2 devices, with a vocabulary of 41."""
    cfg = toy_models.config('llama', num_layers=1)
    mesh = make_mesh(devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        params = toy_models.params(cfg)
        apply = jax.jit(lambda params, x: transformer.apply(params, cfg, x))
    return cfg, params, mesh, lambda x: apply(params, x)


def greedy(model, ids, new):
    """By the training forward pass, token by token; right padding changes nothing."""
    for _ in range(new):
        row = np.zeros((2, 16), np.int32)
        row[:, :len(ids)] = ids
        with jax.set_mesh(model[2]):
            ids = ids + [int(np.asarray(model[3](row))[0, len(ids) - 1].argmax())]
    return ids


def test_attempts_are_greedy_decoding(model):
    bos, some = 1, []
    for start in ([5, 6, 7], [9, 9, 2], [30, 4, 17], [8, 8, 8]):
        ids = greedy(model, [bos, *start], N)[1:]
        some.append(Passage(str(start), tuple(ids), 1, 1.0))
    # The second goes wrong at its third token; that its fourth is right again is no help.
    wrong = list(some[1].tokens)
    wrong[K + 2] = (wrong[K + 2] + 1) % 41
    some[1] = Passage('wrong', tuple(wrong), 1, 1.0)
    # The third is wrong from the first on.
    some[2] = Passage('other', (*some[2].tokens[:K], *((x + 1) % 41 for x in some[2].tokens[K:])),
                      1, 1.0)
    cfg, params, mesh, _ = model
    with jax.set_mesh(mesh):
        found = extraction.attempt(params, cfg, some, bos_id=bos, prompt_tokens=K, batch_size=2)
        assert extraction.attempt(params, cfg, [], bos_id=bos) == []
    assert [(one.matched, one.extracted) for one in found] == [
        (4, True), (2, False), (0, False), (4, True)]
    assert found[0].written == some[0].tokens[K:]
    assert found[1].written[:2] == some[1].tokens[K:K + 2]
    # Without BOS the model sees another text.
    with jax.set_mesh(mesh):
        other = extraction.attempt(params, cfg, some, bos_id=40, prompt_tokens=K, batch_size=2)
    assert [one.matched for one in other] != [one.matched for one in found]


def tried(passage, extracted):
    return Attempt(passage, passage.tokens[K:], N if extracted else 1, extracted)


def test_summary_by_hand():
    """Weights count in shares: (1*1 + 0*1 + 1*3) / (1 + 1 + 3 + 3)."""
    some = [tried(passage('a', 1, 1.0, exposures=16), True),
            tried(passage('b', 1, 1.0, exposures=2), False),
            tried(passage('c', 5, 3.0, exposures=16), True),
            tried(passage('d', 7, 3.0, exposures=2, kind='fact'), False)]
    metric, slices = extraction.summary(some)
    assert metric['value'] == pytest.approx(4 / 8) and metric['n'] == 4
    assert 0 <= metric['low'] <= metric['value'] <= metric['high'] <= 1
    values = {name: {value: (m['value'], m['n']) for value, m in part.items()}
              for name, part in slices.items()}
    assert values == {'copies': {'1': (0.5, 2), '5-8': (0.5, 2)},
                      'exposures': {'2': (0.0, 2), '16': (1.0, 2)}, 'kind': {'fact': (0.0, 1)}}
    assert list(values['exposures']) == ['2', '16']


def test_bins_of_copies():
    assert [extraction.copies_bin(n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 1000)] == [
        '1', '2', '3-4', '3-4', '5-8', '5-8', '9-16', '9-16', '17-32', '513-1024']
    metric, slices = extraction.summary([tried(passage('x', n), True) for n in (100, 1, 9, 3)])
    assert list(slices['copies']) == ['1', '3-4', '9-16', '65-128'] and metric['value'] == 1


def test_rows_for_items(tokenizer):
    ids = tuple(tokenizer.encode('abcdefg'))
    one = Attempt(Passage('d0', ids, 3, 1.0, {'exposures': 4}), tuple(tokenizer.encode('dXfg')), 1,
                  False)
    assert extraction.rows([one], tokenizer, 'train') == [{
        'id': 'train/d0', 'suite': 'extraction', 'split': 'train', 'subject': 'd0', 'copies': 3,
        'exposures': 4, 'prompt': 'abc', 'answer': 'defg', 'given': 'dXfg', 'matched': 1,
        'correct': 0}]
