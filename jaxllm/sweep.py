"""Sweeps: the algebra of arms, and their expansion into jobs that share equal parents. Pure.

An arm is {'name': str, 'set': {'config.key': value}}, a sweep is a list of arms:

    product(axis('optim.lr', (1e-3, 3e-3)), axis('train.z_loss', {'plain': 0.0, 'z': 1e-4}))

is four arms, the first of them 'lr=0.001,plain'. A chain is a config whose `steps` are configs that
name each other's run directories as '@step' or '@step/path/in/it'.
"""

import dataclasses
import difflib
import graphlib
import itertools
import re

from jaxllm.config import fingerprint_of
from jaxllm.errors import InputError

CHAIN = 'jaxllm.stages.chain'
_NAME = re.compile(r'[A-Za-z0-9_-]+')
_REFERENCE = re.compile(r'@([A-Za-z0-9_-]+)((?:/.*)?)')


def axis(key, values):
    """One arm per value of a config key.

    Args:
      key: 'train.num_steps'.
      values: a sequence, whose arms are called 'num_steps=5', or {name of the arm: value}.
    """
    if not isinstance(values, dict):
        values = {f'{key.rpartition(".")[2]}={_short(value)}': value for value in values}
    return [{'name': name, 'set': {key: value}} for name, value in values.items()]


def product(*sweeps):
    """Every combination of one arm of each sweep; the last one varies fastest."""
    return [_merged(arms) for arms in itertools.product(*sweeps)]


def zipped(*sweeps):
    """The first arms together, the second arms together, ... All have the same length."""
    if len({len(arms) for arms in sweeps}) > 1:
        raise InputError(f'zipped() got sweeps of {", ".join(str(len(arms)) for arms in sweeps)} '
                         'arms; expected the same number of each, or use product()')
    return [_merged(arms) for arms in zip(*sweeps, strict=True)]


def chained(*sweeps):
    """All arms of all sweeps, one sweep after the other."""
    return [arm for arms in sweeps for arm in arms]


def _merged(arms):
    values = {}
    for arm in arms:
        twice = values.keys() & arm['set'].keys()
        if twice:
            raise InputError(f'{sorted(twice)[0]} is set twice by '
                             f'{", ".join(repr(arm["name"]) for arm in arms)}; combine sweeps of '
                             'different keys')
        values |= arm['set']
    return {'name': ','.join(arm['name'] for arm in arms), 'set': values}


def _short(value):
    return f'{value:g}' if isinstance(value, float) else str(value)


def check_arms(arms):
    """Raises InputError unless these are arms, each of its own name. Returns them as a tuple."""
    if not isinstance(arms, (list, tuple)) or not arms:
        raise InputError(f'get_sweep() returned {arms!r}; expected a list of '
                         "{'name': ..., 'set': {'config.key': value}}, with one arm at least")
    arms = tuple(arms)
    for arm in arms:
        if not (isinstance(arm, dict) and arm.keys() == {'name', 'set'}
                and isinstance(arm['name'], str) and isinstance(arm['set'], dict)):
            raise InputError(f'{arm!r} is no arm; expected '
                             "{'name': 'long', 'set': {'train.num_steps': 100}}")
    names = [arm['name'] for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f'{names.count(name)} arms are called {name!r}; give each a name of '
                             "its own, e.g. axis('optim.lr', {'low lr': 1e-4, 'high lr': 1e-2})")
    return arms


def steps_of(config):
    """The steps of a chain in the order in which they can be run: {name: config}.

    Args:
      config: a resolved chain, as nested dicts.

    Raises:
      InputError: no steps, a name that is no folder name, a reference to no step, a circle.
    """
    steps = config['steps'] if 'steps' in config else {}
    if not steps or not all(isinstance(step, dict) and 'stage' in step for step in steps.values()):
        raise InputError('a chain needs config.steps = {name: the config of a stage}')
    for name, step in steps.items():
        if not _NAME.fullmatch(name):
            raise InputError(f'config.steps has a step {name!r}; use letters, digits, _ and -')
        if step['stage'] == CHAIN:
            raise InputError(f'config.steps.{name} is a chain; put its steps into this one')
    needs = {name: _references(step, steps, f'steps.{name}') for name, step in steps.items()}
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        circle = ' -> '.join(reversed(error.args[1]))
        raise InputError(f'the steps {circle} wait for each other; a step refers to earlier '
                         'ones') from error
    # As written, as far as the references allow.
    placed = []
    while len(placed) < len(order):
        placed.append(next(name for name in steps
                           if name not in placed and needs[name] <= set(placed)))
    return {name: steps[name] for name in placed}


def references(step, steps):
    """Names of the steps that the config of a step refers to, sorted."""
    return tuple(sorted(_references(step, steps, '')))


def _references(value, steps, key):
    if isinstance(value, dict):
        return set().union(*(_references(item, steps, f'{key}.{name}'.strip('.'))
                             for name, item in value.items()))
    if isinstance(value, (list, tuple)):  # of text, where '@property' may be a prompt
        return set().union(*(_references(item, steps, key) for item in value
                             if not isinstance(item, str) or _target(item) in steps))
    name = _target(value)
    if name is None:
        return set()
    if name not in steps:
        near = difflib.get_close_matches(name, steps, n=1, cutoff=0) or sorted(steps)
        raise InputError(f'config.{key}={value!r} refers to no step; did you mean @{near[0]}? The '
                         f'steps are {", ".join(steps)}')
    return {name}


def _target(value):
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return match and match[1]


def resolve(value, places):
    """Nested dicts with '@name' and '@name/path' replaced by places[name] and what follows."""
    if isinstance(value, dict):
        return {key: resolve(item, places) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(resolve(item, places) for item in value)
    name = _target(value)
    return f'{places[name]}{value[len(name) + 1:]}' if name in places else value


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep. Jobs of one name are the same run, whatever arm they are for."""
    name: str      # 'pretrain-<fingerprint>': its folder
    stage: str
    config: dict   # resolved; '@<job>' stands for the run directory of another job
    needs: tuple   # names of the jobs that have to be done before


def jobs_of(config):
    """{step: Job} of a resolved config, which is a chain or a single stage, in a possible order.

    The fingerprint of a job covers its own settings and the fingerprints of its parents, and no
    path, so that it is the same wherever the sweep is.
    """
    if 'stage' not in config or config['stage'] != CHAIN:
        steps = {_stage_name(config): config}
        return {name: _job(step, step, ()) for name, step in steps.items()}
    jobs = {}
    for name, step in steps_of(config).items():
        parents = {other: jobs[other].name for other in references(step, config['steps'])}
        resolved = resolve(step, {other: f'@{job}' for other, job in parents.items()})
        jobs[name] = _job(step, resolved, sorted(set(parents.values())))
    return jobs


def _job(step, resolved, needs):
    return Job(f'{_stage_name(step)}-{fingerprint_of(resolved)}', step['stage'], resolved,
               tuple(needs))


def _stage_name(config):
    if 'stage' not in config:
        raise InputError('the config has no `stage`; set e.g. config.stage = '
                         "'jaxllm.stages.pretrain'")
    return config['stage'].rpartition('.')[2]


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm with one seed: the name of the job of each step."""
    arm: str
    seed: int
    steps: dict


def expand(configs):
    """The jobs of a sweep, equal ones once, parents first: ({name: Job}, Rows).

    Args:
      configs: {(arm, seed): resolved config}.

    Raises:
      InputError: two arms are the same.
    """
    jobs, rows = {}, []
    for (arm, seed), config in configs.items():
        steps = jobs_of(config)
        jobs |= {job.name: job for job in steps.values()}
        row = Row(arm, seed, {name: job.name for name, job in steps.items()})
        for other in rows:
            if (other.seed, other.steps) == (seed, row.steps):
                raise InputError(f'the arms {other.arm!r} and {arm!r} are equal: they differ in no '
                                 'setting that changes a number; remove one')
        rows.append(row)
    return jobs, tuple(rows)


def select(jobs, names):
    """The part of `jobs` that the jobs called `names` need, themselves included, in its order."""
    kept = set(names)
    for job in reversed(jobs.values()):
        if job.name in kept:
            kept |= set(job.needs)
    return {name: job for name, job in jobs.items() if name in kept}
