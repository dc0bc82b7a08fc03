"""How the rollouts of a config are cut into steps, and what of them need not be computed twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import InputError
from jaxllm.rl.source import steps_per_epoch
from jaxllm.sharding import batch_ways


@dataclasses.dataclass(frozen=True)
class Batches:
    """num_examples: rows that a rollout gives to train on.
    rollout_group, batch_group: so many neighbours of a rollout, and of a batch (of a micro-batch of
    it), share the reading of their prompt; 1 = each row is read as a whole. recompute: log-probs at
    sampling time are computed by the forward pass that training differentiates; False: the rollout
    is trained on in one step, which computes them itself.
    """
    num_examples: int
    rollout_group: int
    batch_group: int
    recompute: bool

    def computed_share(self, room, new):
        """Of the tokens that a batch's rows hold, those that a step computes: prompts once.

        Args:
          room: tokens of a prompt and its completion. new: of the completion.
        """
        return ((room - new) / self.batch_group + new) / room


def plan(config, algorithm, rollout, room, mesh):
    """The Batches of a config.

    Args:
      rollout: RolloutConfig. room: tokens of a prompt and its completion.

    Raises:
      InputError: batches that do not divide a rollout, or saves inside one.
    """
    shapes = example_shapes(algorithm, rollout, room, recompute=True)
    num_examples = next(iter(shapes.values())).shape[0]
    size, accum, ways = config.train.batch_size, config.train.accum, batch_ways(mesh)
    period = rollout.epochs * steps_per_epoch(num_examples, size)
    _check_period(config, period)
    S, together = rollout.samples, 1
    if rollout.share_prompts and rollout.prompts % ways == 0:
        together = S
    whole_groups = (algorithm.keeps_groups and size % S == 0 and size // S % ways == 0
                    and S % accum == 0)
    return Batches(num_examples, together,
                   S // accum if rollout.share_prompts and whole_groups else 1,
                   period > 1 or accum > 1 or algorithm.needs_logprobs)


def example_shapes(algorithm, rollout, room, *, recompute):
    """{name: ShapeDtypeStruct} of the examples of a whole rollout."""
    aux = {name: jnp.float32(x) for name, x in algorithm.aux.items()}
    return jax.eval_shape(lambda arrays, aux: algorithm.examples(arrays, rollout.samples, aux),
                          _rollout_like(algorithm, rollout, room, recompute), aux)


def _rollout_like(algorithm, rollout, room, recompute):
    """Shapes of a rollout, see `objectives.policy`."""
    N, T = rollout.rows, rollout.max_new_tokens
    ints = {'tokens_BL': (N, room), 'lengths_B': (N,), 'starts_B': (N,), 'completions_BT': (N, T)}
    floats = {'mask_BT': (N, T), 'sampler_logprobs_BT': (N, T), 'ref_logprobs_BT': (N, T),
              'entropy_BT': (N, T), 'rewards_B': (N,), 'finished_B': (N,)}
    if recompute:
        floats['logprobs_BT'] = N, T
    if algorithm.uses_values:
        floats['values_BT'] = N, T
    return {name: jax.ShapeDtypeStruct(shape, kind)
            for shapes, kind in ((ints, np.int32), (floats, np.float32))
            for name, shape in shapes.items()}


def _check_period(config, period):
    """What is saved, evaluated or ended inside a rollout could not be gone on with."""
    for name in ('num_steps', 'eval_every', 'save_every', 'sample_every'):
        value = config.train[name]
        if value % period:
            raise InputError(
                f'train.{name}={value}: a rollout is trained on in {period} steps, and only '
                f'between rollouts a run is evaluated and saved; use a multiple of {period}, e.g. '
                f'--config.train.{name}={max(1, round(value / period)) * period}')
