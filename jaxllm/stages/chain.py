"""A chain: several stages, each in a folder of its own, that start from each other's runs.

`config.steps` is {name: the config of a stage}; '@name' in a step stands for the run directory of
another one. The order follows from that.
"""

import json
import time

import jax
import numpy as np

from jaxllm import config as configs
from jaxllm import sweep
from jaxllm.errors import InputError
from jaxllm.report import done as marks
from jaxllm.stages import lineage
from jaxllm.stages.run import claimed, execute, stage_of
from jaxllm.train.progress import duration
from jaxllm.train.progress import stage as say


def prepare(config):
    """Checks what needs no run that a step has yet to make. Returns {step: its config as a dict}.

    A stage looks for its parents when it is prepared, so the steps that have some come later.
    """
    configs.check_keys(config, ('stage', 'seed', 'steps'))
    steps = sweep.steps_of(configs.to_plain(config))
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
    places = {name: str(workdir / name) for name in steps}
    done = _done(workdir, steps)
    for number, (name, step) in enumerate(steps.items(), 1):
        what = f'step {number} of {len(steps)}: {name}'
        if done[name]:
            say(f'{what} is done')
            continue
        step_config = configs.from_dict(sweep.resolve(step, places)).lock()
        folder, stage = workdir / name, stage_of(step_config)
        say(f'{what} ({step["stage"].rpartition(".")[2]}) in {folder}')
        started = time.monotonic()
        stage.prepare(step_config)
        if jax.process_index() == 0:
            _follow_a_move(folder, step_config)
        with claimed(folder, step_config):
            execute(stage, step_config, folder)
        say(f'{what} took {duration(time.monotonic() - started)}')


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
