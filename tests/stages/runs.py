"""Whole runs for tests: small text, short configs, `jaxllm` in this process or in another."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import jax
import numpy as np
import quick
from orbax.checkpoint import v1 as ocp

from jaxllm import main

ROOT = pathlib.Path(__file__).parents[2]
PRETRAIN = ROOT / 'experiments' / 'pretrain.py'
_WORDS = ('the a model learns text from tokens data loss step return def import class value row '
          'batch mesh array shape seed mask weight sum mean tensor axis device parameter').split()


def write_text(folder, documents=30, seed=0, longest=200):
    """A folder of small text files; the same ones for the same arguments."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    for i in range(documents):
        words = rng.choices(_WORDS, k=rng.randint(20, longest))
        (folder / f'{i:03d}.txt').write_text(' '.join(words) + '\n')
    return folder


def overrides(**values):
    """Command-line overrides; '__' stands for '.': train__num_steps=5."""
    return [f'--config.{key.replace("__", ".")}={value}' for key, value in values.items()]


def argv(workdir, text, *, arg='', **values):
    """Arguments of `jaxllm` for a smoke run on a folder of text with a tokenizer of bytes."""
    defaults = {'tokenizer__kind': 'byte', 'tokenizer__vocab_size': 288,
                'metrics__tensorboard': False}
    config = f'{PRETRAIN}:smoke,text={text}' + (f',{arg}' if arg else '')
    return ['run', f'--config={config}', f'--workdir={workdir}',
            *overrides(**defaults | values)]


def start(arguments, *, devices=1, stderr=subprocess.PIPE, **environment):
    """Starts `jaxllm` in a process of its own with so many host devices. It compiles as this one
    does, fast and with the same cache."""
    env = os.environ | {
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} {quick.FLAGS}',
        'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)} | environment
    return subprocess.Popen([sys.executable, '-m', 'jaxllm.main', *arguments], env=env, cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=stderr, text=True)


def finish(process, timeout_s=300):
    """(exit code, standard output, standard error) of a process."""
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def run(arguments, **options):
    """Runs `jaxllm` in a process of its own, to its end, which must be a good one."""
    code, out, err = finish(start(arguments, **options))
    assert code == 0, err
    return out, err


def run_here(arguments):
    """Runs `jaxllm` in this process; returns the exit code."""
    try:
        return main.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def records(workdir, kind='', file='metrics.jsonl'):
    """The records of a file of a run, of one kind or all."""
    lines = [json.loads(line) for line in (workdir / file).read_text().splitlines()]
    return [line for line in lines if not kind or line['kind'] == kind]


def losses(workdir):
    """{step: training loss}."""
    return {line['step']: line['loss'] for line in records(workdir, 'train')}


def checkpoint_steps(workdir):
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir()
                  if path.name.isdigit())


def checkpoint(workdir, step):
    """Everything in a checkpoint, as (arrays by path, metadata)."""
    reader = ocp.training.Checkpointer(workdir / 'checkpoints')
    found = reader.checkpointables_metadata(step)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
        dict(found.metadata))
    state = reader.load_checkpointables(step, like)
    reader.close()
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x
            in jax.tree_util.tree_leaves_with_path(state)}, found.custom_metadata


def assert_same_run(workdir, whole, step):
    """Equal metrics, samples and checkpoints, to the last bit."""
    for file in ('metrics.jsonl', 'samples.jsonl'):
        assert (workdir / file).read_bytes() == (whole / file).read_bytes(), file
    (got, got_meta), (want, want_meta) = checkpoint(workdir, step), checkpoint(whole, step)
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert got[name].dtype == x.dtype and got[name].tobytes() == x.tobytes(), name
    for meta in (got_meta, want_meta):
        meta['offsets'].pop('perf')  # times differ in length
    assert got_meta == want_meta
    assert any("'mu'" in name for name in want) and any("'guard'" in name for name in want)
    return want


def last_step(workdir):
    """The step of the last whole line of metrics.jsonl, or -1."""
    try:
        lines = (workdir / 'metrics.jsonl').read_bytes().split(b'\n')[:-1]
    except FileNotFoundError:
        return -1
    return int(lines[-1].split(b':')[1].split(b',')[0]) if lines else -1


def wait_for(condition, process, timeout_s=120):
    """Waits until the condition holds; False if the process ended before."""
    end = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, 'nothing happened'
        time.sleep(0.001)
    return True
