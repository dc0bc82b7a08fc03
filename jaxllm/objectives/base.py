"""What an objective returns: sums and their weights, never means.

    objective(trainable, frozen, batch, rng) -> LossSums

The step adds sums and weights over micro-batches, devices and processes and divides once, so that
the loss is the same however the batch is cut. Weights depend on the batch only, not on parameters.
"""

from typing import NamedTuple

import jax


class Term(NamedTuple):
    """One term of the loss, coef * sum / weight."""
    sum: jax.Array     # [] float32, differentiable
    weight: jax.Array  # [] float32, a function of the batch alone
    coef: float = 1.0


class LossSums(NamedTuple):
    """The terms of a loss, and metrics as {name: (sum, weight)} that carry no gradient."""
    terms: dict
    metrics: dict


def assembled(objective, assemble):
    """`objective` of whole parameters as one of the part of them that is trained.

    Args:
      objective: takes the parameters of a whole model as `trainable`.
      assemble: assemble(trainable, frozen) -> those parameters, e.g. an adapter on its base.
    """
    def of_part(trainable, frozen, batch, rng):
        return objective(assemble(trainable, frozen), frozen, batch, rng)
    return of_part
