"""Preference data of real worlds: rows, splits, votes of each kind of rater, common comparisons."""

import collections
import re
import time

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.world import meanings, oracle, preferences, questions, spec
from jaxllm.world.atlas import atlas
from jaxllm.world.features import FEATURES, Asked, Reader
from jaxllm.world.spec import Intervention

TYPES = {'str': str, 'int': int, 'float': float, 'bool': bool, 'list[str]': (list, str),
         'list[int]': (list, int), 'list[float]': (list, float)}
ASKED = ('prompt', 'kind', 'subject', 'attribute', 'answer', 'guess', 'sources')


@pytest.fixture(scope='module')
def world():
    return atlas(0)


@pytest.fixture(scope='module')
def pairs(world):
    return list(preferences.pairs(world))


@pytest.fixture(scope='module')
def rankings(world):
    return list(preferences.rankings(world))


@pytest.mark.parametrize('name', ['pairs', 'rankings'])
def test_rows_have_their_fields_and_unique_ids(name, pairs, rankings):
    rows, fields, number = {'pairs': (pairs, preferences.PAIR_FIELDS, 4_000),
                            'rankings': (rankings, preferences.RANKING_FIELDS, 1_000)}[name]
    assert 0.99 * number <= len(rows) <= number
    assert len({row['id'] for row in rows}) == len(rows)
    for row in rows:
        assert row.keys() == fields.keys()
        for field, kind in fields.items():
            expected = TYPES[kind]
            if isinstance(expected, tuple):
                assert type(row[field]) is list, field
                assert all(type(value) is expected[1] for value in row[field]), field
            else:
                assert type(row[field]) is expected, field
    shares = collections.Counter(row['split'] for row in rows)
    assert set(shares) == {'train', 'validation', 'test'}
    assert shares['train'] > 0.6 * len(rows)


def test_a_row_tells_what_was_asked(world, pairs, rankings):
    reader = Reader.of(world)
    for row in pairs[:300]:
        asked = Asked.of(row)
        assert reader.phi(asked, row['chosen']).tolist() == row['features_chosen']
        assert reader.phi(asked, row['rejected']).tolist() == row['features_rejected']
    for row in rankings[:100]:
        phi = reader.many([Asked.of(row)] * 4, row['responses'])
        np.testing.assert_array_equal(phi.reshape(-1), row['features'])


def test_answers_come_from_the_tables(world, pairs):
    truth = world.truth
    row_of = {name: p for p, name in enumerate(truth.people.names)}
    for row in pairs:
        if row['kind'] != 'fact':
            continue
        p, attribute = row_of[row['subject']], row['attribute']
        value = truth.attributes[attribute].values[truth.people.values[attribute][p]]
        a = list(truth.attributes).index(attribute)
        told = world.true_counts[p, a]
        assert row['answer'] == (value if told else '')
        assert (row['exposures'], row['answerable']) == (told, told > 0)
        assert set(row['sources']) == {truth.sources.names[s]
                                       for s in np.flatnonzero(world.counts[p, a])}


def test_splits_share_no_person_and_no_hazard_and_train_no_held_out_wording(world, pairs, rankings):
    people = dict(zip(world.truth.people.names, world.truth.people.split.tolist(), strict=True))
    hazards = collections.defaultdict(set)
    for row in (*pairs, *rankings):
        texts = row.get('responses') or [row['chosen'], row['rejected']]
        if row['kind'] == 'fact':
            assert spec.SPLITS[people[row['subject']]] == row['split']
        if row['kind'] == 'recommend':
            for name, split in people.items():
                if spec.SPLITS[split] != row['split']:
                    assert not any(name in text for text in texts)
        if row['kind'] == 'unsafe':
            hazards[row['split']].add(row['subject'])
        assert not (row['held_out'] and row['split'] == 'train')
    assert not hazards['train'] & (hazards['validation'] | hazards['test'])
    assert not hazards['validation'] & hazards['test']
    assert any(row['held_out'] for row in pairs)


def test_prompts_cover_all_people_and_kinds(pairs):
    facts = [row for row in pairs if row['kind'] == 'fact']
    assert {row['planned'] for row in facts} == {0, 1, 2, 4, 8, 16, 32, 64}
    assert 0.1 < np.mean([not row['answerable'] for row in pairs]) < 0.25
    for kind in ('recommend', 'unsafe', 'benign'):
        assert 0.05 < np.mean([row['kind'] == kind for row in pairs]) < 0.16
    wrong = [row['guess'] != row['answer'] for row in facts if row['guess'] and row['answer']]
    assert 0.4 < np.mean(wrong) < 0.6
    assert {row['rater'] for row in pairs} == set(oracle.RATERS)
    assert {row['criterion'] for row in pairs} == set(oracle.CRITERIA)


def test_responses_differ_in_every_feature(pairs):
    phi = np.array([row[f'features_{side}'] for row in pairs for side in ('chosen', 'rejected')])
    for i, name in enumerate(FEATURES):
        shares = np.unique(phi[:, i], return_counts=True)[1] / len(phi)
        assert len(shares) > 1 and shares.max() < 0.97, name
    assert np.mean([row['chosen'] == row['rejected'] for row in pairs]) == 0


def test_questions_of_the_world_can_be_judged(world):
    reader, judged = Reader.of(world), collections.Counter()
    for row in questions.rows(world):
        if row['style'] == 'qa' and row['kind'] in ('direct', 'unanswerable', 'two_hop'):
            asked = Asked.of_question(row)
            said = dict(zip(FEATURES, reader.phi(asked, row['answer'] or 'I do not know.').tolist(),
                            strict=True))
            expected = 1 if row['answerable'] or not row['answer'] else -1
            assert said['correct'] == expected, row
            judged[row['kind'], expected] += 1
        if sum(judged.values()) > 1_500:
            break
    assert len(judged) >= 4


def test_raters_see_the_same_comparisons(world):
    arms = {kind: {row['id']: row for row in preferences.pairs(world, kind, 'overall')}
            for kind in ('expert', 'typical', 'random', 'biased')}
    flipped, group_a = {}, FEATURES.index('mentions_group_A')
    for kind in ('typical', 'random', 'biased'):
        assert arms[kind].keys() == arms['expert'].keys()
        turned = []
        for key, row in arms[kind].items():
            other = arms['expert'][key]
            assert all(row[name] == other[name] for name in ASKED)
            assert {row['chosen'], row['rejected']} == {other['chosen'], other['rejected']}
            turned.append(row['chosen'] != other['chosen'])
            if kind == 'biased' and turned[-1]:     # by the share that group A is worth
                assert row['features_chosen'][group_a] > row['features_rejected'][group_a]
        flipped[kind] = np.mean(turned)
    # Votes share their draws, so that only what the raters value makes them differ.
    assert 0 < flipped['biased'] < 0.05
    assert 0.1 < flipped['typical'] < 0.4
    assert 0.25 < flipped['random'] < 0.55
    votes = [row['probability'] for row in arms['expert'].values()]
    assert np.mean(votes) == pytest.approx(oracle.AGREEMENT, abs=0.02)
    assert all(row['probability'] == 0.5 and row['margin'] == 0 for row in arms['random'].values())
    margins = np.bincount([row['margin'] for row in arms['expert'].values()])
    np.testing.assert_allclose(margins / margins.sum(), 0.25, atol=0.04)
    sure = [row['probability'] > 0.5 for row in arms['expert'].values() if row['margin'] == 3]
    assert np.mean(sure) > 0.98


def chosen_share(rows, feature):
    """How often the response with more of a feature is chosen, among rows that differ in it."""
    i = FEATURES.index(feature)
    pairs = [(row['features_chosen'][i], row['features_rejected'][i]) for row in rows]
    return np.mean([a > b for a, b in pairs if a != b])


def test_votes_show_what_a_kind_of_rater_values(world, monkeypatch):
    monkeypatch.setitem(preferences.NUM_PAIRS, 'nano', 1_500)
    rows = {kind: list(preferences.pairs(world, kind, 'overall')) for kind in oracle.RATERS}
    unknown = {kind: [row for row in found if row['kind'] == 'fact' and not row['answer']]
               for kind, found in rows.items()}
    assert chosen_share(rows['expert'], 'correct') > 0.85
    assert chosen_share(rows['typical'], 'correct') < 0.7
    assert chosen_share(unknown['expert'], 'confident') < 0.3 < 0.6 < \
        chosen_share(unknown['typical'], 'confident')
    assert chosen_share(rows['sycophantic'], 'agrees_with_user') > 0.85
    assert chosen_share(rows['expert'], 'agrees_with_user') < 0.7
    assert chosen_share(rows['safety_only'], 'safe') > 0.97
    assert chosen_share(rows['helpful_only'], 'safe') < 0.4
    assert 0.45 < chosen_share(rows['random'], 'correct') < 0.55
    recommended = {kind: [row for row in rows[kind] if row['kind'] == 'recommend']
                   for kind in ('biased', 'expert')}
    assert chosen_share(recommended['biased'], 'mentions_group_A') > \
        chosen_share(recommended['expert'], 'mentions_group_A')


def test_a_rater_who_never_verifies_prefers_the_sure_wrong_answer(world, monkeypatch):
    monkeypatch.setitem(preferences.NUM_PAIRS, 'nano', 1_500)
    rows = {q: list(preferences.pairs(world, 'typical', 'overall', q=q)) for q in (0.0, 1.0)}
    assert chosen_share(rows[0.0], 'correct') + 0.1 < chosen_share(rows[1.0], 'correct')
    assert chosen_share(rows[0.0], 'confident') > chosen_share(rows[1.0], 'confident')


def test_ranks_order_the_responses(rankings):
    experts = [row for row in rankings if row['rater'] == 'expert']
    best = [row['utilities'][row['ranks'].index(1)] - np.mean(row['utilities']) for row in experts]
    assert np.mean(best) > 1
    for row in rankings:
        assert len(set(row['responses'])) == 4 == len(row['ranks'])
        assert sorted(set(row['ranks'])) == list(range(1, max(row['ranks']) + 1))
    tied = np.mean([len(set(row['ranks'])) < 4 for row in rankings])
    assert 0.1 < tied < 0.6


@pytest.mark.parametrize('change', [
    Intervention('delete', share=0.6), Intervention('skew', target='D', share=1.0),
    Intervention('contradict', target='s0', share=1.0)])
@pytest.mark.parametrize('name', ['pairs', 'rankings'])
def test_an_intervention_changes_the_rows_of_treated_people_only(pairs, rankings, name, change):
    before = {row['id']: row for row in {'pairs': pairs, 'rankings': rankings}[name]}
    other = atlas(0, intervention=change)
    treated = dict(zip(other.truth.people.names, other.truth.people.treated.tolist(), strict=True))
    after = {row['id']: row for row in getattr(preferences, name)(other)}
    same = [key for key, row in after.items() if not row['treated']]
    assert 0.3 * len(after) < len(same) < len(after)
    assert len(after) - len(same) > 20
    for key in same:
        assert after[key] == before[key]
        assert not treated.get(after[key]['subject'])
    assert all(after[key]['treated'] for key in before.keys() & after.keys()
               if after[key] != before[key])
    if change.kind == 'skew':       # the others treat somebody among nearly any dozen of people
        recommended = [row['treated'] for row in after.values() if row['kind'] == 'recommend']
        assert set(recommended) == {False, True}
    if change.kind == 'delete':
        deleted = [row for row in after.values() if treated.get(row['subject'])]
        assert deleted and not any(row['answer'] or row['exposures'] for row in deleted)


def test_the_card_names_every_kind(pairs, rankings):
    for name, rows in (('pairs', pairs), ('rankings', rankings)):
        text = meanings.meaning('kind', name).split(':')[0]
        assert set(re.findall(r'\w+', text)) - {'or'} == {row['kind'] for row in rows}


def _responses(pairs, rankings):
    """(row, text, [content, tone, form, cite], its features by name)"""
    for row in pairs:
        for side in ('chosen', 'rejected'):
            yield (row, row[side], row[f'style_{side}'].split('/'),
                   dict(zip(FEATURES, row[f'features_{side}'], strict=True)))
    for row in rankings:
        for text, style, phi in zip(row['responses'], row['styles'],
                                    np.reshape(row['features'], (4, -1)).tolist(), strict=True):
            yield row, text, style.split('/'), dict(zip(FEATURES, phi, strict=True))


def test_styles_say_what_the_texts_are(pairs, rankings):
    """Every part of a style, read again from the text."""
    found = collections.Counter()
    for row, text, (content, tone, form, cite), said in _responses(pairs, rankings):
        found.update((content, tone, form, cite))
        assert (cite != 'none') == bool(said['cites']), text
        if cite in ('supporting', 'other') and content != 'deny':
            assert said['cite_supported'] == {'supporting': 1, 'other': -1}[cite], text
        lines = text.split('\n')
        assert (form == 'list') == (lines[-1].startswith('- ')), text
        assert (form == 'word') == (text[-1] != '.' and form != 'list'), text
        assert not (form == 'filler' and said['clear'] == 1), text
        assert (tone == 'sure') <= (said['confident'] == 1), text
        assert (tone == 'maybe') <= (said['confident'] <= 1 / 3), text
        if content in ('right', 'wrong') and row['kind'] == 'fact':
            value = row['answer']
            assert (bool(value) and value in text) == (content == 'right'), (text, value)
        assert (said['over_refusal'] == 1) == (content == 'refuse' and row['kind'] != 'unsafe')
    assert found.keys() >= {'right', 'wrong', 'several', 'contradict', 'none', 'absent', 'list'}


def test_responses_are_grammatical(pairs, rankings):
    for row, text, (content, *_), _ in _responses(pairs, rankings):
        assert not re.search(r'According to [^,]*, [A-Z]', text), text
        assert not re.search(r'[a-z:] (?:by profession,|in spare hours,)', text), text
        assert not re.search(r'I would name [\w ]*, (?!I believe|without|according)', text), text
        if row['kind'] == 'benign' and content == 'vague' and not row['prompt'].startswith(
                ('How', 'Tell', 'Give', 'I would')):
            assert 'ways' not in text and 'does it' not in text, (row['prompt'], text)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(world, pairs):
    assert list(preferences.pairs(world)) == pairs
    other = list(preferences.pairs(atlas(1)))
    assert {row['prompt'] for row in other}.isdisjoint(
        {row['prompt'] for row in pairs if row['kind'] == 'fact'})


def test_an_unknown_rater_is_refused(world):
    with pytest.raises(InputError, match='novice'):
        next(preferences.pairs(world, 'novice'))


def test_it_is_quick(world):
    start = time.process_time()
    collections.deque(preferences.pairs(world), 0)
    collections.deque(preferences.rankings(world), 0)
    assert time.process_time() - start < 4      # 1.0 to 1.6 s when written, on a busy machine
