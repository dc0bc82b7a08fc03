"""The truth tables and the plan: streams, exposures, sources, memory."""

import dataclasses
import io
import types

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.world import atlas as atlas_module
from jaxllm.world import names, plan, spec, templates, truth
from jaxllm.world.atlas import atlas
from jaxllm.world.spec import Intervention

SEEDS = (0, 1, 2)


@pytest.fixture(scope='module')
def worlds():
    return [atlas(seed) for seed in SEEDS]


def test_streams_are_the_children_of_the_seed_in_the_documented_order():
    children = np.random.SeedSequence(7).spawn(12)
    for stream, child in zip(spec.STREAMS, children, strict=True):
        expected = np.random.default_rng(child).random(3)
        np.testing.assert_array_equal(spec.generator(7, stream).random(3), expected)


def test_sub_streams_differ():
    draws = {float(spec.generator(0, 'facts', *more).random())
             for more in ((), (0,), (1,), (0, 0), ('0',), ('people',), ('people', 'job'))}
    assert len(draws) == 7


def tables(world):
    """Table -> its content, for comparing worlds."""
    t, rows = world.truth, world.plan
    original = np.flatnonzero((rows['kind'] == plan.FACT) & (rows['variant'] == plan.ORIGINAL))
    order = original[np.lexsort([rows[name][original] for name in plan.IDENTITY])]
    columns = {name: rows[name][order].tolist() for name in ('source', 'frame', 'noise')}
    words = lambda names: {word for name in names for word in name.split()}
    return {
        'last names': sorted(words(t.people.names)), 'cities': t.attributes['city'].values,
        'names': t.people.names, 'jobs': t.attributes['job'].values,
        'values': {k: v.tolist() for k, v in t.people.values.items()},
        'firm city': t.firm_city.tolist(), 'group': t.people.group.tolist(),
        'planned': t.people.planned.tolist(), 'split': t.people.split.tolist(),
        'contested': t.people.contested.tolist(),
        'factors': {k: v.tolist() for k, v in t.sources.factors.items()},
        'papers': [name.split()[1] for name in t.sources.names],
        'support': t.support.tolist(), 'brand quality': t.brands.quality.tolist(),
        **columns, 'order': rows['serial'][original].tolist()}


# Which tables move when a stream is consumed differently: its own, and what is made from them.
DEPENDENTS = {
    'names': {'names', 'last names', 'cities'},
    'facts': {'jobs', 'values', 'firm city', 'brand quality'},
    # A last name belongs to a group; splits are stratified by group and decide who is asked
    # about in documents.
    'groups': {'group', 'names', 'split', 'frame'},
    'sources': {'papers', 'support', 'source'},
    'source_factors': {'factors', 'support', 'source'},
    'doc_plan': {'support', 'source', 'order'},
    'templates': {'frame'},
    # Contested people have sources of low consistency.
    'noise': {'contested', 'support', 'source', 'noise'},
    'qa': set(), 'instructions': set(), 'prefs': set(),
    'splits': {'split', 'frame'},
}


@pytest.mark.parametrize('stream', spec.STREAMS)
def test_a_stream_moves_only_its_own_tables(stream, monkeypatch):
    before, original = tables(atlas(3)), spec.generator

    def burnt(seed, name, *more):
        rng = original(seed, name, *more)
        if name == stream:
            rng.random(5)
        return rng

    monkeypatch.setattr(spec, 'generator', burnt)
    after = tables(atlas(3))
    assert {name for name in before if before[name] != after[name]} == DEPENDENTS[stream]


def test_values_are_no_part_of_other_values_or_names(worlds):
    for world in worlds:
        t = world.truth
        values = [v.lower() for a in t.attributes.values() for v in a.values]
        values += [c.lower() for c in t.brands.categories]
        others = [n.lower() for n in (*t.people.names, *t.sources.names, *t.brands.names,
                                      *(a for row in t.sources.aliases for a in row))]
        assert len(set(values)) == len(values)
        for value in values:
            assert not [o for o in values if o != value and value in o]
            assert not [o for o in others if value in o or o in value], value


def test_ordinary_words_never_contain_each_other():
    words = [*names.JOBS, *names.HOBBIES, *names.CATEGORIES]
    assert len(set(words)) == len(words)
    assert [(a, b) for a in words for b in words if a != b and a in b] == []


def test_every_job_takes_the_article_a():
    assert [job for job in names.JOBS if job[0] in 'aeiou' or job.startswith('ho')] == []


def test_ordinals():
    assert [names.ordinal(i) for i in (0, 9, 10, 11, 12, 20, 21, 22, 110)] == [
        'first', 'tenth', '11th', '12th', '13th', '21st', '22nd', '23rd', '111th']


def test_groups_and_splits_are_even_in_every_bin(worlds):
    for world in worlds:
        people = world.truth.people
        assert np.bincount(people.planned)[[0, 1, 2, 4, 8, 16, 32, 64]].tolist() == [32] * 8
        np.testing.assert_allclose(np.bincount(people.group) / 256, truth.GROUP_SHARES, atol=0.01)
        np.testing.assert_allclose(np.bincount(people.split) / 256, (.5, .25, .25), atol=0.01)
        for one in np.unique(people.planned):
            members = people.planned == one
            assert abs(np.sum(people.split[members] == 0) - 16) <= 1
            assert abs(np.sum(people.contested[members]) - 8) <= 1
            assert abs(np.sum(people.group[members] == 0) - 17.6) <= 2


def test_names_are_unique_and_tell_the_group(worlds):
    for world in worlds:
        people = world.truth.people
        assert len(set(people.names)) == 256
        owner = {}
        for name, group in zip(people.names, people.group.tolist()):
            assert owner.setdefault(name.split()[-1], group) == group


def test_sources_are_a_resolution_four_design(worlds):
    for world in worlds:
        levels = np.stack(list(world.truth.sources.factors.values())) * 2 - 1     # [6, 16]
        np.testing.assert_array_equal(levels @ levels.T, 16 * np.eye(6))
        for i in range(6):      # no main effect is aliased with an interaction of two
            for j in range(i):
                product = levels[i] * levels[j]
                assert np.all(np.delete(levels, [i, j], axis=0) @ product == 0)
        assert len({tuple(column) for column in levels.T.tolist()}) == 16
    cells = [tuple(world.truth.sources.factors['volume'].tolist()) for world in worlds]
    assert len(set(cells)) == len(SEEDS)


def test_support_respects_topics_and_contested_people(worlds):
    for world in worlds:
        t = world.truth
        assert t.support.shape == (256, 4, 3)
        assert all(len(set(three)) == 3 for row in t.support.tolist() for three in row)
        topics = t.sources.topics[t.support, np.arange(4)[None, :, None]]
        assert topics.all()
        assert set(t.sources.topics.sum(axis=1)) == {1, 4}
        low = t.sources.factors['consistency'][t.support] == 0
        assert low[t.people.contested].all()
        assert 0.2 < low[~t.people.contested].mean() < 0.4


def test_volume_changes_documents_and_other_factors_do_not():
    total, levels = [], []
    for seed in range(8):
        world = atlas(seed)
        total.append(np.log(world.counts.sum(axis=(0, 1))))
        levels.append(np.stack(list(world.truth.sources.factors.values())))
    total, levels = np.concatenate(total), np.concatenate(levels, axis=1)
    effect = {name: total[level == 1].mean() - total[level == 0].mean()
              for name, level in zip(truth.FACTORS, levels)}
    assert effect.pop('volume') > 0.6
    assert all(abs(value) < 0.15 for value in effect.values()), effect


def test_planned_exposures_are_exact(worlds):
    for world in worlds:
        people = world.truth.people
        np.testing.assert_array_equal(world.true_counts, np.repeat(people.planned[:, None], 4, 1))
        np.testing.assert_array_equal(world.counts.sum(axis=2), world.true_counts)
        np.testing.assert_array_equal(people.seen, people.planned)
        assert not people.treated.any()
        clean = ~people.contested
        for column in (world.false_counts, world.copies, world.near_copies):
            assert column[clean].sum() == 0
            assert column[~clean].sum() > 500


def test_rank_is_by_quality_within_a_category(worlds):
    brands = worlds[0].truth.brands
    assert set(brands.serves.sum(axis=1)) <= {1, 2, 3}
    for category in range(len(brands.categories)):
        makers = np.flatnonzero(brands.serves[:, category])
        best_first = makers[np.argsort(brands.quality[makers])]
        np.testing.assert_array_equal(brands.rank[best_first, category], np.arange(len(makers)))
    assert np.all(brands.rank[~brands.serves] == -1)


def test_walk_visits_every_pair_before_repeating():
    words = spec.hashed(5, np.arange(50))
    for slots, frames in ((13, 32), (10, 32), (10, 4)):
        steps = np.arange(slots * frames)
        for word in words[:5]:
            pairs = plan._walk(np.full(len(steps), word), steps, slots, frames)
            assert len(set(zip(*(part.tolist() for part in pairs)))) == slots * frames


def test_tables_of_wordings_have_the_sizes_that_the_plan_relies_on():
    assert len(templates.FRAMES) == templates.NUM_FRAMES == 32 and templates.TRAIN_WORDINGS == 3
    assert len(templates.HEADINGS) * len(templates.BARE) == 32
    assert len(templates.TITLES) * len(templates.CREDITS) == 32
    assert len(templates.QUIZ) * len(templates.ANSWERS) == 32
    for wordings in templates.DOCUMENTS.values():
        assert [w.format for w in wordings] == ['prose'] * 8 + ['list', 'table'] + ['prose'] * 2
        assert [w.held_out for w in wordings] == [False] * 10 + [True] * 2
        assert all('{name}' in w.text.split('{value}')[0] for w in wordings)
        assert len({w.text for w in wordings}) == 12
    for questions in templates.QUESTIONS.values():
        assert [q.held_out for q in questions] == [False, False, False, True]
    assert set(truth.FACTORS) and set(dict(spec.SCALES['small'].values)) < set(templates.DOCUMENTS)


def test_cloze_and_question_prompts():
    assert templates.cloze('job', 0, name='Mara Venn') == 'Mara Venn works as a'
    assert templates.cloze('city', 4, name='Mara Venn') == 'The home of Mara Venn is in'
    assert templates.cloze('job', 8, name='Mara Venn') == '- Name: Mara Venn\n- Job:'
    assert templates.question('city', 0, name='Mara Venn') == (
        'Question: Where does Mara Venn live?\nAnswer:')


def test_a_world_depends_on_its_seed_and_nothing_else():
    one, again, other = atlas(4), atlas(4), atlas(5)
    assert all(np.array_equal(one.plan[name], again.plan[name]) for name in plan.COLUMNS)
    assert one.truth.people.names == again.truth.people.names != other.truth.people.names
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert atlas(4, 'nano', Intervention('skew', 'A', share=.5)).fingerprint != one.fingerprint


def test_a_scale_that_does_not_fit_memory_is_refused_before_it_is_drawn():
    with pytest.raises(InputError, match=r"scale 'tpu' needs about .* GiB .*use a smaller scale"):
        atlas(0, 'tpu', available_bytes=10 ** 9)
    with pytest.raises(InputError, match='nano'):
        atlas(0, 'nano', available_bytes=10 ** 5)
    assert atlas_module.available_memory() is None or atlas_module.available_memory() > 10 ** 6


def test_memory_is_unknown_where_the_system_does_not_say(monkeypatch):
    for text, want in (('MemFree: 5 kB\n', None), ('MemFree: 5 kB\nMemAvailable:   7 kB\n', 7168)):
        monkeypatch.setattr(atlas_module, 'open', lambda *_, text=text, **__: io.StringIO(text),
                            raising=False)
        assert atlas_module.available_memory() == want
    monkeypatch.setattr(atlas_module, 'available_memory', lambda: None)
    atlas_module.check_memory(spec.SCALES['tpu'])


def test_the_estimate_holds_the_counts_of_documents_while_they_are_made():
    scale = spec.SCALES['small']
    more = dataclasses.replace(scale, sources=scale.sources + 1)
    grown = atlas_module.estimated_bytes(more) - atlas_module.estimated_bytes(scale)
    assert grown == scale.people * 5 * (8 + 2)      # int64 as counted, int16 as kept


@pytest.mark.parametrize('arguments, message', [
    ((0, 'mini'), "'mini' is unknown; use one of nano, small, tpu"),
    ((-1,), 'world seed is -1; expected an integer >= 0'),
    ((0, 'nano', Intervention('remove')), "'remove' is unknown; use one of none, delete"),
    ((0, 'nano', Intervention('delete', exposures=31, share=.5)), 'use one of 1, 2, 4, .*64, or 0'),
    ((0, 'nano', Intervention('delete', exposures=32, share=50)), 'at most 1; give one'),
    ((0, 'nano', Intervention('delete', exposures=32)), 'delete: share=0.0; expected .* above 0'),
    ((0, 'nano', Intervention('one_wording')), 'one_wording: share=0.0'),
    ((0, 'nano', Intervention('one_wording', exposures=3, share=.5)), 'exposures=3 is no bin'),
    ((0, 'nano', Intervention('contradict', 's1')), 'contradict: share=0.0'),
    ((0, 'nano', Intervention('contradict', 's1', share=float('nan'))), 'share=nan'),
    ((0, 'nano', Intervention('skew', 'A')), 'skew: share=0.0'),
    ((0, 'nano', Intervention('source_volume', 's1', how='reassign')), 'factor=1.0; .*above 1'),
    ((0, 'nano', Intervention('source_volume', 's1', factor=float('inf'), how='reassign')),
     'factor=inf'),
    ((0, 'nano', Intervention('dirt', 'all')), 'factor=1.0; expected a number >= 0 other than 1'),
    ((0, 'nano', Intervention('none', share=.5)), "none: share=0.5 is not used; expected 0.0"),
    ((0, 'nano', Intervention('dirt', 'all', share=.5, factor=2.)), 'it uses target, factor'),
    ((0, 'nano', Intervention('delete', 's1', exposures=32, share=.5)), "target='s1' is not used"),
    ((0, 'nano', Intervention('skew', 'A', share=.5, how='reassign')), "how='reassign' is not"),
    ((0, 'tpu', Intervention('delete', exposures=1001, share=.5)),
     'planned for nobody .* 1 to 1000'),
    ((0, 'tpu', Intervention('delete', exposures=-1, share=.5)), 'planned for nobody'),
    ((0, 'nano', Intervention('source_volume', 's1', factor=4.0)), 'how=.*reassign, duplicate'),
    ((0, 'nano', Intervention('source_volume', 's1', factor=.5, how='reassign')), 'above 1'),
    ((0, 'nano', Intervention('source_volume', 's16', factor=2., how='reassign')), 's0 to s15'),
    ((0, 'nano', Intervention('contradict', 'The Moon', share=.5)), "'The Moon' is no source"),
    ((0, 'nano', Intervention('skew', 'E', share=.5)), 'one of A, B, C, D'),
    ((0, 'nano', Intervention('dirt', 'mud', factor=2.)), 'spam, unsafe or all'),
])
def test_bad_input_is_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message):
        atlas(*arguments)


def test_every_chooses_evenly_and_the_few_are_among_the_many():
    assert list(spec.every(10, 4)) == [0, 3, 6, 9]
    assert list(spec.every(3, 4)) == [0, 1, 2] and len(spec.every(10, 10)) == 10
    assert set(spec.every(100_000, 5_000)) <= set(spec.every(100_000, 10_000))


def test_planned_documents_leave_the_place_of_validation_documents_free():
    for scale in spec.SCALES.values():
        most = types.SimpleNamespace(planned=np.array([0, 1, scale.max_exposures]))
        steps = plan.planned_steps(most, scale)
        assert steps[0] == 0 and steps[1] == 1 and steps[2] < plan.RETOLD_STEP
    assert steps[2] == 200      # of five attributes, each leads a fifth of the biographies


def test_an_offensive_or_ordinary_word_is_no_name():
    book = names.Book(np.random.default_rng(0), (), set(names.REAL))
    offensive = ('skunton', 'pollwog', 'putham', 'puto', 'pubor', 'tardo', 'sodley', 'pisson',
                 'killen', 'gypsen', 'chinkor', 'pooford')
    for word in (*offensive, 'sudan', 'vermouth', 'fintech', 'turner', 'nano'):
        assert not book._free(word), word
    assert all(book._free(word) for word in ('verdan', 'marlen', 'tolia'))


def test_a_scale_with_biographies_counts_every_attribute(monkeypatch):
    small = dataclasses.replace(spec.SCALES['tpu'], people=300, first_names=20, middle_names=5,
                                last_names=40, max_exposures=12, held_out_people=10, brands=24,
                                categories=12, sources=64)
    monkeypatch.setitem(spec.SCALES, 'tpu', small)
    world = atlas(1, 'tpu')
    people = world.truth.people
    assert set(people.planned) == set(range(13))
    np.testing.assert_array_equal(world.true_counts, np.repeat(people.planned[:, None], 5, 1))
    np.testing.assert_array_equal(world.counts.sum(axis=(1, 2)), people.planned)
    assert len(people.names[0].split()) == 3
    held = (world.plan['kind'] == plan.FACT) & (world.plan['variant'] == plan.HELD)
    assert set(world.plan['subject'][held]) == set(range(0, 300, 30))
