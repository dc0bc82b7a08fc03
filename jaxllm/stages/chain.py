"""A chain: several stages, each in a folder of its own, that start from each other's runs.

`config.steps` is {name: the config of a stage}; '@name' in a step stands for the run directory of
another one. The order follows from that. `config.expected_s`, which may be left out, says how many
seconds each step takes, so that one sees how long the whole still takes; no number depends on it.
"""

import contextlib
import json
import time

import jax
import numpy as np

from jaxllm import config as configs
from jaxllm import sweep
from jaxllm.errors import InputError
from jaxllm.report import chain as pages
from jaxllm.report import done as marks
from jaxllm.stages import lineage, step_record
from jaxllm.stages.run import claimed, execute, stage_of
from jaxllm.train import progress
from jaxllm.train.progress import duration
from jaxllm.train.progress import stage as say
from jaxllm.train.whole import Whole


def prepare(config):
    """Checks what needs no run that a step has yet to make. Returns {step: its config as a dict}.

    A stage looks for its parents when it is prepared, so the steps that have some come later.
    """
    keys = 'stage', 'seed', 'steps'
    configs.check_keys(config, (*keys, 'expected_s') if 'expected_s' in config else keys)
    steps = sweep.steps_of(configs.to_plain(config))
    _check_expected(config, steps)
    for step in steps.values():
        step_config = configs.from_dict(step).lock()
        stage = stage_of(step_config)
        if not sweep.references(step, steps):
            stage.prepare(step_config)
    return steps


def describe(config):
    """What the steps would be, as text (`--dry_run`)."""
    steps = prepare(config)
    lines = [json.dumps({'stage': config.stage, 'seed': config.seed, 'steps': list(steps)},
                        indent=2) + '\n']
    for number, (name, step) in enumerate(steps.items(), 1):
        needs = sweep.references(step, steps)
        lines.append(f'# step {number} of {len(steps)}: {name}'
                     f'{", after " + ", ".join(needs) if needs else ""}\n')
        step_config = configs.from_dict(step).lock()
        # What a step with parents costs is known once they are there.
        lines.append(configs.to_json(step_config) if needs
                     else stage_of(step_config).describe(step_config) + '\n')
    return '\n'.join(lines)


def run(config, workdir):
    """Runs the steps in `workdir/<step>/`, those that are not done yet."""
    steps = prepare(config)
    if jax.process_index() == 0:
        lineage.write_lineage(workdir, config, steps=list(steps))
    done = _done(workdir, steps)
    expected = config.expected_s if 'expected_s' in config else dict.fromkeys(steps, 0.0)
    writer = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(Whole({name: float(expected[name]) for name in steps},
                                          [name for name in steps if done[name]], enabled=writer))
        stack.enter_context(progress.shown_in(whole))
        stack.callback(_report, workdir, writer)  # also of what was stopped
        for number, (name, step) in enumerate(steps.items(), 1):
            what = f'step {number} of {len(steps)}: {name}'
            if done[name]:
                say(f'{what} is done')
                continue
            whole.begin(name)
            say(f'{what} ({step["stage"].rpartition(".")[2]}) in {workdir / name}')
            started = time.monotonic()
            with step_record.recorded(workdir, name) if writer else contextlib.nullcontext():
                _run_step(step, workdir, name, steps)
            whole.end()
            say(f'{what} took {duration(time.monotonic() - started)}')


def _report(workdir, writer):
    """Writes the report of the whole; what goes wrong here hides nothing that was raised before."""
    if not writer:
        return
    try:
        say(f'report: {pages.write_report(workdir)}')
    except (OSError, InputError) as error:
        say(f'no report: {error}; `jaxllm report {workdir}` writes it later')


def _run_step(step, workdir, name, steps):
    places = {other: str(workdir / other) for other in steps}
    config = configs.from_dict(sweep.resolve(step, places)).lock()
    folder, stage = workdir / name, stage_of(config)
    stage.prepare(config)
    if jax.process_index() == 0:
        _follow_a_move(folder, config)
    with claimed(folder, config):
        execute(stage, config, folder)


def _check_expected(config, steps):
    expected = configs.to_plain(config).get('expected_s', dict.fromkeys(steps, 1))
    if set(expected) != set(steps) or not all(
            isinstance(x, (int, float)) and x > 0 for x in expected.values()):
        raise InputError(f'config.expected_s={expected}: expected a number of seconds above 0 for '
                         f'each of {", ".join(steps)}; leave expected_s out if you do not know')


def _done(workdir, steps):
    """{step: whether its run, and those it starts from, came to their end}, as process 0 sees it.

    A step that is done where one that it starts from is not has to be made again: its mark goes.
    """
    done, problem = dict.fromkeys(steps, False), None
    if jax.process_index() == 0:
        try:
            for name, step in steps.items():
                done[name] = marks.is_done(workdir / name)
                if done[name] and not all(done[need] for need in sweep.references(step, steps)):
                    marks.remove(workdir / name)
                    done[name] = False
        except InputError as error:
            problem = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils
        seen = multihost_utils.broadcast_one_to_all(np.array([problem is not None, *done.values()]))
        if seen[0] and problem is None:
            raise InputError(f'process 0 could not use {workdir}; see its message')
        done = dict(zip(steps, seen[1:], strict=True))
    if problem:
        raise problem
    return done


def _follow_a_move(folder, step_config):
    """The chain has this config, so a step that began has it too, up to where its parents are."""
    if (folder / 'config.json').exists():
        configs.write_atomic(folder / 'config.json', configs.to_json(step_config))
