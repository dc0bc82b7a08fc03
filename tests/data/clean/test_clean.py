"""The filters of text: what each finds in a world and in planted dirt, and that nothing is lost."""

import collections
import dataclasses

import numpy as np
import pytest

from jaxllm.data.clean import classifier, labelled, near, planted, quality
from jaxllm.data.clean.clean import clean
from jaxllm.data.clean.settings import STEPS, CleanConfig, NearConfig, QualityConfig
from jaxllm.data.prepare import similar
from jaxllm.data.records import Document
from jaxllm.errors import InputError
from jaxllm.world import documents
from jaxllm.world.atlas import atlas
from jaxllm.world.hazards import HAZARDS

LONG = ('The quick brown fox jumps over the lazy dog while seven wizards quietly mix a boiling '
        'brew of herbs, and nobody in the village asks why the mill stands still today.')


def document(text, name='a'):
    return Document(text, name, 'src', 'CC0-1.0', f'file:{name}')


def cleaned(texts, judge=None, **settings):
    """(texts that stay, report) of texts with the ids 0, 1, ..."""
    kept, report = clean([document(text, str(i)) for i, text in enumerate(texts)],
                         CleanConfig(**settings), judge)
    return [item.text for item in kept], report


@pytest.fixture(scope='module')
def judge():
    return labelled.judge('world')


@pytest.fixture(scope='module')
def world():
    return [row for row in documents.rows(atlas(0, 'nano')) if row['split'] == 'train']


# On the labels of a world: measured on seeds 0, 1 and 2, thresholds a little below.

def rates(dropped, dirty):
    """(recall, precision) of a set of ids against the labelled one."""
    both = len(dropped & dirty)
    return both / len(dirty), both / max(len(dropped), 1)


def test_spam_and_unsafe_texts_of_a_world(world, judge):
    learned = {name for number, (_, hazard, harmless, _) in enumerate(HAZARDS) if number % 2 == 0
               for name in (hazard, harmless)}
    rows = [row for row in world if row['kind'] in ('spam', 'unsafe')] + world[::10]
    said = {row['id']: {label for label in ('spam', 'unsafe')
                        if judge.probability(row['text'], label) >= 0.7} for row in rows}
    flagged = lambda label: {name for name, labels in said.items() if label in labels}
    recall, precision = rates(flagged('spam'), {r['id'] for r in rows if r['kind'] == 'spam'})
    assert recall >= 0.99 and precision >= 0.99
    # Hazards that the classifier was never told of, and their harmless look-alikes.
    new = [row for row in rows if row['kind'] == 'unsafe' and row['subject'] not in learned]
    recall, precision = rates(flagged('unsafe') & {row['id'] for row in new},
                              {row['id'] for row in new if row['unsafe']})
    assert len(new) > 300 and recall >= 0.98 and precision >= 0.98


def test_copies_and_near_copies_of_a_world(world):
    rows = [row for row in world if row['kind'] == 'fact' and (
        row['duplicate_of'] or row['near_duplicate_of'])]
    wanted = {row['duplicate_of'] or row['near_duplicate_of'] for row in rows}
    rows = [row for row in world if row['id'] in wanted] + rows + [
        row for row in world if row['kind'] == 'fact'][:2000]
    rows = list({row['id']: row for row in rows}.values())
    kept, report = clean([document(row['text'], row['id']) for row in rows],
                         CleanConfig(steps=('exact', 'near'), examples=10**6))
    kept = {item.id for item in kept}
    copies = {row['id'] for row in rows if row['duplicate_of']}
    exact = {example['id'] for example in report.examples['exact']}
    assert rates(exact, copies) == (1.0, 1.0)
    near_copies = {row['id'] for row in rows if row['near_duplicate_of']}
    recall, _ = rates({row['id'] for row in rows} - kept, near_copies)
    assert recall >= 0.88
    # What else is dropped tells the same fact in nearly the same words.
    facts = {row['id']: (row['subject'], row['attribute'], row['value']) for row in rows}
    same = [facts[example['id']] == facts[example['why'].rpartition(' ')[2]]
            for example in report.examples['near']]
    assert np.mean(same) >= 0.97


def test_a_clean_world_is_not_broken_text(world):
    assert not [row['text'] for row in world[::7]
                if quality.problem(row['text'], QualityConfig())]


# On planted dirt.

def plain(count):
    rng = np.random.default_rng(3)
    words = sorted({word.lower().strip('.,') for word in LONG.split()})
    return [document(' '.join(rng.choice(words, 12 + i % 30)).capitalize() + '.', str(i))
            for i in range(count)]


def test_planted_dirt_is_found_and_counted(judge):
    dirty = list(planted.plant(plain(2000), 0.2))
    kinds = collections.Counter(planted.kind_of(item.id) for item in dirty)
    assert kinds[''] == 2000 and set(kinds) == {'', *planted.KINDS}
    assert 0.17 < 1 - 2000 / len(dirty) < 0.23
    kept, report = clean(iter(dirty), CleanConfig(), judge)
    left = collections.Counter(planted.kind_of(item.id) for item in kept)
    assert left['copy'] == left['unsafe'] == left['spam'] == 0
    assert left['broken'] <= 0.03 * kinds['broken']
    assert left['near_copy'] <= 0.06 * kinds['near_copy']
    assert left[''] >= 0.99 * 2000
    assert report.read == len(dirty)
    assert report.kept + sum(sum(x.values()) for x in report.dropped.values()) == report.read
    assert all(0 < len(shown) <= 5 for shown in report.examples.values())


def test_planting_depends_on_the_documents_alone():
    once, again = list(planted.plant(plain(300), 0.3)), list(planted.plant(plain(300), 0.3))
    assert once == again
    ids = [item.id for item in once]
    assert len(set(ids)) == len(ids) and [x for x in ids if not planted.kind_of(x)] == [
        str(i) for i in range(300)]
    for place, item in enumerate(once):
        if planted.kind_of(item.id) == 'copy':  # after its original, and the same text
            original = ids.index(item.id.removeprefix('planted-copy-'))
            assert original < place and once[original].text == item.text


# Each filter by hand.

def test_exact_copies_whatever_their_case_and_spaces():
    kept, report = cleaned([LONG, 'Something else again.', f'  {LONG.upper()}\n', LONG],
                           steps=('exact',))
    assert kept == [LONG, 'Something else again.']
    assert report.dropped == {'exact': {'copy': 2}}
    assert {example['why'] for example in report.examples['exact']} == {'copy: of 0'}


def test_a_copy_beyond_the_window_stays():
    texts = [LONG, 'one more text here', 'and a third one', LONG]
    assert len(cleaned(texts, steps=('exact',), window=2)[0]) == 4
    assert len(cleaned(texts, steps=('exact',), window=3)[0]) == 3
    edited = [*texts[:3], LONG + ' (copy)']
    assert len(cleaned(edited, steps=('near',), window=2)[0]) == 4
    assert len(cleaned(edited, steps=('near',), window=3)[0]) == 3


def test_near_copies_are_those_of_any_earlier_text():
    """A text goes for being like one that went itself: no chain of ever more different ones."""
    words = LONG.split()
    chain = [' '.join(words[i:i + 24]) for i in range(0, 7, 2)]
    kept, report = cleaned(chain, steps=('near',), near=NearConfig(least=0.75))
    assert kept == chain[:1] and report.dropped == {'near': {'near copy': 3}}
    assert 'of 0' in report.examples['near'][0]['why'] + report.examples['near'][1]['why'] + (
        report.examples['near'][2]['why'])


def test_likeness_by_hand():
    a, b = np.array([1, 3, 5, 7]), np.array([3, 5, 9])
    assert near.likeness(a, b) == 2 / 5
    long = [np.sort(np.random.default_rng(i).choice(10**6, 512, replace=False)) for i in (0, 1)]
    assert near.likeness(long[0], long[0]) == 1.0 and near.likeness(*long) < 0.02


def test_long_texts_are_compared_by_words():
    rng = np.random.default_rng(0)
    words = [f'w{i}x' for i in rng.integers(0, 5000, 400)]
    shuffled = list(rng.permutation(words))
    other = [*words[:200], 'new', *words[200:]]
    kept, _ = cleaned([' '.join(words), ' '.join(shuffled), ' '.join(other)], steps=('near',))
    assert kept == [' '.join(words), ' '.join(shuffled)]


@pytest.mark.parametrize('text, reason', [
    ('two words', 'too short'), ('== 12 | 34 -- 56 # 7 ab', 'few letters'),
    ('itâ€™s the doctorâ€™s cafÃ© again', 'garbled'), ('T h i s i s w i d e', 'word length'),
    ('thequickbrownfox jumpsoverthelazy dogandrunsaway', 'word length'),
    ('BUY THIS NOW OR REGRET IT', 'capitals'), ('one two three four ' * 5, 'repetition'),
    ('a line of text\n' + 'menu home\n' * 9, 'repetition')])
def test_broken_texts(text, reason):
    assert quality.problem(text, QualityConfig()).startswith(f'{reason}')


@pytest.mark.parametrize('text', [
    LONG, 'Name | Firm\nFoman Clulcroft | Sunfin', '- Name: Wurreo\n- Rank: third',
    'Ein Café in São Paulo ist geöffnet.', '日本語の文章です', 'f(x)\n\nReturn x squared.'])
def test_good_texts(text):
    assert quality.problem(text, QualityConfig()) == ''


def test_the_classifier_learns_what_it_is_shown():
    texts = ['red apples are sweet', 'green apples are sour', 'win a prize now', 'win money now']
    judge = classifier.train(texts, ['ok', 'ok', 'spam', 'spam'])
    assert judge.probability('win gold now', 'spam') > 0.6 > 0.4 > judge.probability(
        'blue apples are big', 'spam')
    again = classifier.train(texts, ['ok', 'ok', 'spam', 'spam'])
    assert np.array_equal(judge.weights['spam'], again.weights['spam'])
    with pytest.raises(InputError, match="expected 'ok' and at least one other"):
        classifier.train(texts, ['ok'] * 4)


def test_the_sample_is_of_no_world_in_use():
    """No text about a fact or an offer of it is one of the worlds that models learn."""
    ours = {row['text'] for row in documents.rows(atlas(0, 'nano'))
            if row['kind'] != 'unsafe'}
    assert not ours & {text for text, _ in labelled.world_sample()}


def test_labels_of_a_file(tmp_path):
    file = tmp_path / 'labels.jsonl'
    file.write_text('{"text": "fine words", "label": "ok"}\n{"text": "buy it", "label": "spam"}\n')
    assert labelled.read(file) == [('fine words', 'ok'), ('buy it', 'spam')]
    file.write_text('{"text": "fine words", "label": "good"}\n')
    with pytest.raises(InputError, match="labels.jsonl:1: label 'good'"):
        labelled.read(file)


@pytest.mark.parametrize('settings, part', [
    (dict(steps=()), 'names a filter twice'), (dict(steps=('exact', 'exact')), 'twice'),
    (dict(steps=('magic',)), "'magic' is unknown"), (dict(spam=0.0), 'clean.spam=0.0'),
    (dict(labels='nowhere.jsonl'), 'is no file'), (dict(window=0), 'clean.window=0')])
def test_settings_that_make_no_sense(settings, part):
    with pytest.raises(InputError, match=part):
        CleanConfig(**settings)


def test_every_step_is_known_and_reads_in_order(judge):
    kept, report = cleaned(['Buy cheap pillows!!! Order now: offer 77.', LONG], judge, steps=STEPS)
    assert kept == [LONG] and report.dropped == {'spam': {'spam': 1}}
    assert report.as_dict()['characters_kept'] == len(LONG)
    assert similar.normal(LONG) and dataclasses.is_dataclass(CleanConfig())
