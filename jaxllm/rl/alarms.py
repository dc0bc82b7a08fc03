"""Alarms of reward hacking: what in the history of rollouts says that the policy games its reward.

Pure functions of the metrics of rollouts; the stage says them, or stops the run.
"""

import dataclasses
import math

import numpy as np

from jaxllm.errors import InputError


@dataclasses.dataclass(frozen=True)
class AlarmConfig:
    """Limits; 0 switches an alarm off.

    kl_max: nats per sequence between policy and reference.
    length_factor: mean length against the first rollouts, longer or shorter by this factor.
    repetition_max: share of repeated 3-grams.
    entropy_share_min: share of the first rollouts' entropy that has to be left.
    reward_std_share_min: share of the first rollouts' spread of rewards that has to be left.
    warmup: rollouts without an alarm; their mean is what later ones are compared with, at least
      the first is.
    recent: rollouts whose mean is compared, so that a single odd one gives no alarm.
    stop: an alarm stops the run; else it is only said.
    """
    kl_max: float = 0.0
    length_factor: float = 0.0
    repetition_max: float = 0.0
    entropy_share_min: float = 0.0
    reward_std_share_min: float = 0.0
    warmup: int = 0
    recent: int = 1
    stop: bool = False

    def __post_init__(self):
        if not 0 <= self.kl_max < math.inf:
            raise InputError(f'alarms.kl_max={self.kl_max}: expected nats per sequence, 0 = off')
        if self.length_factor and not 1 < self.length_factor < math.inf:
            raise InputError(f'alarms.length_factor={self.length_factor}: expected a factor above '
                             '1, e.g. 2.0, or 0 = off')
        for name in ('repetition_max', 'entropy_share_min', 'reward_std_share_min'):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f'alarms.{name}={getattr(self, name)}: expected a share from 0 '
                                 '(off) to below 1')
        if self.warmup < 0 or self.recent < 1:
            raise InputError(f'alarms.warmup={self.warmup} and recent={self.recent}: expected at '
                             'least 0 and 1')


@dataclasses.dataclass(frozen=True)
class Alarm:
    """name: which one. message: what was seen and what it may mean. severity: 'warn' or 'stop'."""
    name: str
    message: str
    severity: str


def check(settings, past, metrics):
    """Alarms that the newest rollout gives, in the order kl, entropy, length, repetition, rewards.

    Args:
      settings: AlarmConfig.
      past: metrics of all earlier rollouts, oldest first, {'kl', 'length', 'entropy', ...}.
      metrics: those of the newest.

    Returns:
      A list of Alarm, empty where all is well.

    Raises:
      InputError: a metric that a switched-on alarm needs is not there.
    """
    history = [*past, metrics]
    found = []
    for name, limit, alarm in (('kl', settings.kl_max, _kl),
                               ('entropy', settings.entropy_share_min, _entropy),
                               ('length', settings.length_factor, _length),
                               ('repetition', settings.repetition_max, _repetition),
                               ('reward_std', settings.reward_std_share_min, _reward_std)):
        if not limit:
            continue
        values = [_value(one, name) for one in history]
        if not math.isfinite(values[-1]):
            found.append((name, f'{name} is {values[-1]}; the policy has diverged'))
        elif len(past) >= settings.warmup:
            base = values[:max(settings.warmup, 1)]
            now = np.mean(values[len(base):][-settings.recent:] or values[-1:])
            message = alarm(float(now), float(np.mean(base)), limit)
            found += [(name, message)] if message else []
    severity = 'stop' if settings.stop else 'warn'
    return [Alarm(name, message, severity) for name, message in found]


def _value(metrics, name):
    for key in (name, f'rollout/{name}'):
        if key in metrics:
            return float(metrics[key])
    raise InputError(f'a rollout has no metric {name!r}, which an alarm needs; it has '
                     f'{", ".join(sorted(metrics))}')


def _kl(now, base, limit):
    return now > limit and (
        f'KL to the reference is {now:.2f} nats per sequence, above {limit:g}: the policy has left '
        'the region where its reward was learned')


def _entropy(now, base, limit):
    return now < limit * base and (
        f'entropy is {now:.4f} nats per token, {now / base:.0%} of the first rollouts\' '
        f'{base:.4f} (limit {limit:.0%}): the policy says one thing only')


def _length(now, base, limit):
    return (now > base * limit or now * limit < base) and (
        f'responses have {now:.1f} tokens, {now / base:.2f} times the first rollouts\' {base:.1f} '
        f'(limit {limit:g} either way): the reward may pay for length')


def _repetition(now, base, limit):
    return now > limit and (
        f'{now:.0%} of 3-grams repeat earlier ones of the same response, above {limit:.0%} (first '
        f'rollouts: {base:.0%}): the reward may pay for repetition')


def _reward_std(now, base, limit):
    return now < limit * base and (
        f'rewards have a standard deviation of {now:.4f}, {now / base:.0%} of the first rollouts\' '
        f'{base:.4f} (limit {limit:.0%}): the reward is saturated or the policy collapsed')
