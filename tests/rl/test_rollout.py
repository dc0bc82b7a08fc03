"""What a rollout says of its completions: where they end, and how far they are from a reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from jaxllm.models import lora
from jaxllm.objectives import advantage, policy
from jaxllm.rl import rollout

pytestmark = pytest.mark.usefixtures('mesh')

CFG = toy_models.config('llama', num_layers=1, attention__num_kv_heads=4)
PROMPTS, SAMPLES, ROOM, NEW = 5, 3, 6, 7
EOS = 4
STOPS = tuple(range(20, 29))  # of 41 tokens, and EOS is none of them
ADAPTER = lora.LoraConfig(rank=2, alpha=4.0, targets=('*',), rslora=False, dora=False,
                          train_embeddings=False, base='float32')


class Tokens:
    """Stands in for a tokenizer whose padding is its end of text."""
    vocab_size, pad_id, eos_id = CFG.vocab_size, EOS, EOS

    def decode(self, ids):
        return ' '.join(map(str, ids))


@pytest.fixture(scope='module')
def params():
    return toy_models.params(CFG)


def settings(**values):
    return rollout.RolloutConfig(**dict(dict(
        prompts=PROMPTS, samples=SAMPLES, epochs=1, max_new_tokens=NEW, temperature=0.7,
        batch_size=0, refill=False, share_prompts=True, score_batch_size=4, unfinished='replace',
        unfinished_value=-2.0, standardise=False), **values))


@pytest.fixture(scope='module')
def drawn(params):
    """(prompts, Samples, arrays) of a rollout that ends at other tokens than the end of text."""
    rng = np.random.default_rng(2)
    prompts = [list(rng.integers(5, CFG.vocab_size, n)) for n in rng.integers(2, ROOM, PROMPTS)]
    samples = rollout.sample(params, CFG, prompts, settings(), Tokens(), STOPS, jax.random.key(1))
    return prompts, samples, rollout.to_arrays(prompts, samples, SAMPLES, ROOM, NEW, EOS)


def test_the_reward_is_at_the_end_that_was_asked_for(drawn):
    """Invariant 18: with stop tokens of one's own the score is at the last token, and only what
    has none of them is unfinished, whatever the end of text is."""
    _, samples, arrays = drawn
    ended = np.array([tokens[-1] in STOPS for tokens in samples.tokens])
    assert 2 < ended.sum() < len(ended) - 2
    # The end of text pads, and stands amid completions too, where it ends nothing.
    assert any(EOS in tokens[:-1] for tokens in samples.tokens)
    np.testing.assert_array_equal(samples.finished, ended)
    lengths = arrays['mask_BT'].sum(axis=1).astype(int)
    assert lengths.tolist() == [len(tokens) for tokens in samples.tokens]
    assert all(n == NEW for n in lengths[~ended])

    scores = np.linspace(0.3, 0.9, len(ended)).astype(np.float32)
    judged = rollout.judged_by_end(settings(), scores, samples.finished)
    np.testing.assert_array_equal(judged, np.where(ended, scores, np.float32(-2)))
    rewards = np.asarray(advantage.token_rewards(judged, np.zeros((len(ended), NEW), np.float32),
                                                 arrays['mask_BT'], 0.1))
    want = np.zeros((len(ended), NEW), np.float32)
    want[np.arange(len(ended)), lengths - 1] = judged
    np.testing.assert_array_equal(rewards, want)


@pytest.mark.parametrize('adapted', [False, True])
def test_at_the_reference_no_token_is_apart(adapted, drawn, params):
    """Invariant 16, at the temperature of sampling; and 25: a fresh adapter is the base below."""
    trainable, frozen, whole = params, {'ref': params}, lambda trainable, frozen: trainable
    if adapted:
        base = lora.prepare_base(params, ADAPTER)
        trainable, frozen = lora.init_adapter(jax.random.key(0), base, ADAPTER), {'ref': base}
        whole = lambda trainable, frozen: lora.combine(frozen['ref'], trainable, ADAPTER)
    models = policy.Models(CFG, whole, CFG, None, 0.7)
    forward = jax.jit(rollout.make_forward(models, lambda frozen: frozen['ref']))
    batch = drawn[2]
    found = forward(trainable, frozen, batch)
    real = batch['mask_BT'] > 0
    np.testing.assert_array_equal(found['logprobs_BT'][real], found['ref_logprobs_BT'][real])
    # The sampler drew from the same distribution.
    np.testing.assert_allclose(found['logprobs_BT'][real], batch['sampler_logprobs_BT'][real],
                               atol=1e-4)
    moved = forward(jax.tree.map(lambda x: x + jnp.float32(0.01), trainable), frozen, batch)
    assert np.abs(moved['logprobs_BT'] - moved['ref_logprobs_BT'])[real].max() > 1e-3
    np.testing.assert_array_equal(moved['ref_logprobs_BT'], found['ref_logprobs_BT'])


@pytest.mark.parametrize('recompute', [False, True])
def test_a_summary_has_the_metrics_that_are_announced(recompute, drawn):
    _, samples, arrays = drawn
    B, T = arrays['mask_BT'].shape
    known = {name: arrays['sampler_logprobs_BT'] - 0.5 for name in ('ref_logprobs_BT', *(
        ('logprobs_BT', 'entropy_BT') if recompute else ()))}
    scores = {'mine': np.ones(B, np.float32)}
    found = rollout.summary(arrays | known | {'rewards_B': scores['mine']}, scores, SAMPLES)
    assert set(found) == {*rollout.summary_names(recompute), 'mine'}
    assert ('sampler_gap' in found) == recompute
    lengths = arrays['mask_BT'].sum(axis=1)
    assert found['kl'] == pytest.approx(0 if recompute else 0.5 * lengths.mean(), rel=1e-5)
    if not recompute:  # the mean of -log pi
        total = -(arrays['sampler_logprobs_BT'] * arrays['mask_BT']).sum()
        assert found['entropy'] == pytest.approx(total / lengths.sum(), rel=1e-5)
