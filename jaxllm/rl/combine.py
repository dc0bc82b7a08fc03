"""One reward from several: pure functions of {name: scores float32 [N]}.

Every reward is standardised first, with statistics of the reference policy that never change again
(`Standardiser`; a reward model brings its own), so that weights mean the same for each of them.
"""

import dataclasses
import json
import math
import pathlib

import numpy as np

from jaxllm.config import write_atomic
from jaxllm.errors import InputError

RULES = ('sum', 'standardised_sum', 'gate', 'min', 'mean_minus_std')
CENTRED = 'standardised_sum', 'gate'  # over each batch, whose mean is then 0
_NO_SPREAD = 1e-6   # of max(1, |mean|): what rounding leaves where all are equal


@dataclasses.dataclass(frozen=True)
class CombineConfig:
    """rule: one of
      'sum': sum_k w_k r_k;
      'standardised_sum': each reward is standardised among the responses to one prompt, then
        summed with its weight, then the sum is standardised over the batch;
      'gate': `safe` where the prompt is tagged or sigmoid(safe) < threshold, `helpful` elsewhere,
        then standardised over the batch;
      'min': the least of the rewards, so that none is paid for by another;
      'mean_minus_std': mean - k * std over an ensemble of rewards, std over its members.

    k: of mean_minus_std. helpful, safe, threshold: of gate, the first two are names of rewards.
    tag_field, tag_values: a prompt is tagged if this field of its record has one of the values.
    """
    rule: str = 'sum'
    k: float = 1.0
    helpful: str = ''
    safe: str = ''
    threshold: float = 0.15
    tag_field: str = 'kind'
    tag_values: tuple = ('unsafe',)

    def __post_init__(self):
        if self.rule not in RULES:
            raise InputError(f'combine.rule={self.rule!r} is unknown; expected one of '
                             f'{", ".join(RULES)}')
        if not 0 <= self.k < math.inf:
            raise InputError(f'combine.k={self.k}: expected a finite number from 0')
        if not 0 <= self.threshold < 1:
            raise InputError(f'combine.threshold={self.threshold}: expected a probability below 1')


def check(rule, specs):
    """Refuses a rule that these rewards cannot follow.

    Args:
      rule: CombineConfig. specs: {name: object with a `weight`}, or {name: weight}.

    Raises:
      InputError: what is missing, or set but of no use.
    """
    weights = {name: float(getattr(spec, 'weight', spec)) for name, spec in specs.items()}
    used = [name for name, weight in weights.items() if weight]
    if not used:
        raise InputError(f'the weights {weights} of config.rewards are all 0, so there is nothing '
                         'to learn; give a reward another weight')
    if not all(map(math.isfinite, weights.values())):
        raise InputError(f'the weights {weights} of config.rewards must be finite')
    if rule.rule in ('gate', 'min', 'mean_minus_std') and any(
            weights[name] != 1 for name in used):
        raise InputError(f'combine.rule={rule.rule!r} does not weigh, got weights {weights}; '
                         'expected 1 for what counts and 0 for what is only logged')
    if rule.rule == 'mean_minus_std' and len(used) < 2:
        raise InputError(f'combine.rule=mean_minus_std needs two or more rewards, got {used}; '
                         'use rule=sum for one')
    if rule.rule == 'gate':
        _check_gate(rule, weights, used)
    elif rule.helpful or rule.safe:
        raise InputError(f'combine.helpful={rule.helpful!r} and combine.safe={rule.safe!r} are '
                         f'used by rule=gate alone, got rule={rule.rule!r}; leave them empty')


def _check_gate(rule, weights, used):
    for role in ('helpful', 'safe'):
        name = getattr(rule, role)
        if name not in used:
            why = 'has weight 0' if name in weights else 'is no reward'
            raise InputError(f'combine.rule=gate needs combine.{role}: {name!r} {why}; the rewards '
                             f'are {", ".join(weights)}')
    if rule.helpful == rule.safe:
        raise InputError(f'combine.helpful and combine.safe are both {rule.safe!r}; expected two '
                         'rewards')
    if len(used) > 2:
        rest = sorted(set(used) - {rule.helpful, rule.safe})
        raise InputError(f'combine.rule=gate uses two rewards and not {", ".join(rest)}; set the '
                         'weight 0 for what is only logged')


def combine(rule, scores, weights, fields=(), group_size=0, absolute=False):
    """The reward of each response, float32 [N].

    Rules that standardise over the batch need the whole global batch, and are right only within it.
    A batch in which all are equal gets zeros.

    Args:
      rule: CombineConfig that `check` has passed.
      scores: {name: [N]}, standardised on the reference policy. weights: {name: float}.
      fields: the N records' fields; only 'gate' looks at them, for the tag.
      group_size: neighbouring responses to one prompt; 0 = all of the batch is one group.
      absolute: leave out what depends on the batch, so that rewards of different batches can be
        compared (evaluation): standardised_sum becomes sum, gate is not standardised.

    Raises:
      InputError: a reward is missing, or shapes differ.

    Ref: gate: Touvron et al. 2023 (arXiv 2307.09288), section 3.2.3, where rewards are
    probabilities; logit(sigmoid(r)) = r, so scores are taken as they are. Its threshold then speaks
    of a standardised reward: 0.15 is 1.73 standard deviations below the reference policy's mean.
    standardised_sum: arXiv 2601.05242. mean_minus_std: Coste et al. 2023 (arXiv 2310.02743).
    """
    used, scores_KN = _stacked(scores, weights)
    weights_K = np.array([weights[name] for name in used])
    if rule.rule == 'sum' or rule.rule == 'standardised_sum' and absolute:
        rewards = weights_K @ scores_KN
    elif rule.rule == 'standardised_sum':
        rewards = standardised(weights_K @ grouped(scores_KN, group_size))
    elif rule.rule == 'min':
        rewards = scores_KN.min(axis=0)
    elif rule.rule == 'mean_minus_std':
        rewards = scores_KN.mean(axis=0) - rule.k * scores_KN.std(axis=0)
    else:
        helpful, safe = (scores_KN[used.index(name)] for name in (rule.helpful, rule.safe))
        if len(fields) != len(safe):
            raise InputError(f'got the fields of {len(fields)} records for {len(safe)} rewards')
        tagged = np.array([one.get(rule.tag_field) in rule.tag_values for one in fields], bool)
        rewards = np.where(tagged | (_sigmoid(safe) < rule.threshold), safe, helpful)
        rewards = rewards if absolute else standardised(rewards)
    return rewards.astype(np.float32)


def _stacked(scores, weights):
    """(names with a weight other than 0, their scores float64 [K, N])"""
    used = [name for name, weight in weights.items() if weight]
    missing = [name for name in used if name not in scores]
    if missing or not used:
        raise InputError(f'there are no scores of {", ".join(missing) or "any reward"}; got '
                         f'{", ".join(scores) or "none"}')
    shapes = {name: np.shape(scores[name]) for name in used}
    if len(set(shapes.values())) > 1 or len(shapes[used[0]]) != 1:
        raise InputError(f'rewards of shapes {shapes}; expected one number per response from each')
    return used, np.array([np.asarray(scores[name], np.float64) for name in used])


def grouped(scores_KN, group_size):
    """Each row standardised among neighbours of `group_size`; zeros where they are equal."""
    K, N = scores_KN.shape
    size = group_size or N
    if N % size:
        raise InputError(f'{N} rewards do not divide into groups of {size}')
    return standardised(scores_KN.reshape(K, N // size, size)).reshape(K, N)


def standardised(x):
    """(x - mean) / std along the last axis, 0 where all are equal.

    Nothing is added to std: what rewards that cancel in a sum would leave of it, standardising the
    sum would blow up.
    """
    mean, std = x.mean(axis=-1, keepdims=True), x.std(axis=-1, keepdims=True)
    spread = _spreads(mean, std)
    return np.where(spread, (x - mean) / np.where(spread, std, 1.0), 0.0)


def _spreads(mean, std):
    return std > _NO_SPREAD * np.maximum(1.0, np.abs(mean))


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


@dataclasses.dataclass(frozen=True)
class Standardiser:
    """gain * score + bias, per reward: mean 0 and standard deviation 1 on the reference's samples.

    statistics: {name: {'gain', 'bias', 'mean', 'std', 'num'}}; frozen once fitted.
    """
    statistics: dict

    @classmethod
    def fit(cls, scores):
        """Fits {name: [N] scores of responses of the reference policy}.

        A reward that is the same for all (a test that nobody passes yet) is only shifted: gain 1.

        Raises:
          InputError: fewer than two samples, or one that is not finite.
        """
        statistics = {}
        for name, values in scores.items():
            values = np.asarray(values, np.float64)
            if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
                raise InputError(f'reward {name!r} cannot be standardised on {values.shape} values '
                                 f'with {int((~np.isfinite(values)).sum())} that are not finite; '
                                 'expected two or more finite numbers')
            mean, std = float(values.mean()), float(values.std())
            gain = 1 / std if _spreads(mean, std) else 1.0
            statistics[name] = {'gain': gain, 'bias': -mean * gain, 'mean': mean, 'std': std,
                                'num': len(values)}
        return cls(statistics)

    @property
    def constant(self):
        """Names of rewards that were the same for all samples."""
        return [name for name, one in self.statistics.items()
                if not _spreads(one['mean'], one['std'])]

    def __call__(self, scores):
        """{name: float32 [N]}; rewards that were not fitted stay as they are."""
        fitted = self.statistics
        return {name: np.asarray(fitted[name]['gain'] * np.asarray(x, np.float64)
                                 + fitted[name]['bias'] if name in fitted else x, np.float32)
                for name, x in scores.items()}

    def save(self, path):
        """Writes the statistics as JSON, whole or not at all."""
        write_atomic(pathlib.Path(path), json.dumps(self.statistics, indent=2, sort_keys=True)
                     + '\n')

    @classmethod
    def load(cls, path):
        """Reads what `save` has written. Raises InputError: no such file, or something else."""
        try:
            statistics = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
            good = all(math.isfinite(one[key]) for one in statistics.values()
                       for key in ('gain', 'bias', 'mean', 'std', 'num'))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f'{path} holds no statistics of rewards ({error})') from error
        if not good:
            raise InputError(f'{path} holds statistics that are not finite')
        return cls(statistics)
