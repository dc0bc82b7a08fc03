"""Alarms of reward hacking: which, when, and when not."""

import math

import pytest

from jaxllm.config import section
from jaxllm.errors import InputError
from jaxllm.rl.alarms import AlarmConfig, check

CALM = {'kl': 1.0, 'entropy': 2.0, 'length': 20.0, 'repetition': 0.1, 'reward_std': 0.5}
ALL = dict(kl_max=10.0, length_factor=2.0, repetition_max=0.3, entropy_share_min=0.25,
           reward_std_share_min=0.1)


def names(settings, past, **changed):
    return [alarm.name for alarm in check(settings, past, CALM | changed)]


@pytest.mark.parametrize('name, well, ill, said', [
    ('kl', 10.0, 10.1, '10.10 nats per sequence, above 10'),
    ('length', 40.0, 40.1, "40.1 tokens, 2.00 times the first rollouts' 20.0"),
    ('length', 10.0, 9.9, "9.9 tokens, 0.49 times"),
    ('repetition', 0.3, 0.31, '31% of 3-grams'),
    ('entropy', 0.5, 0.49, "0.4900 nats per token, 24% of the first rollouts' 2.0000"),
    ('reward_std', 0.05, 0.049, 'standard deviation of 0.0490, 10%'),
])
def test_each_alarm_at_its_limit(name, well, ill, said):
    settings = AlarmConfig(**ALL)
    assert names(settings, [CALM], **{name: well}) == []
    found = check(settings, [CALM], CALM | {name: ill})
    assert [alarm.name for alarm in found] == [name] and said in found[0].message
    assert found[0].severity == 'warn'
    assert check(AlarmConfig(**ALL, stop=True), [CALM], CALM | {name: ill})[0].severity == 'stop'


def test_switched_off_there_is_none():
    assert check(AlarmConfig(), [CALM], {'kl': 1e9}) == []
    assert names(AlarmConfig(kl_max=5.0), [CALM], kl=6.0, length=900.0) == ['kl']


def test_several_at_once():
    assert names(AlarmConfig(**ALL), [CALM], kl=99.0, entropy=0.0, length=99.0, repetition=1.0,
                 reward_std=0.0) == ['kl', 'entropy', 'length', 'repetition', 'reward_std']


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_alarms_at_once(value):
    settings = AlarmConfig(**ALL, warmup=9)
    assert names(settings, [], kl=value) == ['kl']
    assert 'diverged' in check(settings, [], CALM | {'kl': value})[0].message


def test_the_first_rollouts_are_the_measure_and_give_none():
    settings = AlarmConfig(length_factor=2.0, warmup=2)
    first, second = CALM | {'length': 10.0}, CALM | {'length': 30.0}
    assert names(settings, [first], length=30.0) == []
    assert names(settings, [first, second], length=40.0) == []      # 2 x the mean of 10 and 30
    assert names(settings, [first, second], length=41.0) == ['length']
    # The very first rollout has only itself to be compared with.
    assert names(AlarmConfig(**ALL), []) == []


def test_the_mean_of_recent_rollouts_counts():
    settings = AlarmConfig(kl_max=10.0, recent=2)
    assert names(settings, [CALM, CALM], kl=18.0) == []             # (1 + 18) / 2
    assert names(settings, [CALM, CALM | {'kl': 3.0}], kl=18.0) == ['kl']
    # The measure itself is not among what is recent.
    assert names(AlarmConfig(length_factor=2.0, recent=5), [CALM], length=41.0) == ['length']


def test_names_of_the_log_are_read():
    logged = {f'rollout/{name}': value for name, value in CALM.items()}
    assert check(AlarmConfig(**ALL), [logged], logged) == []
    with pytest.raises(InputError, match="no metric 'kl'.*entropy"):
        check(AlarmConfig(kl_max=1.0), [], {'entropy': 1.0})


@pytest.mark.parametrize('values', [
    dict(kl_max=-1.0), dict(kl_max=math.inf), dict(length_factor=1.0), dict(length_factor=-2.0),
    dict(repetition_max=1.5), dict(entropy_share_min=1.0), dict(reward_std_share_min=-0.1),
    dict(warmup=-1), dict(recent=0), dict(length=2.0)])
def test_bad_settings_are_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        section(AlarmConfig, values, 'alarms')
