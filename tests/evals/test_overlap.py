"""Overlap of evaluation items with training text: cases by hand, and brute force over n-grams."""

import random

import pytest

from jaxllm.data.records import Document
from jaxllm.data.store import TokenStore, write_store
from jaxllm.data.tokenizer import byte_tokenizer, char_tokenizer
from jaxllm.errors import InputError
from jaxllm.evals import overlap


def doc(text, id):
    return Document(text, id, source='toy', license='MIT', origin='made up')


# Fourteen words, so two runs of thirteen.
LONG = 'One two three four five six seven eight nine ten eleven twelve thirteen fourteen'
NINE = 'red green blue black white pink brown grey gold'
DOCUMENTS = [
    doc('nothing in common here', id='plain'),
    doc('Say: ' + LONG.upper().replace(' ', ',\n ') + '!', id='shouted'),
    doc(LONG.rsplit(' ', 2)[0] + ' other words', id='twelve of them'),
    doc('so ' + NINE + ' and on', id='colours'),
    doc(NINE.replace('gold', 'golden'), id='nearly'),
    doc('one two three four five six seven', id='begins'),
    doc('eight nine ten eleven twelve thirteen fourteen', id='goes on'),
    doc(NINE, id='colours again'),
    doc('ein Ei\u0301 \ufb01ndet die Straße im Grünen heute wieder nicht so schnell', id='unicode')]


def store(folder, documents, tokenizer):
    write_store(documents, tokenizer, folder, holdout_share=0, source_fingerprint='toy')
    return TokenStore.open(folder).train


@pytest.fixture(scope='module')
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope='module')
def split(tmp_path_factory, tokenizer):
    return store(tmp_path_factory.mktemp('overlap') / 'store', DOCUMENTS, tokenizer)


def find(items, split, tokenizer, **options):
    report = overlap.find_overlap(items, [split], tokenizer, **options)
    return {found.item: (found.how, found.documents, found.num_documents, found.text)
            for found in report.overlaps}, report


def test_by_hand(split, tokenizer):
    first13, last13 = LONG.lower().rsplit(' ', 1)[0], LONG.lower().split(' ', 1)[1]
    found, report = find({
        'all': LONG,
        'tail': 'an item that ends: ' + LONG.split(' ', 1)[1],
        'twelve': LONG.rsplit(' ', 2)[0] + ' until here',
        'nine': NINE,
        'ten': NINE + ' silver',                  # compared as a whole, and a word is not there
        'seven': ' '.join(NINE.split()[:7]),      # too short
        'underscores': NINE.replace(' ', '_'),
        'other order': 'green red blue black white pink brown grey gold',
        'empty': '',
        'plain': 'an item that has the id of a document',
        # The accent is composed, the ligature taken apart, and case is gone.
        'letters': 'EIN EÍ findet die strasse'.replace('strasse', 'straße')
                   + ' im grünen heute wieder',
    }, split, tokenizer)
    assert found == {
        'all': ('13 words', ('shouted',), 1, first13),
        'tail': ('13 words', ('shouted',), 1, last13),
        'nine': ('9 words', ('colours', 'colours again'), 2, NINE),
        'underscores': ('9 words', ('colours', 'colours again'), 2, NINE),
        'plain': ('id', ('plain',), 1, ''),
        'letters': ('9 words', ('unicode',), 1,
                    'ein eí findet die straße im grünen heute wieder'),
    }
    assert list(found) == ['all', 'tail', 'nine', 'underscores', 'plain', 'letters']
    assert (report.num_items, report.num_short) == (11, 2)
    assert report.num_bytes == sum(len(doc.text.encode()) for doc in DOCUMENTS)
    assert report.warning() == ('6 of 11 evaluation items overlap with the training data; their '
                                'ids are in overlap.jsonl')
    assert report.lines().count('\n') == 6


def test_an_item_may_overlap_in_both_ways_and_counts_once(split, tokenizer):
    _, report = find({'colours': NINE, 'x': 'y'}, split, tokenizer)
    assert [(found.how, found.documents) for found in report.overlaps] == [
        ('id', ('colours',)), ('9 words', ('colours', 'colours again'))]
    assert report.items == ('colours',) and report.warning().startswith('1 of 2 ')


def test_nothing_to_warn_of(split, tokenizer):
    found, report = find({'a': 'x ' * 20, 'b': ''}, split, tokenizer)
    assert not found and report.warning() == '' and report.lines() == ''


def test_runs_do_not_cross_documents(split, tokenizer):
    # 'begins' and 'goes on' stand one after another in the store, and hold 14 words of LONG.
    found, _ = find({'all': LONG}, split, tokenizer)
    assert found['all'][1] == ('shouted',)


def brute_force(items, documents, n, shortest):
    """{item: ids of documents}, by comparing lists of words."""
    found = {}
    for item, text in items.items():
        words = text.split()
        size = min(n, len(words))
        if size < shortest:
            continue
        runs = {tuple(words[i:i + size]) for i in range(len(words) - size + 1)}
        hits = []
        for document in documents:
            theirs = document.text.split()
            if runs & {tuple(theirs[i:i + size]) for i in range(len(theirs) - size + 1)}:
                hits.append(document.id)
        if hits:
            found[item] = hits
    return found


@pytest.mark.parametrize('n, shortest', [(13, 8), (5, 3), (4, 4), (1, 1)])
def test_against_brute_force(n, shortest, tmp_path, monkeypatch):
    """Few words, so that runs are common; small batches, so that there are many."""
    monkeypatch.setattr(overlap, '_BATCH', 100)
    monkeypatch.setattr(overlap, '_KEPT', 1000)
    rng = random.Random(n)
    words = ['a', 'b', 'c', 'dd', 'eee', '7'][:2 if n > 5 else 6]
    text = lambda longest: ' '.join(rng.choices(words, k=rng.randint(1, longest)))
    documents = [doc(text(30), id=f'd{i}') for i in range(80)]
    items = {f'i{i}': text(18) + rng.choice(['', ' new', ' 7']) for i in range(40)}
    tokenizer = char_tokenizer([document.text for document in documents], 300)
    found, report = find(items, store(tmp_path / 's', documents, tokenizer), tokenizer,
                         n=n, shortest=shortest)
    want = brute_force(items, documents, n, shortest)
    assert {item: list(value[1]) for item, value in found.items()} == want
    assert all(value[2] == len(value[1]) for value in found.values())
    assert 3 < len(want)
    assert report.num_short == sum(len(x.split()) < shortest for x in items.values())


def test_equal_hashes_are_not_enough(split, tokenizer, monkeypatch):
    """With a hash that is always 0, all is as before."""
    want, _ = find({'all': LONG, 'nine': NINE, 'no': NINE[::-1]}, split, tokenizer)
    real = overlap._hashes
    monkeypatch.setattr(overlap, '_hashes', lambda codes, lengths: {
        length: 0 * x for length, x in real(codes, lengths).items()})
    found, _ = find({'all': LONG, 'nine': NINE, 'no': NINE[::-1]}, split, tokenizer)
    assert found == want and len(want) == 2


def test_splits_are_read_in_turn_and_named(tmp_path, tokenizer):
    a = store(tmp_path / 'a', [doc(NINE, id='in a')], tokenizer)
    b = store(tmp_path / 'b', [doc('x', id='x'), doc(NINE, id='in b')], tokenizer)
    report = overlap.find_overlap({'nine': NINE}, [a, b], tokenizer)
    assert report.overlaps[0].documents == ('in a', 'in b')


def test_bad_arguments(split, tokenizer):
    with pytest.raises(InputError, match='shortest=9 and n=8'):
        overlap.find_overlap({'a': NINE}, [split], tokenizer, n=8, shortest=9)
    other = char_tokenizer([LONG], 300)
    with pytest.raises(InputError, match='another tokenizer'):
        overlap.find_overlap({'a': NINE}, [split], other)
