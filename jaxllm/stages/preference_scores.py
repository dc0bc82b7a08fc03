"""Log-probs of whole sets of pairs: of the reference, once, and of the policy at evaluations."""

import json

import jax
import numpy as np

from jaxllm.data.comparison_batches import row_length
from jaxllm.objectives import preference
from jaxllm.rl.rollout import InChunks
from jaxllm.stages import hooks
from jaxllm.train.progress import stage as say

REFERENCE = 'ref_logprobs'


class Scorer:
    """Log-probs of answers under what is trained, in batches of about one length.

    The reference is the policy before its first step, and both go through this, the same compiled
    programs: what an adapter or a base in few bits does to a model is part of both.
    """

    def __init__(self, setup, rows):
        """Args: rows: pairs of a forward pass."""
        self._rows, self._mismatched = rows, setup.method.mismatched
        self._run = InChunks(
            lambda trainable, frozen, batch: preference.read_pairs(
                setup.assemble(trainable, frozen), setup.model, batch).logprobs,
            rows, setup.trainer.mesh)

    def __call__(self, trainable, frozen, pairs, wanted):
        """[W, 2 or 3] float32: the sums of pairs `wanted`, the third of mismatched rows."""
        longest = pairs.longest(self._mismatched)[wanted]
        found, order = {}, np.argsort(longest, kind='stable')
        for first in range(0, len(order), self._rows):
            part = order[first:first + self._rows]
            batch = pairs.rows(wanted[part], self._mismatched, row_length(longest[part].max()))
            found |= zip(part.tolist(), self._run(trainable, frozen, batch=batch), strict=True)
        return np.stack([found[i] for i in range(len(wanted))])


def reference(setup, scorer, frozen, start, pairs, part, folder):
    """{'ref_logprobs': [N, 2 or 3]} of the model as it starts, {} for a method without reference.

    They are kept in `folder` under the fingerprints of pairs, model and template, and computed anew
    where one of these is another. start() gives the trainable parameters of the first step.
    """
    if not setup.method.needs_reference:
        return {}
    about = json.dumps({
        'pairs': pairs.fingerprint, 'mismatched': setup.method.mismatched,
        'model': setup.base.fingerprint, 'step': setup.base.step,
        'template': setup.template.fingerprint, 'computed': repr(setup.model),
        'adapter': repr(setup.lora)}, sort_keys=True)
    file = folder / f'reference-{part}.npz'
    if file.exists():
        with np.load(file, allow_pickle=False) as stored:
            if str(stored['about']) == about:
                return {REFERENCE: stored[REFERENCE]}
    say(f'log-probs of the reference for {len(pairs)} pairs ({part}) ...')
    found = scorer(start(), frozen, pairs, np.arange(len(pairs)))
    if jax.process_index() == 0:
        partial = file.with_name(f'{file.stem}.partial.npz')
        np.savez(partial, about=np.array(about), **{REFERENCE: found})
        partial.replace(file)
    return {REFERENCE: found}


def make_evaluate(setup, scorer, pairs, columns, frozen, most):
    """evaluate(state) -> {'val/loss', 'val/pair_accuracy', 'val/likelier', ...}, see
    `preference.loss_sums`, of `most` held-out pairs, spread evenly; 0 = all.

    The loss is that of all of them at once, so that neither it nor KTO's zero depends on batches.
    """
    count = min(most or len(pairs), len(pairs))
    wanted = np.arange(count) * len(pairs) // count
    mask = pairs.rows(wanted, setup.method.mismatched)['mask']
    tokens = np.maximum(mask.sum(axis=-1), 1.0)
    batch = {'pair_weights': np.ones(count, np.float32)}
    loss = jax.jit(lambda pairs, batch: preference.whole_set(setup.method, pairs, batch))

    def evaluate(state):
        logprobs = scorer(hooks.weights(state), frozen, pairs, wanted)
        ratios = logprobs - columns[REFERENCE][wanted] if columns else np.zeros_like(logprobs)
        sums = jax.device_get(loss(preference.Pairs(logprobs, tokens, ratios), batch))
        term = sums.terms['preference']
        values = {'loss': (term.sum, term.weight), **sums.metrics}
        return {f'val/{name}': float(total) / float(of) for name, (total, of) in values.items()}
    return evaluate
