"""The verb `run`: starts the processes, claims the run directory, and hands over to the stage.

A run that came to its normal end has a done.json; one that was stopped or killed has none.
"""

import contextlib
import fcntl
import importlib
import os
import pathlib
import signal
import sys
import threading
import time

import jax
import numpy as np
from absl import logging

from jaxllm import config as configs
from jaxllm.errors import InputError
from jaxllm.report import done
from jaxllm.report.run import write_report
from jaxllm.train.loop import Interrupted
from jaxllm.train.progress import stage as say


def start_jax(coordinator='', num_processes=1, process_id=0):
    """Joins the other processes, if any, and turns on the cache of compiled programs."""
    if num_processes > 1 and not coordinator:
        raise InputError(f'--num_processes={num_processes} without --coordinator; add '
                         '--coordinator=HOST:PORT of process 0')
    if coordinator:
        if jax.config.jax_platforms == 'cpu':
            jax.config.update('jax_cpu_collectives_implementation', 'gloo')
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif os.environ.get('TPU_WORKER_HOSTNAMES', '').count(','):
        jax.distributed.initialize()
    # Orbax logs a failed save from each of its threads; the loop says it once.
    logging.set_verbosity(logging.FATAL)
    # Every process reads the cache; JAX writes to it from process 0 alone.
    jax.config.update('jax_compilation_cache_dir', str(configs.cache_dir() / 'xla'))
    # Small models are many programs of less than JAX's threshold of a second.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


@contextlib.contextmanager
def claimed(workdir, config):
    """The run directory as this run's own: one run at a time writes to it, of one config.

    Process 0 claims it for all and holds the lock; the others wait until it has, or stop with it.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(_locked(workdir))
                configs.claim_workdir(workdir, config)
            except InputError as error:
                problem = error
            except OSError as error:
                problem = InputError(f'{workdir} cannot be used as a run directory: {error}; give '
                                     'a --workdir that is a folder one may write to')
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils
            failed = multihost_utils.broadcast_one_to_all(np.int32(problem is not None))
            if failed and problem is None:
                raise InputError(f'process 0 could not use {workdir}; see its message')
        if problem:
            raise problem
        yield


@contextlib.contextmanager
def _locked(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / '.lock', 'a+', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise InputError(f'{workdir} is in use by process {file.read().strip() or "?"}; wait '
                             'for it to end, or use another --workdir') from error
        file.truncate(0)
        file.write(f'{os.getpid()}\n')
        file.flush()
        yield


def stage_of(config):
    """The module that `config.stage` names."""
    if 'stage' not in config:
        raise InputError('the config has no `stage`; set e.g. config.stage = '
                         "'jaxllm.stages.pretrain'")
    if not all(part.isidentifier() for part in config.stage.split('.')):
        raise InputError(f'config.stage={config.stage!r} is no name of a module; expected e.g. '
                         "'jaxllm.stages.pretrain'")
    try:
        return importlib.import_module(config.stage)
    except ModuleNotFoundError as error:
        if error.name != config.stage:
            raise
        raise InputError(f'config.stage={config.stage!r} is no module; expected e.g. '
                         "'jaxllm.stages.pretrain'") from error


def run(args, overrides):
    """Runs the stage of a config, or prints what it would do. Raises SystemExit on a signal."""
    if args.stop_at_eof:
        threading.Thread(target=_stop_at_eof, daemon=True).start()
    run_config(args, configs.load(overrides))


def run_config(args, config):
    """`run` of a loaded config; args has workdir, dry_run, coordinator and the like."""
    stage = stage_of(config)
    if args.dry_run:
        start_jax()
        print(stage.describe(config))
        return
    if not args.workdir:
        raise InputError('no run directory; use --workdir=DIR, e.g. --workdir=runs/base')
    start_jax(args.coordinator, args.num_processes, args.process_id)
    stage.prepare(config)  # whatever can be found wrong is, before anything is written
    workdir = pathlib.Path(args.workdir).resolve()
    try:
        with claimed(workdir, config):
            execute(stage, config, workdir)
    except Interrupted as stop:
        say(f'jaxllm: {stop}')
        raise SystemExit(stop.code) from None


def _stop_at_eof():
    """Ends this process as SIGTERM would, once whoever holds the other end of stdin is gone."""
    while os.read(sys.stdin.fileno(), 1 << 12):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def execute(stage, config, workdir):
    """Runs a stage in a claimed directory; writes its report, and done.json at a normal end.

    OUTPUTS of a stage, where it has any, are the paths without which its run is not done.
    """
    began, values = time.monotonic(), configs.to_plain(config)
    if jax.process_index() == 0:
        done.remove(workdir)
        inputs = done.input_hashes(values)
    try:
        stage.run(config, workdir)
    finally:
        if jax.process_index() == 0 and (workdir / 'metrics.jsonl').exists():
            _report(workdir)
    if jax.process_index() == 0:
        outputs = stage.OUTPUTS if hasattr(stage, 'OUTPUTS') else ()
        done.write(workdir, values, time.monotonic() - began, outputs, inputs)


def _report(workdir):
    """Writes the report; what goes wrong here hides nothing that was raised before."""
    try:
        say(f'report: {write_report(workdir)}')
    except (OSError, InputError) as error:
        say(f'no report: {error}; `jaxllm report {workdir}` writes it later')
