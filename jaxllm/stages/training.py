"""The wiring that every training stage shares: state, compiled step, checkpoints, writers, loop."""

import dataclasses
import platform

import jax
import jax.numpy as jnp

from jaxllm import rng
from jaxllm.config import section
from jaxllm.errors import InputError
from jaxllm.models import transformer
from jaxllm.sharding import (ShardingConfig, batch_shardings, batch_ways, make_mesh, replicated,
                             shardings)
from jaxllm.train import flops, loop, optim
from jaxllm.train.checkpoint import CheckpointConfig, Checkpoints
from jaxllm.train.metrics import Metrics
from jaxllm.train.progress import Progress
from jaxllm.train.state import create, state_shardings
from jaxllm.train.step import GuardConfig, guard_state, make_train_step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """`config.train`; the first part is the loop's (see `loop.LoopConfig`)."""
    num_steps: int
    log_every: int
    eval_every: int
    sample_every: int
    save_every: int
    patience: int
    profile_step: int
    batch_size: int    # sequences, over all processes
    accum: int         # micro-batches that a step is cut into
    z_loss: float
    guard: object      # step.GuardConfig

    def __post_init__(self):
        if self.z_loss < 0:
            raise InputError(f'train.z_loss={self.z_loss} must not be negative')


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    tensorboard: bool
    wandb_project: str  # '' = none


class Trainer:
    """Everything about a training run that is known before it starts; compiles nothing.

    Args:
      config: an experiment's ConfigDict.
      model: ModelConfig.
      objective: see `objectives/base.py`.
      trainable: shapes of what is trained; default: the whole model.
      frozen: constants of the objective, as ShapeDtypeStructs with shardings.
      aux: what the objective adapts from step to step, beside the guard's memory.
      extra: what else `make_train_step` takes: prepare, update_aux, penalty.

    Attributes:
      mesh, optimizer, state_shape, state_shardings, step: see the modules of those names.
    """

    def __init__(self, config, model, objective, *, trainable=None, frozen=None, aux=None,
                 **extra):
        train = section(TrainConfig, config.train, 'train')
        self.config, self.model, self.frozen = config, model, frozen or {}
        self._aux = aux or {}
        self.metrics = section(MetricsConfig, config.metrics, 'metrics')
        self.mesh = make_mesh(section(ShardingConfig, config.sharding, 'sharding'))
        self._check_batch(train.batch_size, train.accum)
        self.optim = section(optim.OptimConfig, config.optim, 'optim')
        self.guard = section(GuardConfig, train.guard, 'train.guard')
        self.checkpoint = section(CheckpointConfig, config.checkpoint, 'checkpoint')
        self.loop = loop.LoopConfig(**{field.name: getattr(train, field.name)
                                       for field in dataclasses.fields(loop.LoopConfig)})
        self.lr = optim.schedule(self.optim, train.num_steps)
        params = trainable
        if params is None:
            with jax.set_mesh(self.mesh):
                params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), model))
        self.num_params = transformer.num_params(params)
        self.param_shardings = shardings(transformer.param_axes(params), params, self.mesh)
        self.optimizer = optim.make_optimizer(self.optim, params)
        self.state_shape = jax.eval_shape(self._new_state, params)
        self.state_shardings = state_shardings(self.state_shape, self.param_shardings, self.mesh)
        self.step = make_train_step(
            objective, self.optimizer, self.lr, seed=config.seed, accum=train.accum,
            clip_norm=self.optim.clip_norm, ema_decay=self.optim.ema_decay, guard=self.guard,
            **extra)

    def _check_batch(self, batch_size, accum):
        if accum < 1:
            raise InputError(f'train.accum={accum} must be at least 1')
        ways = batch_ways(self.mesh) * accum
        if batch_size < 1 or batch_size % ways:
            shape = {axis: n for axis, n in self.mesh.shape.items() if n > 1}
            multiple = max(1, round(batch_size / ways)) * ways
            raise InputError(
                f'batch_size={batch_size} does not divide over {batch_ways(self.mesh)} data shards '
                f'(mesh {shape}) times train.accum={accum}; use a multiple of {ways}, e.g. '
                f'--config.train.batch_size={multiple}')

    def _new_state(self, params):
        return create(params, self.optimizer, ema=self.optim.ema_decay > 0,
                      aux=self._aux | {'guard': guard_state(self.guard)})

    def like(self):
        """The state as ShapeDtypeStructs with shardings."""
        return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype,
                                                                     sharding=sharding),
                            self.state_shape, self.state_shardings)

    def params_like(self):
        return self.like().trainable

    def init_params(self):
        """Fresh parameters of the whole model, each part made where it will live."""
        return self.place(lambda: transformer.init(rng.key(self.config.seed, rng.INIT), self.model))

    def place(self, init, *args):
        """init(*args), a trainable tree, each part of it made where it will live."""
        return jax.jit(init, out_shardings=self.param_shardings)(*args)

    def compile_step(self, batch_shape):
        """The jitted step for batches shaped like `batch_shape`."""
        self.batch_shardings = batch_shardings(batch_shape, self.mesh)
        return jax.jit(self.step, in_shardings=(self.state_shardings, None, self.batch_shardings),
                       out_shardings=(self.state_shardings, replicated(self.mesh)),
                       donate_argnums=0)

    def fit(self, workdir, source, hooks, *, params, frozen, data_fingerprint, tokens_per_step,
            flops_per_token):
        """Trains, from the newest checkpoint in `workdir` or from params(), and returns the state.

        Raises:
          InputError: the checkpoint there was made with other data or other shapes.
        """
        writer = jax.process_index() == 0
        checkpoints = Checkpoints(workdir / 'checkpoints', keep_last=self.checkpoint.keep_last)
        state, restored, repairs = checkpoints.restore(self.like())
        if state is None:
            state = jax.jit(self._new_state, out_shardings=self.state_shardings)(params())
        elif restored['data'] != data_fingerprint:
            raise InputError(f'{workdir} was trained on other data ({restored["data"]}, now '
                             f'{data_fingerprint}); use a new --workdir')
        peak = flops.machine_matmul_peak(jnp.dtype(self.model.dtype)) if writer else 0.0
        start = int(state.step)
        metrics = Metrics(workdir, restored['offsets'] if restored else None, writer,
                          tensorboard=self.metrics.tensorboard,
                          wandb_project=self.metrics.wandb_project,
                          context={'python': platform.python_version()})
        with Progress(self.loop.num_steps, start, enabled=writer) as progress:
            for repair in repairs:
                progress.line(repair)
                metrics.repair(start, repair)
            if start:
                progress.line(f'going on from step {start:,}')
            try:
                first = source.like() if source.needs_state else source(0)
                return loop.train(
                    self.compile_step(first), state, frozen, source, self.loop,
                    batch_sharding=self.batch_shardings, checkpoints=checkpoints, metrics=metrics,
                    progress=progress, hooks=hooks, metadata={'data': data_fingerprint},
                    start_metadata=restored, max_skips_in_row=self.guard.max_skips_in_row,
                    tokens_per_step=tokens_per_step,
                    flops_per_step=flops_per_token * tokens_per_step,
                    peak_flops=peak, trace_dir=str(workdir / 'profile'))
            finally:
                try:
                    metrics.close()
                finally:
                    checkpoints.close()
