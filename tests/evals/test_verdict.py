"""Verdicts: each of the five, where the borders lie, and that arms are paired."""

import json
import re

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.evals import effects, verdict

GAIN = effects.difference('new', 'old', effects.mean())


def rows(gains, entities=40, noise=0.):
    """{seed: arms}: 2 items on each entity; the new arm has `gain` more of them right."""
    result = {}
    for seed, gain in enumerate(gains):
        generator = np.random.default_rng(seed)
        names = np.repeat([f'p{i}' for i in range(entities)], 2)
        score = .4 + noise * generator.normal(size=2 * entities)
        arm = {'id': np.array([f'{name}/{i}' for i, name in enumerate(names)]), 'subject': names}
        jitter = .05 * generator.normal(size=2 * entities)
        jitter -= jitter.mean()
        mixed = generator.permutation(2 * entities)
        new = {**arm, 'correct': score + gain + jitter}
        result[seed] = {'old': {**arm, 'correct': score},
                        'new': {name: values[mixed] for name, values in new.items()}}
    return result


def judged(gains, delta=0., null=0., **kwargs):
    rule = verdict.Rule('gain', 'new is better', GAIN, null=null, delta=delta)
    return verdict.judge(rule, rows(gains, **kwargs), draws=1000)


@pytest.mark.parametrize('gains, delta, expected, why', [
    ([.3, .3], 0, 'UNDERPOWERED', 'fewer than 3 seeds'),
    ([.3], 0, 'UNDERPOWERED', 'fewer than 3 seeds'),
    ([.3, .2, .3], .1, 'DIRECTION_ONLY', '3 seeds can show no more than the direction'),
    ([.3, .2, .3, .3], .1, 'DIRECTION_ONLY', '4 seeds'),
    ([.3, .2, .3, .3, .2], .1, 'REPLICATED', 'all seeds above 0, by at least the 0.1'),
    ([.3] * 3, .3, 'DIRECTION_ONLY', 'at least the 0.3'),
    ([.3, .2, .3], .5, 'NULL', 'less than the 0.5 fixed beforehand'),
    ([.3, -.2, .3], 0, 'NULL', r'disagree \(2 of 3 above 0\)'),
    ([.001, .001, .001], 0, 'NULL', 'interval over the items includes 0'),
    ([.1, .1, .1, .1, .9], 0, 'NULL', 'interval over the seeds'),
    ([-.3, -.2, -.3], .1, 'REVERSED', 'all seeds below 0, .* against the claim'),
    ([-.3, -.2, -.3, -.2, -.3], .1, 'REVERSED', 'against the claim'),
    ([-.3, -.2, -.3], .5, 'NULL', 'all seeds below 0, but by less'),
])
def test_each_verdict(gains, delta, expected, why):
    result = judged(gains, delta)
    assert result.verdict == expected
    np.testing.assert_allclose(list(result.effects_by_seed.values()), gains, atol=1e-9)
    assert result.effect == pytest.approx(np.mean(gains))
    assert re.search(why, result.reason) and '\n' not in result.reason


def test_distances_are_taken_from_the_null():
    assert judged([.3, .2, .3], null=.1, delta=.15).verdict == 'DIRECTION_ONLY'
    assert judged([.3, .2, .3], null=.1, delta=.2).verdict == 'NULL'
    assert judged([.3, .2, .3], null=.5, delta=.1).verdict == 'REVERSED'


def test_arms_are_paired():
    """The arms share a noise of items that would drown the gain if each were drawn alone."""
    gains = [.05, .04, .05]
    assert judged(gains, noise=.5).verdict == 'DIRECTION_ONLY'
    apart = rows(gains, noise=.5)
    for arms in apart.values():
        order = np.random.default_rng(0).permutation(80)
        arms['new']['correct'] = arms['new']['correct'][order]
    rule = verdict.Rule('gain', 'new is better', GAIN)
    assert verdict.judge(rule, apart, draws=1000).verdict == 'NULL'


def test_entities_are_drawn_whole():
    data, generator = rows([0.] * 3), np.random.default_rng(0)
    for arms in data.values():
        order = np.argsort(arms['new']['id'])
        arms['new'] = {name: values[order] for name, values in arms['new'].items()}
        whole = {name: generator.normal() for name in np.unique(arms['new']['subject'])}
        arms['new']['correct'] = np.array([whole[name] for name in arms['new']['subject']])
    rule = verdict.Rule('gain', 'new is better', GAIN)
    whole, alone = (verdict.judge(rule, data, entity=entity) for entity in ('subject', 'id'))
    ratio = (whole.items.high - whole.items.low) / (alone.items.high - alone.items.low)
    assert ratio == pytest.approx(2 ** .5, rel=.08)
    assert '120 entities within 3 seeds' in whole.items.method


def test_a_plain_function_judges_as_the_effect_does():
    data = rows([.3, .2, .3], noise=.3)
    plain = verdict.Rule('gain', 'new is better', lambda arms: (
        arms['new']['correct'] - arms['old']['correct']).mean())  # rows in one order, by id
    fast = verdict.Rule('gain', 'new is better', GAIN)
    a, b = (verdict.judge(rule, data, draws=400) for rule in (plain, fast))
    assert a.verdict == b.verdict == 'DIRECTION_ONLY'
    # The same resamples, by repeated rows and by weighted sums.
    assert (a.effect, a.low, a.high) == pytest.approx((b.effect, b.low, b.high))


def test_shows_the_interval_over_seeds_once_there_are_five():
    few, many = judged([.3, .2, .3, .2]), judged([.3, .2, .3, .2, .3])
    assert 'entities within 4 seeds' in few.as_dict()['method']
    assert (many.low, many.high) == (many.seeds.low, many.seeds.high)
    # mean .26, s = .0547723, t(.975, 4) = 2.77645.
    assert many.high == pytest.approx(.26 + 2.77645 * .0547723 / 5 ** .5, abs=1e-4)


def test_an_effect_that_is_undefined_decides_nothing():
    data = rows([.3, .2, .3])
    for arms in data.values():
        for table in arms.values():
            table['rare'] = np.char.startswith(table['id'], 'p0/')
    rare = verdict.Rule('rare', '', effects.difference('new', 'old', effects.mean(rare=True)))
    result = verdict.judge(rare, data, draws=500)
    assert result.verdict == 'UNDERPOWERED' and 'of the resamples' in result.reason
    none = verdict.Rule('none', '', effects.difference('new', 'old', effects.mean(subject='x')))
    result = verdict.judge(none, data, draws=500)
    assert result.verdict == 'UNDERPOWERED' and 'undefined in 3 of them' in result.reason
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))['effect'] is None


def test_a_rule_reads_its_rows_alone():
    """Rows of another suite may differ between the arms."""
    data = rows([.3, .2, .3])
    for arms in data.values():
        for name, table in arms.items():
            size = {'old': 3, 'new': 5}[name]
            arms[name] = {
                'id': np.append(table['id'], [f'{name}{i}' for i in range(size)]),
                'subject': np.append(table['subject'], [name] * size),
                'correct': np.append(table['correct'], [9.] * size),
                'suite': np.array(['recall'] * 80 + ['other'] * size)}
    rule = verdict.Rule('gain', 'new is better', GAIN, where={'suite': 'recall'})
    assert verdict.judge(rule, data, draws=200).effect == pytest.approx(.8 / 3)
    plain = verdict.Rule('gain', '', lambda arms: arms['new']['correct'].max(),
                         where={'suite': 'recall'})
    assert verdict.judge(plain, data, draws=20).effect < 9
    with pytest.raises(InputError, match="'new' and 'old'|'old' and 'new'"):
        verdict.judge(verdict.Rule('gain', '', GAIN), data)
    with pytest.raises(InputError, match="has no rows with {'suite': \"'x'\"}"):
        verdict.judge(verdict.Rule('gain', '', GAIN, where={'suite': 'x'}), data)


def test_what_a_rule_states_is_json():
    rule = verdict.Rule('gain', 'new is better', GAIN, null=.5, delta=.1,
                        where={'suite': ('a', 'b'), 'subject': np.isnan})
    assert json.loads(json.dumps(rule.stated())) == {
        'name': 'gain', 'claim': 'new is better', 'null': .5, 'delta': .1,
        'where': {'suite': "('a', 'b')", 'subject': 'isnan'}}


def test_is_json():
    told = json.loads(json.dumps(judged([.3, .2, .3], .1).as_dict(), allow_nan=False))
    assert told['effects_by_seed'] == pytest.approx({'0': .3, '1': .2, '2': .3})
    assert told['verdict'] == 'DIRECTION_ONLY' and told['delta'] == .1 and told['rule'] == 'gain'
    assert told['low'] < told['effect'] < told['high']


@pytest.mark.parametrize('names, expected', [
    (['REPLICATED', 'REPLICATED'], 'REPLICATED'),
    (['REPLICATED', 'DIRECTION_ONLY'], 'DIRECTION_ONLY'),
    (['DIRECTION_ONLY', 'NULL'], 'NULL'), (['NULL', 'REVERSED', 'REPLICATED'], 'REVERSED'),
    (['REVERSED', 'UNDERPOWERED'], 'UNDERPOWERED')])
def test_the_weakest_rule_counts(names, expected):
    assert verdict.overall(names) == expected


def test_overall_of_verdicts():
    assert verdict.overall([judged([.3, .2, .3]), judged([.3, .2, .3], .9)]) == 'NULL'
    with pytest.raises(InputError, match='one or more'):
        verdict.overall([])


def test_says_what_is_wrong_with_the_arms():
    data = rows([.3, .2, .3])
    data[1]['new'] = {name: values[:-1] for name, values in data[1]['new'].items()}
    with pytest.raises(InputError, match="'gain', seed 1: arms 'new' and 'old': .* 1 only in"):
        verdict.judge(verdict.Rule('gain', '', GAIN), data)
    data = rows([.3, .2, .3])
    data[2]['new']['subject'] = np.where(
        data[2]['new']['subject'] == 'p3', 'p4', data[2]['new']['subject'])
    with pytest.raises(InputError, match="seed 2: .*'subject' names different entities"):
        verdict.judge(verdict.Rule('gain', '', GAIN), data)
    with pytest.raises(InputError, match="no arm 'sft'"):
        verdict.judge(verdict.Rule('g', '', effects.of('sft', effects.mean())), rows([.1]))
    with pytest.raises(InputError, match='no seeds'):
        verdict.judge(verdict.Rule('g', '', GAIN), {})
    with pytest.raises(InputError, match='delta=-0.1'):
        verdict.Rule('g', '', GAIN, delta=-.1)
