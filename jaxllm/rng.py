"""Random keys: a seed, folded with what it is for, then with the step. Never reused."""

import jax

INIT, STEP, SAMPLE, ROLLOUT, SHUFFLE, VALUE = range(6)


def key(seed, purpose):
    """The key of one purpose; fold in a step or a row before drawing from it twice."""
    return jax.random.fold_in(jax.random.key(seed), purpose)
