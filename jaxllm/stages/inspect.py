"""The verb `inspect`: one training step of a run, looked at from inside."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class OpenStep:
    """The next step of a run: all that goes into it. Use it under `jax.set_mesh(trainer.mesh)`.

    config: the run's ConfigDict. lr: of the next step, which is `number`.
    """
    workdir: pathlib.Path
    config: Any
    trainer: Any
    objective: Any
    tokenizer: Any
    state: Any
    lr: float

    @property
    def number(self):
        return int(self.state.step)

    @functools.cached_property
    def source(self):
        """source(i): the batch of step i."""
        specs = corpus.source_specs(self.config)
        stores = {spec.name: TokenStore.open(self.workdir / 'data' / 'stores' / spec.name)
                  for spec in specs}
        return pretrain.training_data(self.config, specs, stores)

    def inspect(self, batch, **options):
        """The Inspection of a batch; options as of `evals.inspect.inspect_batch`."""
        trainer, state = self.trainer, self.state
        return inspect_batch(state.trainable, trainer.model, self.objective, batch, self.tokenizer,
                             optimizer=trainer.optimizer, opt_state=state.opt_state, lr=self.lr,
                             clip_norm=trainer.optim.clip_norm, **options)


def open_step(workdir):
    """The OpenStep behind the best checkpoint of a pre-training run.

    Raises:
      InputError: no run there, or none of that kind.
    """
    workdir = pathlib.Path(workdir).resolve()  # Orbax reads no relative paths
    if not (workdir / 'lineage.json').exists():
        raise InputError(f'{workdir} is no run directory (no lineage.json there); give the '
                         '--workdir of a run')
    config = ml_collections.ConfigDict(json.loads((workdir / 'config.json').read_text()))
    trainer, objective, _ = pretrain.prepare(config, resuming=True)
    with jax.set_mesh(trainer.mesh):
        state = load_state(workdir / 'checkpoints', trainer.like())
    # A finished run's schedule ends at 0, where an update shows nothing.
    lr = float(trainer.lr(int(state.step))) or trainer.optim.lr
    return OpenStep(workdir, config, trainer, objective, tokenizers.load(workdir / 'tokenizer'),
                    state, lr)


def inspect(args):
    """Prints what the next step of a run, or a step on `--text`, does to its best checkpoint."""
    start_jax()
    opened = open_step(args.workdir)
    mesh = opened.trainer.mesh
    with jax.set_mesh(mesh):
        seen = opened.inspect(_batch_of_text(args.text, opened.tokenizer, batch_ways(mesh))
                              if args.text else opened.source(opened.number))
    print(render_terminal(seen))
    if args.html:
        page = render_html(seen, title=f'Inside step {opened.number:,} of {opened.workdir.name}')
        pathlib.Path(args.html).write_text(page, encoding='utf-8')
        print(f'page: {args.html}')


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
