"""The train state: everything that changes during a run, all of it saved and restored."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxllm.sharding import replicated


@flax.struct.dataclass
class TrainState:
    """Donated to each step. Constants (a frozen base, a reference) are a separate argument."""
    step: jax.Array    # [] int32: steps taken = index of the next batch
    trainable: Any     # parameters that gradients are taken of, float32
    opt_state: Any
    ema: Any           # moving average of `trainable`, or {} where there is none
    aux: Any           # {'guard': ..., ...}: what else an objective adapts as it goes


def create(trainable, optimizer, *, ema, aux):
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable),
                      jax.tree.map(jnp.copy, trainable) if ema else {}, aux)


def state_shardings(state_shape, param_shardings, mesh):
    """NamedShardings of a whole TrainState: what mirrors a parameter lives where it lives.

    An optimizer's moments stand under the path of their parameter, so a leaf of `opt_state` whose
    path ends with a parameter's path, and that has its shape, gets its sharding.
    """
    everywhere = replicated(mesh)
    places = {_names(path): sharding for path, sharding
              in jax.tree_util.tree_leaves_with_path(param_shardings)}
    shapes = {_names(path): x.shape for path, x
              in jax.tree_util.tree_leaves_with_path(state_shape.trainable)}

    def place(path, leaf):
        names = _names(path)
        for start in range(len(names)):
            if shapes.get(names[start:]) == leaf.shape:
                return places[names[start:]]
        return everywhere

    return TrainState(everywhere, param_shardings,
                      jax.tree_util.tree_map_with_path(place, state_shape.opt_state),
                      param_shardings if state_shape.ema else {},
                      jax.tree.map(lambda _: everywhere, state_shape.aux))


def _names(path):
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)
