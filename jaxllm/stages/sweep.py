"""The verb `sweep`: all arms of a config file with several seeds, equal parents run once.

Each job is a `jaxllm run` process in DIR/runs/<stage>-<fingerprint>/. How far a sweep is stands in
those folders alone, so it may be killed, go on, be moved, and be worked on by several processes.
"""

import contextlib
import dataclasses
import fcntl
import importlib.util
import inspect
import json
import os
import pathlib

from jaxllm import config as configs
from jaxllm import sweep as sweeps
from jaxllm.errors import InputError
from jaxllm.report.done import is_done
from jaxllm.report.files import read_json
from jaxllm.report.sweep import stated, verdict_text, write_report
from jaxllm.stages.jobs import default_processes
from jaxllm.stages.sweep_runner import Display, Runner
from jaxllm.train.progress import stage as say

DEFAULT_SEEDS = 0, 1, 2


def sweep(args, overrides):
    """Runs a sweep, or what one of its lines needs, and writes its report.

    Raises:
      SystemExit: with the exit code of the first job that failed, or of a signal.
    """
    plan = make_plan(overrides, args.seeds)
    jobs = plan.jobs
    if args.arm is not None:
        if not 0 <= args.arm < len(plan.rows):
            raise InputError(f'--arm={args.arm}: the sweep has lines 0 to {len(plan.rows) - 1} '
                             f'({len(plan.arms)} arms x {len(plan.seeds)} seeds); see --dry_run')
        jobs = sweeps.select(jobs, plan.rows[args.arm].steps.values())
    processes = default_processes() if args.jobs is None else args.jobs
    if processes < 1:
        raise InputError(f'--jobs={args.jobs} must be at least 1')
    if args.dry_run:
        print(describe(plan, jobs, processes))
        return
    if not args.workdir:
        raise InputError('no directory; use --workdir=DIR, e.g. --workdir=runs/sweep')
    workdir = pathlib.Path(args.workdir).resolve()
    _claim(workdir, plan, overrides)
    with Display(plan.labels()) as display:
        runner = Runner(jobs, workdir / 'runs', processes, display)
        code = runner.run()
    if not runner.signals:  # a job that was killed (137) is reported as any that failed
        _report(workdir, plan)
    if code:
        raise SystemExit(code)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep before it runs: `rows` are arms x seeds, `jobs` what they need."""
    config: str
    overrides: list
    arms: tuple
    seeds: tuple
    jobs: dict
    rows: tuple
    began: dict   # what is fixed before the first run: see report.sweep.stated

    def labels(self):
        """{job: 'base of short, long, seed 0'}: what a job is, for people."""
        of = {}
        for row in self.rows:
            for step, name in row.steps.items():
                _, arms, seeds = of.setdefault(name, (step, {}, {}))
                arms[row.arm], seeds[str(row.seed)] = True, True
        return {name: f'{step} of {self._names(arms)}, seed {" ".join(seeds)}'
                for name, (step, arms, seeds) in of.items()}

    def _names(self, arms):
        if 1 < len(arms) == len(self.arms):
            return 'all arms'
        return ', '.join(arms) if len(arms) < 4 else f'{len(arms)} arms'

    def table(self):
        """What sweep.json says: what was asked for, and where it is."""
        return json.loads(json.dumps({
            'config': self.config, 'overrides': self.overrides, 'seeds': self.seeds,
            'arms': self.arms, 'began': self.began,
            'runs': [{'arm': row.arm, 'seed': row.seed,
                      'steps': {step: f'runs/{name}' for step, name in row.steps.items()}}
                     for row in self.rows]}))


def make_plan(argv, seeds=()):
    """The Plan of `--config=FILE[:arg] --config.key=value ...`; `seeds`: numbers, or '0,1,2'.

    The file's get_sweep(arg) gives the arms (none: one arm, 'base'), its SEEDS the seeds where none
    are given.

    Raises:
      InputError: something about the file, the overrides, the arms or the seeds is wrong.
    """
    base = configs.load(argv)
    file = [arg for arg in argv if arg.startswith('--config=')][-1].removeprefix('--config=')
    path, _, arg = file.partition(':')
    module = configs.load_module(path)
    arms = sweeps.check_arms(_arms(module, arg))
    seeds = _seeds(seeds) or tuple(getattr(module, 'SEEDS', DEFAULT_SEEDS))
    overrides = [text for text in argv if text.startswith('--config.')]
    _check_seed(base)
    resolved = {}
    for seed in seeds:  # all arms of a seed, then the next: what is done can be compared early
        for arm in arms:
            resolved[arm['name'], seed] = _resolved(argv, arm, seed)
    jobs, rows = sweeps.expand(resolved)
    for stage in {job.stage for job in jobs.values()}:
        _check_stage(stage)
    return Plan(str(pathlib.Path(path).resolve()) + (f':{arg}' if arg else ''), overrides, arms,
                seeds, jobs, rows, stated(path))


def _arms(module, arg):
    """What get_sweep(arg), or get_sweep() where the arms depend on nothing, returns."""
    if not hasattr(module, 'get_sweep'):
        return [{'name': 'base', 'set': {}}]
    takes_arg = bool(inspect.signature(module.get_sweep).parameters)
    return module.get_sweep(arg) if takes_arg else module.get_sweep()


def _seeds(text):
    if not isinstance(text, str) or not text:
        return tuple(text)
    try:
        seeds = tuple(int(item) for item in text.split(','))
    except ValueError as error:
        raise InputError(f'--seeds={text}: expected whole numbers, such as --seeds=0,1,2'
                         ) from error
    if len(set(seeds)) < len(seeds):
        raise InputError(f'--seeds={text} has a seed twice; the seeds are what differs')
    return seeds


def _resolved(argv, arm, seed):
    """The config of an arm with a seed, as plain values."""
    config, where = configs.load(argv), f'arm {arm["name"]!r}'
    for key in configs.flatten(arm['set']):
        if key == 'seed':
            raise InputError(f'{where} sets seed; give seeds as --seeds=0,1,2')
        if any(text.startswith(f'--config.{key}=') for text in argv):
            raise InputError(f'--config.{key} is set by {where}; leave it out, or change '
                             'get_sweep() in the file')
    configs.set_values(config, arm['set'], where)
    configs.set_values(config, {'seed': seed}, 'the sweep')
    return configs.to_plain(config)


def _check_seed(config):
    if 'seed' not in config:
        raise InputError('the config has no `seed`, which a sweep sets; give it one, and let its '
                         "other seeds follow with config.get_ref('seed')")


def _check_stage(name):
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # no such package; '.x', ''
        found = None
    if not found:
        raise InputError(f"config.stage={name!r} is no module; expected e.g. "
                         "'jaxllm.stages.pretrain'")


def describe(plan, jobs, processes):
    """The lines of a sweep and their jobs, as text (`--dry_run`)."""
    width = max(len(arm['name']) for arm in plan.arms)
    lines = [f'{len(plan.arms)} arms x {len(plan.seeds)} seeds, {len(plan.jobs)} different jobs, '
             f'{processes} at once', '']
    for number, row in enumerate(plan.rows):
        steps = '  '.join(f'{step}={name}' for step, name in row.steps.items())
        lines.append(f'{number:>4}  {row.arm:<{width}}  seed {row.seed}  {steps}')
    if len(jobs) < len(plan.jobs):
        lines += ['', f'--arm runs {len(jobs)} of them: {", ".join(jobs)}']
    return '\n'.join(lines)


@contextlib.contextmanager
def _only(workdir):
    """One process at a time; the others wait."""
    with open(workdir / '.lock', 'a', encoding='utf-8') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _claim(workdir, plan, argv):
    """Makes the directory of a sweep, or goes on in it, maybe with more seeds.

    Raises:
      InputError: it holds another sweep, or none and something else, or cannot be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if '.lock' not in os.listdir(workdir):
            _check_own(workdir)  # before anything is written there
        with _only(workdir):
            _check_own(workdir)
            table, path = plan.table(), workdir / 'sweep.json'
            old = read_json(path, None)
            table = table if old is None else _merged(workdir, old, table, argv)
            configs.write_atomic(path, json.dumps(table, indent=1) + '\n')
        (workdir / 'runs').mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f'{workdir} cannot be used: {error}; give a --workdir that is a folder '
                         'one may write to') from error


def _check_own(workdir):
    """Raises InputError where a directory holds something and no sweep."""
    names = set(os.listdir(workdir))
    if 'sweep.json' not in names and names - {'.lock', 'runs', 'sweep.json.partial'}:
        raise InputError(f'{workdir} is not empty and holds no sweep (no sweep.json); use a new '
                         '--workdir')


def _merged(workdir, old, new, argv):
    """sweep.json of a sweep that goes on: the seeds of both, and what it began with.

    Raises:
      InputError: it is another sweep: other arms, overrides, or settings of the same line.
    """
    seeds = sorted({*old['seeds'], *new['seeds']})
    if seeds != sorted(new['seeds']):
        new = make_plan(argv, seeds).table() | {'began': new['began']}
    runs = {(run['arm'], run['seed']): run['steps'] for run in new['runs']}
    other = [key for key in ('overrides', 'arms') if old[key] != new[key]]
    other += [f'the settings of arm {run["arm"]!r}, seed {run["seed"]}' for run in old['runs']
              if not other and runs[run['arm'], run['seed']] != run['steps']][:1]
    same_file = old['config'] == new['config'] or (
        'began' in old and old['began']['sha256'] == new['began']['sha256']
        and old['config'].partition(':')[2] == new['config'].partition(':')[2])
    if not same_file:
        other.append(f'config {old["config"]}, now {new["config"]}')
    if other:
        raise InputError(f'{workdir} holds another sweep: it differs in {"; ".join(other)}; use a '
                         'new --workdir, or the file, overrides and arms that it began with')
    new.pop('began')
    return new | ({'began': old['began']} if 'began' in old else {})


def _report(workdir, plan):
    """Writes the report, once there is nothing left to wait for but what failed."""
    missing = [name for name in plan.jobs if not is_done(workdir / 'runs' / name)]
    if missing:
        say(f'{len(missing)} of {len(plan.jobs)} jobs of the sweep are not done')
    try:
        with _only(workdir):
            say(f'report: {write_report(workdir)}')
            if text := verdict_text(workdir):
                print(text)
    except InputError as error:
        say(f'no report: {error}; `jaxllm report {workdir}` writes it later')
