"""Rewards by name: learned ones and Python functions, scored together, mixed freely.

`config.rewards.<name>` names each one; `score_all` asks all of them, `jaxllm.rl.combine` makes one
reward of them.
"""

import dataclasses
import json
import numbers
import pathlib

import numpy as np

from jaxllm.errors import GuardStop, InputError
from jaxllm.rl.reward_process import FunctionProcess

KINDS = ('function', 'model')
ON_ERROR = ('stop', 'zero_and_count')
FAILURES = 'reward_failures.jsonl'
_SHOWN = 300    # characters of a prompt or response in a message


@dataclasses.dataclass(frozen=True)
class Answered:
    """A response to score.

    prompt: {'role', 'content'} dicts, the last one of role 'user'.
    response: the text, without what ended it. tokens: its length, with the end.
    finished: whether it ended by itself; False = it was cut off.
    fields: the rest of the prompt's record, e.g. {'answer': 'Tarn', 'format': 'one_word'}.
    """
    prompt: tuple
    response: str
    tokens: int
    finished: bool = True
    fields: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """One section of `config.rewards`.

    kind: 'function', or 'model' for a reward model that was trained.
    path: dotted path of a function f(records[, settings]) -> a number per record.
    settings: keyword arguments of the function, or the fields of its settings dataclass.
    run: the run directory of a reward model.
    weight: in the combination; 0 = only logged.
    timeout_s: for a function and one batch.
    on_error: 'stop', or 'zero_and_count': a record that the function fails on gets reward 0.
    check_repeat: score the first batch again in the opposite order, and stop if that changes a
      reward; switch it off for a function that is random by intention.
    """
    kind: str
    path: str = ''
    settings: dict = dataclasses.field(default_factory=dict)
    run: str = ''
    weight: float = 1.0
    timeout_s: float = 60.0
    on_error: str = 'stop'
    check_repeat: bool = True

    def __post_init__(self):
        object.__setattr__(self, 'settings', _plain(self.settings))
        if self.kind not in KINDS:
            raise InputError(f'reward kind={self.kind!r}: expected one of {", ".join(KINDS)}')
        wanted, other = ('path', 'run') if self.kind == 'function' else ('run', 'path')
        if not getattr(self, wanted) or getattr(self, other):
            raise InputError(f'a reward of kind {self.kind!r} needs {wanted} and no {other}; got '
                             f'path={self.path!r}, run={self.run!r}')
        if self.kind == 'model' and self.settings:
            raise InputError(f'a reward model takes no settings; got {self.settings}')
        if not np.isfinite(self.weight):
            raise InputError(f'reward weight={self.weight}: expected a finite number')
        if self.kind == 'function' and not 0 < self.timeout_s < np.inf:
            raise InputError(f'reward timeout_s={self.timeout_s}: expected a positive number of '
                             'seconds')
        if self.on_error not in ON_ERROR:
            raise InputError(f'reward on_error={self.on_error!r}: expected one of '
                             f'{", ".join(ON_ERROR)}')


def _plain(value):
    """Sections of a config as dicts, so that settings can be sent to another process."""
    if hasattr(value, 'items'):
        return {str(key): _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


class FunctionReward:
    """A reward that is a Python function, called in a process of its own.

    The function must reward a record by the record alone: order and company may not matter, since
    records are scored one by one to find out which of them a failure is due to. Numbers of any kind
    become float32; bool counts as 0 and 1.

    A record fails if the function raises, takes longer than `timeout_s`, ends its process, or gives
    for it something that is no finite number in float32. Failures are appended to a file, with
    prompt and response. Under 'stop' every record of that batch is written too, so that no sample
    is lost, and GuardStop ends the run, which can be resumed with a better function.

    A hang is ended by killing the process and those of its group: loops, catastrophic regular
    expressions and waiting for the network end so. Not ended are processes that the function put
    into sessions of their own, work that it asked other machines to do, and a process which waits
    inside the kernel, e.g. for a dead network disk: that one goes when the kernel lets it go.
    """

    def __init__(self, name, spec, folder=''):
        """Starts the process, imports the function there and checks its settings.

        Args:
          name: of the reward, for messages.
          spec: RewardSpec of kind 'function'.
          folder: records that fail are appended to reward_failures.jsonl in it; '' writes none.

        Raises:
          InputError: no such function, or settings that it does not take.
        """
        self.name, self.spec, self.failed = name, spec, 0
        self._failures = pathlib.Path(folder) / FAILURES if folder else None
        self._unchecked = spec.check_repeat
        self._process = FunctionProcess(f'config.rewards.{name}', spec.path, spec.settings)

    def __call__(self, answered):
        """Rewards float32 [N] of N records. Raises GuardStop as described above."""
        answered = list(answered)
        if not answered:
            return np.zeros(0, np.float32)
        values, reasons = self._score(answered)
        if self._unchecked and not any(reasons):
            again, reasons = (part[::-1] for part in self._score(answered[::-1]))
            if not any(reasons):
                self._check_same(answered, values, again)
                self._unchecked = False
        bad = [i for i, reason in enumerate(reasons) if reason]
        if bad:
            self.failed += len(bad)
            stops = self.spec.on_error == 'stop'
            self._write(answered, values, reasons, range(len(answered)) if stops else bad)
            if stops:
                raise GuardStop(self._message(answered[bad[0]], reasons[bad[0]], len(bad)))
        return np.array(values, np.float32)

    def close(self):
        """Ends the process."""
        self._process.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _score(self, answered):
        """(values, reasons), the reason '' where the function gave a number; else the value 0."""
        results, reason = self._process.score(answered, self.spec.timeout_s)
        if reason:
            results = self._process.score_singly(answered, self.spec.timeout_s, reason,
                                                 first_only=self.spec.on_error == 'stop')
        return [value for value, _ in results], [why for _, why in results]

    def _check_same(self, answered, values, again):
        for record, first, second in zip(answered, values, again, strict=True):
            if first != second:
                raise GuardStop(
                    f'reward {self.name!r} ({self.spec.path}) gave {first} and then {second} for '
                    f'the same record when the batch came in the opposite order; {_shown(record)}. '
                    'It must depend on the record alone; a function that is random by intention '
                    f'needs --config.rewards.{self.name}.check_repeat=False')

    def _message(self, record, reason, count):
        more = f' ({count} records of this batch failed; this is the first)' if count > 1 else ''
        where = f'All are in {self._failures}. ' if self._failures else ''
        return (f'reward {self.name!r} ({self.spec.path}) failed: {reason}; {_shown(record)}{more}.'
                f' {where}Repair the function and start the same command again, or let such records'
                f' have reward 0: --config.rewards.{self.name}.on_error=zero_and_count')

    def _write(self, answered, values, reasons, rows):
        if not self._failures:
            return
        self._failures.parent.mkdir(parents=True, exist_ok=True)
        with open(self._failures, 'ab') as file:
            for i in rows:
                line = json.dumps({'reward': self.name, 'reason': reasons[i], 'value': values[i],
                                   **dataclasses.asdict(answered[i])},
                                  ensure_ascii=False, default=str)
                file.write(line.encode('utf-8', 'replace') + b'\n')


def _shown(record):
    prompt = record.prompt[-1]['content'] if record.prompt else ''
    cut = lambda text: repr(text[:_SHOWN]) + ('...' if len(text) > _SHOWN else '')
    return f'prompt {cut(prompt)}, response {cut(record.response)}'


def open_rewards(specs, folder='', open_model=None):
    """All rewards of a config, ready to score.

    Args:
      specs: {name: RewardSpec}.
      folder: as for FunctionReward.
      open_model: (name, RewardSpec) -> a function of records, for the learned ones.

    Returns:
      {name: records -> float32 [N]}; `close_rewards` ends their processes.

    Raises:
      InputError: no reward at all, or one that cannot be opened.
    """
    if not specs:
        raise InputError('config.rewards is empty; name at least one reward')
    rewards = {}
    try:
        for name, spec in specs.items():
            if spec.kind == 'function':
                rewards[name] = FunctionReward(name, spec, folder)
            elif open_model is None:
                raise InputError(f'config.rewards.{name} is a reward model, which cannot be used '
                                 'here; expected rewards of kind function')
            else:
                rewards[name] = open_model(name, spec)
    except BaseException:
        close_rewards(rewards)
        raise
    return rewards


def close_rewards(rewards):
    """Ends the processes of function rewards; learned ones have none."""
    for reward in rewards.values():
        if isinstance(reward, FunctionReward):
            reward.close()


def score_all(rewards, answered):
    """{name: float32 [N]}: every reward of every record.

    Args:
      rewards: {name: records -> [N] numbers}. answered: N Answered.

    Raises:
      GuardStop: a reward failed, gave another number of rewards, or one that is not finite.
    """
    return {name: _checked(name, reward(answered), answered) for name, reward in rewards.items()}


def _checked(name, values, answered):
    values = np.asarray(values)
    if values.shape != (len(answered),) or values.dtype.kind not in 'biuf' and (
            values.dtype != object or not all(isinstance(v, numbers.Real) for v in values)):
        raise GuardStop(f'reward {name!r} gave shape {values.shape} of {values.dtype} for '
                        f'{len(answered)} records; expected one number for each')
    values = values.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise GuardStop(f'reward {name!r} gave {values[bad[0]]} for {_shown(answered[bad[0]])} '
                        f'({len(bad)} of {len(answered)} are not finite); a reward model that has '
                        'diverged, or weights that do not fit')
    return values
