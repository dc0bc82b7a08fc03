"""The verb `inspect`: one training step of a run, looked at from inside."""

import json
import pathlib

import jax
import ml_collections
import numpy as np

from jaxllm.data import tokenizer as tokenizers
from jaxllm.data.store import TokenStore
from jaxllm.errors import InputError
from jaxllm.evals.inspect import inspect_batch
from jaxllm.evals.inspect_page import render_html
from jaxllm.evals.inspect_text import render_terminal
from jaxllm.sharding import batch_ways
from jaxllm.stages import corpus, pretrain
from jaxllm.stages.run import start_jax
from jaxllm.train.checkpoint import load_state


def inspect(args):
    """Prints what the next step of a run, or a step on `--text`, does to its best checkpoint."""
    start_jax()
    workdir = pathlib.Path(args.workdir)
    if not (workdir / 'lineage.json').exists():
        raise InputError(f'{workdir} is no run directory (no lineage.json there); give the '
                         '--workdir of a run')
    config = ml_collections.ConfigDict(json.loads((workdir / 'config.json').read_text()))
    trainer, objective, _ = pretrain.prepare(config, resuming=True)
    tokenizer = tokenizers.load(workdir / 'tokenizer')
    with jax.set_mesh(trainer.mesh):
        state = load_state(workdir / 'checkpoints', trainer.like())
        step = int(state.step)
        # A finished run's schedule ends at 0, where an update shows nothing.
        lr = float(trainer.lr(step)) or trainer.optim.lr
        batch = (_batch_of_text(args.text, tokenizer, batch_ways(trainer.mesh)) if args.text
                 else _next_batch(config, workdir, step))
        seen = inspect_batch(state.trainable, trainer.model, objective, batch, tokenizer,
                             optimizer=trainer.optimizer, opt_state=state.opt_state,
                             lr=lr, clip_norm=trainer.optim.clip_norm)
    print(render_terminal(seen))
    if args.html:
        page = render_html(seen, title=f'Inside step {step:,} of {workdir.name}')
        pathlib.Path(args.html).write_text(page, encoding='utf-8')
        print(f'page: {args.html}')


def _next_batch(config, workdir, step):
    specs = corpus.source_specs(config)
    stores = {spec.name: TokenStore.open(workdir / 'data' / 'stores' / spec.name)
              for spec in specs}
    return pretrain.training_data(config, specs, stores)(step)


def _batch_of_text(text, tokenizer, num_rows):
    """One text as a batch of equal rows, one for each device that rows are split over."""
    ids = np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], np.int32)
    rows = lambda x: np.tile(x[None], (num_rows, 1))
    size = np.float32(len(text.encode()))
    ones = np.ones(len(ids) - 1)
    return {'tokens': rows(ids[:-1]), 'targets': rows(ids[1:]),
            'loss_weights': rows(ones.astype(np.float32)),
            'segment_ids': rows(ones.astype(np.int32)),
            'positions': rows(np.arange(len(ids) - 1, dtype=np.int32)),
            'num_bytes': np.full(num_rows, size)}
