"""The quality of rewards against numbers worked out by hand."""

import math

import numpy as np
import pytest

from jaxllm.data.preferences import Comparison
from jaxllm.errors import InputError
from jaxllm.evals.reward import distance, ensemble, judges, quality
from jaxllm.report import reward as report
from jaxllm.world import oracle
from jaxllm.world.features import FEATURES


def compared(number, texts, ranks, **fields):
    return Comparison(({'role': 'user', 'content': f'p{number}'},), tuple(texts), tuple(ranks),
                      id=str(number), rater='ab'[number % 2], margin=float(number % 4),
                      fields=fields)


def rows_of(comparisons, rewards):
    lengths = [len(text) for c in comparisons for text in c.responses]
    return quality.rows('s', comparisons, np.asarray(rewards, float), lengths)


def test_pairs_count_alike_and_equal_rewards_half():
    found = rows_of([compared(0, ['a', 'bb', 'ccc'], [1, 2, 3]), compared(1, ['x', 'yy'], [2, 1]),
                     compared(2, ['x', 'yy'], [1, 1])], [3, 1, 2, 0, 0, 5, 4])
    pairs = quality.ordered_pairs(found)
    # (a, bb) and (a, ccc) are right, (bb, ccc) is wrong, (yy, x) equal; the tie has no pair.
    np.testing.assert_allclose(quality.right(pairs['reward']), [1, 1, 0, 0.5])
    np.testing.assert_array_equal(pairs['row'], [0, 0, 0, 1])
    np.testing.assert_allclose(pairs['length'], [-1, -2, -1, 1])


def many(count=60, flip=3):
    """Pairs in which the longer is preferred; every `flip`-th reward is the wrong way round."""
    found = [compared(i, ['short', 'much longer'], [2, 1], kind=f'k{i % 2}') for i in range(count)]
    rewards = [(1.0, 0.0) if i % flip == 0 else (0.0, 1.0) for i in range(count)]
    return rows_of(found, np.ravel(rewards))


def test_accuracy_lengths_and_slices():
    found = quality.measure(many(), gain=1.0)
    assert found['pairs'] == 60 and found['accuracy']['value'] == pytest.approx(2 / 3)
    assert found['accuracy']['low'] < 2 / 3 < found['accuracy']['high']
    length = found['length']
    assert length['longer']['n'] == 60 and length['shorter']['value'] is None
    assert length['person_prefers_longer'] == 1.0
    assert length['reward_prefers_longer'] == pytest.approx(2 / 3)
    assert length['person_correlation'] == pytest.approx(1.0)
    assert length['correlation'] == pytest.approx(1 / 3)
    assert [row['value_name'] for row in found['slices']['kind']] == ['k0', 'k1']
    assert [row['n'] for row in found['slices']['rater']] == [30, 30]
    assert [row['value_name'] for row in found['slices']['margin']] == list(quality.GRADES)
    assert found['slices']['source'] == []


def test_calibration_is_of_raw_rewards():
    """Two thirds right at a difference of log 2 is calibrated; a gain of 2 doubles what is seen."""
    differences = np.where(np.arange(300) % 3 == 0, -1.0, 1.0) * math.log(2)
    found = quality.calibrate(differences, np.arange(300))
    assert found['ece']['value'] == pytest.approx(0, abs=1e-9)
    assert found['temperature'] == pytest.approx(1.0, rel=1e-3)
    assert found['nll'] == pytest.approx(-(2 * math.log(2 / 3) + math.log(1 / 3)) / 3)
    assert quality.best_temperature(3 * differences) == pytest.approx(3.0, rel=1e-3)
    assert quality.calibrate(4 * differences, np.arange(300))['ece']['value'] > 0.2
    halved = quality.measure(many(), gain=2.0)['calibration']['bins'][0]['confidence']
    assert halved == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_a_tie_is_closer_than_a_difference():
    found = rows_of([compared(i, ['a', 'b', 'c'], [1, 1, 2]) for i in range(5)],
                    [1.0, 1.1, -1.0] * 5)
    ties = quality.ties(found)
    assert (ties['tied'], ties['ordered'], ties['auroc']) == (5, 10, 1.0)
    assert ties['distance_tied'] == pytest.approx(0.1)
    assert ties['distance_ordered'] == pytest.approx(2.05)


def test_judges_of_a_world():
    """The reward is the expert's own utility: it agrees with it fully and the noise is the rest."""
    rng = np.random.default_rng(0)
    expert, found, rewards = oracle.rater('expert', 'helpful'), [], []
    for i in range(200):
        phi = rng.random((2, len(FEATURES)))
        utility = phi @ expert.verified
        best = int(rng.random() > expert.probability(phi[0], phi[1]))
        c = compared(i, ['a', 'b'], [1 + best, 2 - best], features=phi.ravel().tolist())
        found.append(Comparison(c.prompt, c.responses, c.ranks, rater='expert',
                                criterion='helpful', id=c.id, fields=c.fields))
        rewards.extend(utility)
    rows = rows_of(found, rewards)
    measured = judges.measure(rows, {'s': 'helpful'})
    assert measured['utility']['value'] == 1.0
    assert measured['utility_correlation'] == pytest.approx(1.0)
    accuracy = quality.measure(rows, 1.0)['accuracy']['value']
    assert measured['ceiling'] == pytest.approx(accuracy) and 0.55 < accuracy < 1
    by_name = {row['judge']: row for row in measured['judges']}
    assert by_name['expert']['value'] == pytest.approx(by_name['expert']['best_possible'])
    assert by_name['random']['value'] == pytest.approx(0.5)
    assert by_name['hidden judge']['value'] < 1.0


def test_an_ensemble_flags_what_its_members_disagree_on_or_have_not_seen():
    rng = np.random.default_rng(1)
    found = many(100)
    base = np.array([x for row in found for x in row['rewards']])
    members = base[None] + 0.1 * rng.normal(size=(3, len(base)))
    near = lambda count: rng.uniform(0.5, 1.5, size=(3, count))
    texts = {'quarrel': rng.normal(size=(3, 50)) * 2, 'agreed nonsense': np.zeros((3, 50))}
    distances = {ensemble.OWN: near(len(base)), 'quarrel': near(50),
                 'agreed nonsense': 2 + near(50)}
    result = ensemble.measure(found, members, texts, ['a', 'b', 'c'], distances)
    ordinary, quarrel, nonsense = result['sets']
    share = lambda row, key='flagged': row[key]['value']
    assert share(ordinary) < 0.15
    assert share(quarrel, 'by_spread') > 0.9 and share(quarrel, 'by_distance') < 0.1
    assert share(nonsense, 'by_spread') == 0 and share(nonsense, 'by_distance') == 1
    assert share(quarrel) > 0.9 and share(nonsense) == 1
    assert quarrel['n'] == 50 and quarrel['std'] > 10 * ordinary['std']
    assert nonsense['distance'] == pytest.approx(distances['agreed nonsense'].mean())
    assert [row['run'] for row in result['members']] == ['a', 'b', 'c']
    assert result['accuracy']['value'] == pytest.approx(0.66, abs=0.05)
    np.testing.assert_allclose(ensemble.spread([[1.0, 2.0], [3.0, 2.0]])[1], [math.sqrt(2), 0])
    with pytest.raises(InputError, match='two members'):
        ensemble.spread([[1.0, 2.0]])


def test_ordinary_responses_are_flagged_one_time_in_twenty():
    rng = np.random.default_rng(2)
    found = many(2000)
    count = sum(len(row['rewards']) for row in found)
    result = ensemble.measure(found, rng.normal(size=(3, count)), {}, ['a', 'b', 'c'],
                              {ensemble.OWN: rng.random((3, count))})
    assert result['sets'][0]['flagged']['value'] == pytest.approx(0.05, abs=0.015)


def test_a_distance_knows_which_directions_training_used():
    """By hand: standard deviations 2 and 0.5, so that (4, 0) is at 2 and (0, 4) at 8 of them."""
    rng = np.random.default_rng(3)
    seen = distance.fit(rng.normal(size=(20000, 2)) * [2, 0.5] + [5, -1])
    far = seen.distance([[5, -1], [9, -1], [5, 3]])
    np.testing.assert_allclose(far, [0, math.sqrt(4 / 2), math.sqrt(64 / 2)], rtol=0.02, atol=0.02)
    ordinary = seen.distance(rng.normal(size=(5000, 2)) * [2, 0.5] + [5, -1])
    assert np.mean(ordinary ** 2) == pytest.approx(1, rel=0.05)
    # A direction that training never used: far, and not without end.
    flat = distance.fit(np.stack([rng.normal(size=500), np.zeros(500)], axis=1))
    assert 10 < flat.distance([[0.0, 1.0]])[0] < 100


@pytest.mark.parametrize('features, match', [([[1.0, 2.0]], 'two or more'),
                                             ([[1.0, 2.0]] * 5, 'all the same')])
def test_a_distance_needs_training_that_differs(features, match):
    with pytest.raises(InputError, match=match):
        distance.fit(features)


def test_the_report_shows_it(tmp_path):
    import json
    found = quality.measure(many(), gain=1.0)
    (tmp_path / 'quality.json').write_text(json.dumps(found))
    text = ''.join(section.body for section in report.sections(tmp_path))
    for words in ('Held-out pairs ordered rightly', '0.667', 'Accuracy by rater', 'better',
                  'expected win rate', 'The reward prefers the longer response in 67%'):
        assert words in text
    assert 'NaN' not in text and 'None' not in text
