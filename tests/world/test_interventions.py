"""Each intervention changes exactly the treated documents, byte for byte, and moves no other."""

import collections
import dataclasses

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.world import documents, interventions, plan
from jaxllm.world.atlas import atlas
from jaxllm.world.interventions import source_number
from jaxllm.world.spec import Intervention

SEED = 2


def rendered(intervention):
    world = atlas(SEED, 'nano', intervention)
    return world, list(documents.rows(world))


@pytest.fixture(scope='module')
def base():
    return rendered(Intervention())


def same_order(before, after):
    """Whether two lists are equal; a plain bool, for a diff of lists this long takes minutes."""
    return before == after


def difference(before, after):
    """(removed, changed, added) ids; asserts that the others are equal and in the same order."""
    old, new = {r['id']: r for r in before}, {r['id']: r for r in after}
    assert len(old) == len(before) and len(new) == len(after)
    changed = {i for i in old.keys() & new.keys() if old[i] != new[i]}
    same = (old.keys() & new.keys()) - changed
    assert same_order([r for r in before if r['id'] in same], [r for r in after if r['id'] in same])
    # Changed documents stay where they were, too.
    both = old.keys() & new.keys()
    assert same_order([r['id'] for r in before if r['id'] in both],
                      [r['id'] for r in after if r['id'] in both])
    return old.keys() - new.keys(), changed, new.keys() - old.keys()


def treated_names(world):
    people = world.truth.people
    return {name for name, flag in zip(people.names, people.treated) if flag}


def about(rows, names):
    """Ids of training documents about the people."""
    return {r['id'] for r in rows if r['kind'] == 'fact' and r['split'] == 'train'
            and r['subject'] in names}


def test_delete_removes_all_training_documents_of_the_treated(base):
    world, rows = rendered(Intervention('delete', exposures=32, share=0.5))
    removed, changed, added = difference(base[1], rows)
    people = world.truth.people
    assert people.treated.sum() == 16 and set(people.planned[people.treated]) == {32}
    assert removed == about(base[1], treated_names(world)) and not changed and not added
    assert len(removed) >= 16 * 32 * 4
    assert np.all(people.seen[people.treated] == 0)
    np.testing.assert_array_equal(people.seen[~people.treated], people.planned[~people.treated])
    for column in (world.counts, world.false_counts, world.copies, world.near_copies):
        assert column[people.treated].sum() == 0
    held = {r['subject'] for r in rows if r['split'] == 'test'}
    assert treated_names(world) <= held


def test_a_larger_share_contains_the_smaller_one():
    few, many = (atlas(SEED, 'nano', Intervention('delete', exposures=8, share=share))
                 for share in (0.25, 0.75))
    assert few.truth.people.treated.sum() == 8 and many.truth.people.treated.sum() == 24
    assert np.all(many.truth.people.treated[few.truth.people.treated])


def test_one_wording_keeps_the_number_of_documents(base):
    world, rows = rendered(Intervention('one_wording', share=0.5))
    removed, changed, added = difference(base[1], rows)
    assert not removed and not added
    people, documents_about = world.truth.people, about(rows, treated_names(world))
    assert [int(np.sum(people.treated[people.planned == f])) for f in (1, 8, 64)] == [16, 16, 16]
    assert changed <= documents_about
    wordings = collections.defaultdict(set)
    for row in rows:
        if row['id'] in documents_about:
            wordings[row['subject'], row['attribute']].add((row['format'] in ('prose', 'header'),
                                                            row['template']))
    assert {len(found) for found in wordings.values()} == {1}
    assert all(next(iter(found))[0] for found in wordings.values())
    np.testing.assert_array_equal(world.true_counts, base[0].true_counts)
    assert len(changed) > 0.7 * len(documents_about)


def test_skew_is_exact_and_touches_only_jobs_of_the_group(base):
    world, rows = rendered(Intervention('skew', 'A', share=0.7))
    removed, changed, added = difference(base[1], rows)
    people = world.truth.people
    jobs, group = people.values['job'], people.group
    assert np.mean(jobs[group == 0] == 0) == pytest.approx(0.7, abs=0.005)
    usual = base[0].truth.people.values['job']
    np.testing.assert_array_equal(jobs[group != 0], usual[group != 0])
    others = (jobs != 0) & (usual != 0)     # who is not moved to the first job keeps the own one
    np.testing.assert_array_equal(jobs[others], usual[others])
    assert not removed and not added
    names = treated_names(world)
    old = {r['id']: r for r in base[1]}
    expected = {r['id'] for r in base[1] if r['subject'] in names and r['attribute'] == 'job'}
    assert changed == expected
    assert all(old[i]['true'] == r['true'] for i, r in {r['id']: r for r in rows}.items())


@pytest.mark.parametrize('weight', [1, 4])
def test_reassign_gives_documents_to_the_source_and_to_no_other(base, weight):
    target = f's{np.flatnonzero(base[0].truth.sources.weights == weight)[1]}'
    world, rows = rendered(Intervention('source_volume', target, factor=4.0, how='reassign'))
    removed, changed, added = difference(base[1], rows)
    name = world.truth.sources.names[int(target[1:])]
    assert not removed and not added and changed
    old, new = ({r['id']: r for r in some} for some in (base[1], rows))
    assert all(new[i]['source'] == name != old[i]['source'] for i in changed)
    assert {new[i]['subject'] for i in changed} == treated_names(world)
    # Its chance among the three sources of a fact is weight / sum of the weights.
    number, truth = int(target[1:]), base[0].truth
    weights = np.where(np.arange(16) == number, 4.0, 1.0) * truth.sources.weights
    share = np.where(truth.support == number, weights[truth.support], 0).sum(axis=2) / (
        weights[truth.support].sum(axis=2))
    expected = np.sum(share * truth.people.planned[:, None])
    assert world.counts[:, :, number].sum() == pytest.approx(expected, rel=0.05)
    assert world.counts[:, :, number].sum() > 1.1 * base[0].counts[:, :, number].sum()
    np.testing.assert_array_equal(world.true_counts, base[0].true_counts)


def test_duplicate_adds_exact_copies(base):
    world, rows = rendered(Intervention('source_volume', 's5', factor=3.0, how='duplicate'))
    removed, changed, added = difference(base[1], rows)
    new = {r['id']: r for r in rows}
    assert not removed and not changed
    assert len(added) == 2 * base[0].counts[:, :, 5].sum()
    for i in added:
        assert new[i]['text'] == new[new[i]['duplicate_of']]['text']
    assert world.copies.sum() - base[0].copies.sum() == len(added)
    np.testing.assert_array_equal(world.counts, base[0].counts)


def test_paraphrase_adds_new_texts_of_the_same_facts(base):
    world, rows = rendered(Intervention('source_volume', 's5', factor=2.5, how='paraphrase'))
    removed, changed, added = difference(base[1], rows)
    assert not removed and not changed
    own = base[0].counts[:, :, 5]
    assert len(added) == pytest.approx(1.5 * own.sum(), rel=0.05)
    more = world.counts - base[0].counts
    assert more.sum() == len(added) == more[:, :, 5].sum()
    assert np.all(own[more[:, :, 5] > 0] > 0)
    texts = collections.Counter(r['text'] for r in rows if not r['duplicate_of'])
    assert max(texts.values()) == 1


@pytest.mark.parametrize('change', [
    Intervention(), Intervention('source_volume', 's5', factor=6.0, how='paraphrase'),
    Intervention('source_volume', 's5', factor=4.0, how='reassign'),
    Intervention('source_volume', 's4', factor=3.0, how='new_facts'),
    Intervention('contradict', 's5', share=0.5), Intervention('skew', 'A', share=0.7),
    Intervention('dirt', 'all', factor=2.0), Intervention('one_wording', exposures=16, share=1.0)],
    ids=lambda change: change.how or change.kind)
def test_no_text_comes_twice_without_a_label(change):
    _, rows = rendered(change)
    texts = collections.Counter(r['text'] for r in rows if not r['duplicate_of'])
    assert [text for text, count in texts.items() if count > 1] == []


@pytest.mark.parametrize('share', [0.5, 1.0])
def test_one_wording_leaves_validation_texts_alone(share):
    _, rows = rendered(Intervention('one_wording', share=share))
    trained, validated = ({r['text'] for r in rows if r['split'] == split}
                          for split in ('train', 'validation'))
    assert len(validated) == 224 * 4 and not trained & validated


def test_contradictions_are_no_texts_of_false_documents_however_far_the_walk_goes():
    drawer = plan.Drawer(0, (world := atlas(0)).scale, world.truth, world.truth.sources.weights)
    facts = plan.facts(drawer)
    false = interventions.contradicted(drawer, facts, 5, 1.0)
    own = facts['source'] == 5
    assert np.all(false['value'][own] != facts['value'][own])
    assert np.all(false['value'][own] != drawer.wrong(facts)[own])
    np.testing.assert_array_equal(false['value'][~own], facts['value'][~own])


def test_more_texts_of_a_fact_than_there_are_is_refused():
    with pytest.raises(InputError, match=r'factor=16.0 needs \d+ texts .* at most 319, .*smaller'):
        atlas(SEED, 'nano', Intervention('source_volume', 's5', factor=16.0, how='paraphrase'))


def test_no_new_fact_is_left(base):
    truth = base[0].truth
    people = dataclasses.replace(truth.people, contested=np.ones(256, bool))
    drawer = plan.Drawer(SEED, base[0].scale, dataclasses.replace(truth, people=people),
                         truth.sources.weights)
    change = Intervention('source_volume', 's5', factor=2.0, how='new_facts')
    with pytest.raises(InputError, match="source 's5' has no fact left .*how='paraphrase'"):
        interventions.added(drawer, plan.facts(drawer), 5, change)


def test_new_facts_are_new_to_the_source(base):
    world, rows = rendered(Intervention('source_volume', 's5', factor=2.0, how='new_facts'))
    removed, changed, added = difference(base[1], rows)
    assert not removed and not changed and len(added) == base[0].counts[:, :, 5].sum()
    more = world.counts - base[0].counts
    assert more[:, :, 5].sum() == len(added)
    assert np.all(base[0].counts[:, :, 5][more[:, :, 5] > 0] == 0)
    assert np.all(world.truth.people.planned[more[:, :, 5].sum(axis=1) > 0] > 0)
    assert {r['subject'] for r in rows if r['id'] in added} == treated_names(world)


def test_contradict_falsifies_a_share_of_a_source(base):
    name = base[0].truth.sources.names[9]
    world, rows = rendered(Intervention('contradict', name, share=0.5))
    removed, changed, added = difference(base[1], rows)
    new = {r['id']: r for r in rows}
    assert not removed and not added
    assert all(new[i]['source'] == name and not new[i]['true'] for i in changed)
    lost = base[0].counts - world.counts
    assert lost.sum() == lost[:, :, 9].sum() == round(0.5 * base[0].counts[:, :, 9].sum())
    originals = {i for i in changed
                 if not new[i]['duplicate_of'] and not new[i]['near_duplicate_of']}
    assert len(originals) == lost.sum()
    assert np.all(world.truth.people.seen <= world.truth.people.planned)
    assert {new[i]['subject'] for i in changed} == treated_names(world)


@pytest.mark.parametrize('target, label', [
    ('false', lambda r: not r['true']), ('duplicates', lambda r: r['duplicate_of'] != ''),
    ('near_duplicates', lambda r: r['near_duplicate_of'] != ''),
    ('spam', lambda r: r['kind'] == 'spam'), ('unsafe', lambda r: r['unsafe'])])
def test_dirt_is_removed_or_multiplied_by_kind(base, target, label):
    usual = sum(map(label, base[1]))
    people = lambda ids, rows: {r['subject'] for r in rows if r['id'] in ids
                                and r['kind'] == 'fact'}
    world, rows = rendered(Intervention('dirt', target, factor=0.0))
    removed, changed, added = difference(base[1], rows)
    assert removed == {r['id'] for r in base[1] if label(r)} and not added and not changed
    assert treated_names(world) == people(removed, base[1])
    world, rows = rendered(Intervention('dirt', target, factor=1.8))
    removed, changed, added = difference(base[1], rows)
    assert not removed and not changed
    assert treated_names(world) == people(added, rows)
    assert len(treated_names(world)) < base[0].truth.people.contested.sum()
    assert len(added) == pytest.approx(0.8 * usual, rel=0.1)
    assert all(label(r) for r in rows if r['id'] in added)


def test_no_dirt_at_all(base):
    world, rows = rendered(Intervention('dirt', 'all', factor=0.0))
    assert all(r['true'] and not r['duplicate_of'] and not r['near_duplicate_of']
               and r['kind'] != 'spam' and not r['unsafe'] for r in rows)
    np.testing.assert_array_equal(world.true_counts, base[0].true_counts)


def test_a_source_is_found_by_name_alias_or_number(base):
    sources = base[0].truth.sources
    assert source_number(sources, sources.names[4]) == 4
    assert source_number(sources, sources.aliases[6][2]) == 6
    assert source_number(sources, 's11') == 11
