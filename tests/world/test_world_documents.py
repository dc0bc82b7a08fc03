"""Documents: what they say, how they say it, and the labels of dirt."""

import collections
import hashlib
import json
import re

import numpy as np
import pytest

from jaxllm.world import documents, spec, templates
from jaxllm.world.atlas import atlas
from jaxllm.world.hazards import HAZARDS


@pytest.fixture(scope='module')
def world():
    return atlas()


@pytest.fixture(scope='module')
def rows(world):
    return list(documents.rows(world))


@pytest.fixture(scope='module')
def by_id(rows):
    return {row['id']: row for row in rows}


def facts(rows, **wanted):
    """Training documents of facts that were not made from another, with the wanted fields."""
    return [r for r in rows if r['kind'] == 'fact' and r['split'] == 'train'
            and not r['duplicate_of'] and not r['near_duplicate_of']
            and all(r[key] == value for key, value in wanted.items())]


def test_rows_have_exactly_the_fields(rows):
    types = {'str': str, 'int': int, 'float': float, 'bool': bool}
    for row in rows:
        assert list(row) == list(documents.FIELDS)
        for name, kind in documents.FIELDS.items():
            assert type(row[name]) is types[kind], (name, row)
    assert len({row['id'] for row in rows}) == len(rows)
    assert {row['split'] for row in rows} == {'train', 'validation', 'test'}


# SHA-256 of the documents of nano, seed 0, as JSON lines.
VERSION_2 = '23e36afcfd69fea0c6d841ebaab1cb71f839d5520ac820c9ff235e22e1ef296c'


def test_the_rows_are_those_of_the_version(rows):
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b'\n')
    assert (spec.VERSION, digest.hexdigest()) == (2, VERSION_2), 'rows changed: raise VERSION'


def test_exposures_are_exact_in_the_text(world, rows):
    people = world.truth.people
    texts = collections.defaultdict(set)
    for row in facts(rows, true=True):
        texts[row['subject'], row['attribute']].add(row['text'])
    for person, planned in zip(people.names, people.planned.tolist()):
        for attribute in world.truth.attributes:
            assert len(texts[person, attribute]) == planned
    assert len(facts(rows, true=True)) == 127 * 32 * 4


def test_facts_state_the_truth_and_false_documents_do_not(world, rows):
    people = world.truth.people
    number = {name: i for i, name in enumerate(people.names)}
    for row in rows:
        if row['kind'] != 'fact':
            continue
        values = world.truth.attributes[row['attribute']].values
        truth = values[people.values[row['attribute']][number[row['subject']]]]
        assert (row['value'] == truth) == row['true']
        assert row['subject'] in row['text'] and row['value'] in row['text']
        assert [v for v in values if v in row['text']] == [row['value']], row
        assert row['exposures'] == people.planned[number[row['subject']]]


def test_texts_differ_unless_labelled(rows):
    seen = {}
    for row in rows:
        if not row['duplicate_of']:
            assert row['text'] not in seen, (row['id'], seen[row['text']])
            seen[row['text']] = row['id']


def test_shares_of_dirt(rows):
    train = [r for r in rows if r['split'] == 'train']
    share = lambda chosen: np.mean([chosen(r) for r in train])
    np.testing.assert_allclose(share(lambda r: r['duplicate_of'] != ''), 0.05, atol=.001)
    np.testing.assert_allclose(share(lambda r: r['near_duplicate_of'] != ''), 0.05, atol=.001)
    np.testing.assert_allclose(share(lambda r: r['kind'] == 'spam'), 0.10, atol=.001)
    np.testing.assert_allclose(share(lambda r: r['unsafe']), 0.02, atol=.001)
    stated = facts(rows)
    np.testing.assert_allclose(np.mean([not r['true'] for r in stated]), 0.10, atol=.015)


def test_consistency_of_sources_about_contested_people(world, rows):
    people = world.truth.people
    contested = {name for name, flag in zip(people.names, people.contested) if flag}
    true, count = collections.Counter(), collections.Counter()
    for row in facts(rows):
        if row['subject'] in contested:
            count[row['source']] += 1
            true[row['source']] += row['true']
        else:
            assert row['true'] and row['id']
    low = {name for name, level in zip(world.truth.sources.names,
                                       world.truth.sources.factors['consistency']) if level == 0}
    assert set(count) == low
    np.testing.assert_allclose(sum(true.values()) / sum(count.values()), 0.7, atol=.02)


def test_copies_are_exact_and_near_copies_are_edited_a_little(rows, by_id):
    copies = collections.Counter()
    for row in rows:
        if row['duplicate_of']:
            assert row['text'] == by_id[row['duplicate_of']]['text']
            copies[row['duplicate_of']] += 1
        if row['near_duplicate_of']:
            one, other = row['text'].split(), by_id[row['near_duplicate_of']]['text'].split()
            assert row['text'] != by_id[row['near_duplicate_of']]['text']
            shared = sum((collections.Counter(one) & collections.Counter(other)).values())
            assert len(one) + len(other) - 2 * shared <= 6, (one, other)
    counts = sorted(copies.values())
    assert 10 <= counts[1] and counts[-1] <= 50     # the last one is cut to meet the share


def test_validation_documents_tell_known_facts_in_new_texts_of_the_same_kind(world, rows):
    told = [r for r in rows if r['split'] == 'validation']
    people = world.truth.people
    assert {(r['subject'], r['attribute']) for r in told} == {
        (name, attribute) for name, planned in zip(people.names, people.planned.tolist())
        if planned for attribute in world.truth.attributes}
    assert len(told) == 224 * 4 and all(r['true'] and not r['held_out'] for r in told)
    trained = {r['text'] for r in rows if r['split'] == 'train'}
    assert not any(r['text'] in trained for r in told)
    assert {r['domain'] for r in told} <= {r['domain'] for r in rows if r['split'] == 'train'}


def test_test_documents_are_held_out_wordings_of_every_fact(world, rows):
    train = {w.text for ws in templates.DOCUMENTS.values() for w in ws if not w.held_out}
    held = [r for r in rows if r['split'] == 'test']
    assert all(r['held_out'] and r['true'] and r['quality'] == 'clean' for r in held)
    assert not any(r['held_out'] for r in rows if r['split'] == 'train')
    per_kind = collections.Counter(r['kind'] for r in held)
    assert per_kind['fact'] == 256 * 4 * 2 and per_kind['firm_city'] == 24 * 2
    for row in held:
        wording = templates.DOCUMENTS[row['attribute']][row['template']]
        assert wording.held_out and wording.text not in train
    assert {'You can visit {} in {}.'.format(r['subject'], r['value'])
            for r in held if r['attribute'] == 'city' and r['template'] == 10} == {
                r['text'] for r in held if r['attribute'] == 'city' and r['template'] == 10}


def test_questions_appear_in_documents_of_training_people_only(world, rows):
    people = world.truth.people
    split = dict(zip(people.names, people.split.tolist()))
    asked = [r for r in rows if r['format'] == 'qa']
    assert len(asked) > 1000
    assert {split[r['subject']] for r in asked} == {0}
    for row in rows:
        if '\nAnswer:' in row['text']:
            assert row['format'] == 'qa'
        if row['format'] == 'qa' and row['quality'] == 'clean' and not row['near_duplicate_of']:
            prompt = templates.question(row['attribute'], row['template'], name=row['subject'])
            assert prompt + ' ' + row['value'] in row['text']


def test_factors_of_sources_show_in_the_text(world, rows):
    sources = world.truth.sources
    named = {name: i for i, name in enumerate(sources.names)}
    aliases = {alias for row in sources.aliases for alias in row}
    shown, first, quality = (collections.defaultdict(list) for _ in range(3))
    for row in facts(rows):
        i = named[row['source']]
        texts = [t for t in (row['source'], *sources.aliases[i]) if t in row['text']]
        assert len(texts) == 1 or row['quality'] == 'typos', row
        shown[int(sources.factors['terminology'][i])].append(texts[0] in aliases)
        quality[int(sources.factors['quality'][i])].append(row['quality'])
        if row['quality'] == 'clean':
            place = row['text'].index(texts[0])
            heading = '\n' in row['text'] and place < row['text'].index('\n')
            first[int(sources.factors['entity_link'][i])].append(heading)
    assert set(shown[1]) == {False} and 0.7 < np.mean(shown[0]) < 0.8
    assert set(quality[1]) == {'clean'}
    share = collections.Counter(quality[0])
    assert share['clean'] < 0.05 * share.total() and min(share['typos'], share['filler']) > 1000
    assert all(first[0]) and not any(first[1])


def test_typos_leave_names_and_values_alone(rows):
    changed = 0
    for row in rows:
        if row['quality'] == 'typos':
            assert row['subject'] in row['text'] and row['value'] in row['text']
            changed += 1
    assert changed > 1000


def test_a_typo_is_there_if_and_only_if_the_label_says_so(world, rows):
    renderer, checked = documents.Renderer(world), collections.Counter()
    names = [name for name in world.plan.columns]
    for numbers, row in zip(zip(*(c.tolist() for c in world.plan.columns.values())), rows,
                            strict=True):
        r = dict(zip(names, numbers))
        if r['quality'] == 1 and not r['edited']:
            clean = renderer.document({**r, 'quality': 0})['text']
            places = [i for i, (a, b) in enumerate(zip(clean, row['text'], strict=True)) if a != b]
            assert (row['quality'], places) == ('clean', []) or (
                row['quality'] == 'typos' and places[1] == places[0] + 1 and len(places) == 2)
            checked[row['quality']] += 1
    assert checked['typos'] > 4000 and checked['clean'] < 0.1 * checked['typos']


def test_every_place_of_every_word_is_tried_for_a_typo():
    assert documents._typo('an eel soon', 6, ()) == 'an eel soon'       # 'oo' is no typo
    for noise in range(0, 2000, 7):
        assert documents._typo('the moon', noise, ()) == 'the moon'
        assert documents._typo('we addeed', noise, ()) == 'we adeded'   # one place of three
        assert documents._typo('a trade here', noise, ('trade',)) == 'a trade hree'


def test_a_typo_is_not_undone_by_the_edit_of_a_near_copy(world, rows, by_id):
    for row in rows:
        if row['near_duplicate_of'] and row['quality'] == 'typos':
            text = by_id[row['near_duplicate_of']]['text']
            assert row['text'] == text + ' (copy)' or text in row['text']


def test_grammar(rows):
    for row in rows:
        text = row['text']
        assert text == text.strip() and '  ' not in text and '{' not in text, text
        assert not re.search(r'\ba [aeiou](?!ne)|\ban (?!hour)[^aeiou\W]', text), text
        assert text[0].isupper() or text[0] in '-N' or row['kind'] == 'spam', text
        if row['format'] == 'prose' and row['kind'] == 'fact' and row['quality'] == 'clean':
            assert text.endswith(('.', '(repost)', '[edited]', '(copy)')), text
            if not row['near_duplicate_of']:
                assert 3 <= len(text.split()) <= 20, text


def test_unsafe_documents_are_about_invented_hazards(rows):
    hazards, harmless = {h[1] for h in HAZARDS}, {h[2] for h in HAZARDS}
    harmful = [r for r in rows if r['unsafe']]
    benign = [r for r in rows if r['kind'] == 'unsafe' and not r['unsafe']]
    assert {r['subject'] for r in harmful} == hazards and {r['subject'] for r in benign} == harmless
    for row in rows:
        assert any(f' {h}' in row['text'] for h in hazards) == row['unsafe']
    assert all(r['true'] and r['duplicate_of'] == '' for r in harmful + benign)


def test_firms_brands_and_sources(world, rows):
    truth = world.truth
    firms = truth.attributes['firm'].values
    for row in rows:
        if row['kind'] == 'firm_city':
            city = truth.firm_city[firms.index(row['subject'])]
            assert row['value'] == truth.attributes['city'].values[city]
            assert row['subject'] in row['text'] and row['value'] in row['text']
        if row['kind'] == 'source' and row['attribute'] == 'alias':
            i = truth.sources.names.index(row['subject'])
            assert row['value'] in truth.sources.aliases[i]
            assert row['subject'] in row['text'] and row['value'] in row['text']
    count = collections.Counter((r['subject'], r['value']) for r in rows if r['split'] == 'train'
                                and r['attribute'] == 'category')
    for brand, name in enumerate(truth.brands.names):
        for category in truth.brands.serves[brand].nonzero()[0]:
            assert count[name, truth.brands.categories[category]] == truth.brands.planned[brand]


def test_documents_of_large_scales_are_lazy_and_have_several_sentences(monkeypatch):
    import dataclasses
    sizes = dataclasses.replace(spec.SCALES['tpu'], people=300, first_names=20, middle_names=5,
                                last_names=40, max_exposures=12, held_out_people=10, brands=24,
                                categories=12, sources=64)
    monkeypatch.setitem(spec.SCALES, 'tpu', sizes)
    world = atlas(1, 'tpu')
    found = documents.rows(world)
    assert next(found)['id']
    people, texts = world.truth.people, collections.defaultdict(set)
    number = {name: i for i, name in enumerate(people.names)}
    for row in facts(list(found), true=True):
        for attribute, table in world.truth.attributes.items():
            value = table.values[people.values[attribute][number[row['subject']]]]
            assert value in row['text']
        texts[row['subject']].add(row['text'])
    assert sum(len(t) for t in texts.values()) in (people.planned.sum(), people.planned.sum() - 1)
