"""What the loop calls of a reward stage: the loss and the accuracy on held-out comparisons."""

import dataclasses

import jax

from jaxllm.data.comparison_batches import AllComparisons
from jaxllm.errors import InputError
from jaxllm.sharding import batch_shardings
from jaxllm.stages.hooks import weights
from jaxllm.train.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    max_comparisons: int   # of each held-out set while training, spread evenly; 0 = all

    def __post_init__(self):
        if self.max_comparisons < 0:
            raise InputError(f'eval.max_comparisons={self.max_comparisons} must not be negative; '
                             '0 = all')


def make_evaluate(objective, held_out, trainer, frozen, *, batch_size, most):
    """evaluate(state) -> {'val/loss', 'val/pair_accuracy', 'val/<source>/...'}.

    The loss is in nats per decision (or per prompt, as the objective weighs), the accuracy the
    share of ordered pairs that the rewards order alike. Each comparison counts once.

    Args:
      held_out: {source: Encoded}. frozen: constants of the objective.
    """
    sets = {name: AllComparisons(
        encoded, batch_size=batch_size, most=most, process_index=jax.process_index(),
        process_count=jax.process_count())
        for name, encoded in held_out.items()}
    shards = batch_shardings(next(iter(sets.values()))[0], trainer.mesh)
    run = jax.jit(make_eval_step(objective), in_shardings=(trainer.param_shardings, None, shards))

    def totals(params, batches):
        sums = []
        for i in range(len(batches)):
            batch = {key: jax.make_array_from_process_local_data(shards[key], x)
                     for key, x in batches[i].items()}
            sums.append(run(params, frozen, batch))
        return jax.tree.map(lambda *xs: sum(map(float, xs)), *jax.device_get(sums))

    def evaluate(state):
        by_source = {name: totals(weights(state), batches) for name, batches in sets.items()}
        every = jax.tree.map(lambda *xs: sum(xs), *by_source.values())
        return {f'{prefix}/{key}': x for prefix, sums in
                [('val', every), *((f'val/{name}', sums) for name, sums in by_source.items())]
                for key, x in _means(sums).items()}
    return evaluate


def _means(sums):
    terms, metrics = sums
    mean = lambda pair: pair[0] / max(pair[1], 1e-9)
    return {'loss': sum(mean(pair) for pair in terms.values()),
            'pair_accuracy': mean(metrics['accuracy']), 'reward': mean(metrics['reward'])}
