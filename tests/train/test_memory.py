"""Predicted memory: exact where shapes say it, near the compiler's own number elsewhere."""

import jax
import jax.numpy as jnp
import pytest
import toy_models

from jaxllm.errors import InputError
from jaxllm.models import lora as adapters
from jaxllm.objectives.lm import lm
from jaxllm.sharding import make_mesh
from jaxllm.train import memory, optim, plan, state, step

_OPTIM = optim.OptimConfig(
    name='adamw', lr=0.05, schedule='constant', warmup_steps=0, decay_share=0., final_lr_share=1.,
    b1=0.9, b2=0.95, eps=1e-2, weight_decay=0.1, clip_norm=1., ema_decay=0., muon_momentum=0.95)
_GUARD = step.GuardConfig(spike_factor=0., history=3, max_skips_in_row=5)


def _lora(**changes):
    return adapters.LoraConfig(**dict(rank=3, alpha=7., targets=('*',), rslora=False, dora=False,
                                      train_embeddings=False, base='float32') | changes)


def test_what_shapes_say_by_hand():
    """Kernels of a layer: q, o 16*24, k, v 16*12, MLP 3*16*20; three layers. Norms 7*16."""
    cfg = toy_models.config('llama')
    kernels, rest = 3 * (2 * 16 * 24 + 2 * 16 * 12 + 3 * 16 * 20), 41 * 16 + 7 * 16
    full = memory.predict_memory(cfg, 2, 9, ema=True)
    assert full.num_params == full.num_trainable == kernels + rest
    assert full.frozen == 0 and full.trainable == full.gradients == 4 * (kernels + rest)
    assert full.optimizer == 3 * full.trainable  # two moments and the average
    assert full.total == full.trainable * 4 + max(full.activations + 2 * full.gradients,
                                                  3 * full.gradients)
    assert memory.predict_memory(cfg, 2, 9, _lora(rank=0)) == memory.predict_memory(cfg, 2, 9)

    qlora = memory.predict_memory(cfg, 2, 9, _lora(targets=('attention/q',), base='int8'))
    assert qlora.num_trainable == 3 * 3 * (16 + 24) and qlora.num_params == kernels + rest
    scales = 3 * (24 + 12 + 12 + 16 + 20 + 20 + 16)
    assert qlora.frozen == kernels + 4 * scales + 4 * rest
    assert qlora.optimizer == 2 * 4 * qlora.num_trainable
    assert f'{qlora.num_trainable:,} of {qlora.num_params:,} parameters' in str(qlora)


def test_activations_by_hand():
    """6 D + 3 H C + 2 K C + 6 F per token and layer; the logits of 18 tokens beside them."""
    cfg = toy_models.config('llama')
    layer = 6 * 16 + 3 * 24 + 2 * 12 + 6 * 20
    assert memory.activation_bytes(cfg, 2, 9) == 18 * 3 * layer * 4 + 2.5 * 4 * 18 * 41
    assert memory.activation_bytes(cfg, 2, 9, chunk_size=6) == 18 * 3 * layer * 4 + 2.5 * 4 * 6 * 41
    remat = toy_models.config('llama', remat='full')
    assert memory.activation_bytes(remat, 2, 9) == 18 * 3 * 16 * 4 + 18 * 2 * layer * 4
    assert memory.activation_bytes(cfg, 2, 9, dora=True) > memory.activation_bytes(cfg, 2, 9)


def test_an_adapter_that_does_not_fit_is_an_error():
    with pytest.raises(InputError, match='lora.rank=99'):
        memory.predict_memory(toy_models.config('llama'), 2, 9, _lora(rank=99))


@pytest.mark.parametrize('lora,remat', [(None, 'none'), (_lora(base='nf4'), 'none'),
                                        (_lora(dora=True, base='int8'), 'full')])
def test_the_prediction_is_near_what_the_compiler_says(lora, remat):
    cfg = toy_models.config('llama', d_model=128, d_ff=384, num_layers=8, attention__num_heads=4,
                            attention__head_dim=32, vocab_size=1024, remat=remat)
    B, L = 8, 64
    mesh, objective = make_mesh(devices=jax.devices()[:1]), lm(cfg)
    with jax.set_mesh(mesh):
        trainable, frozen = toy_models.shapes(cfg), {}
        adapted = objective
        if lora is not None:
            frozen = jax.eval_shape(lambda p: adapters.prepare_base(p, lora), trainable)
            trainable = jax.eval_shape(
                lambda p: adapters.init_adapter(jax.random.key(0), p, lora), trainable)
            adapted = lambda adapter, base, batch, rng: objective(
                adapters.combine(base, adapter, lora), None, batch, rng)
        optimizer = optim.make_optimizer(_OPTIM, trainable)
        tree = jax.eval_shape(lambda p: state.create(
            p, optimizer, ema=False, aux={'guard': step.guard_state(_GUARD)}), trainable)
        ids = dict.fromkeys(('tokens', 'targets', 'segment_ids', 'positions'), jnp.int32)
        batch = {name: jax.ShapeDtypeStruct((B, L), dtype)
                 for name, dtype in (ids | {'loss_weights': jnp.float32}).items()}
        batch['num_bytes'] = jax.ShapeDtypeStruct((B,), jnp.float32)
        fn = step.make_train_step(adapted, optimizer, lambda step: jnp.float32(0.1), seed=0,
                                  clip_norm=1., guard=_GUARD)
        compiled = jax.jit(fn, donate_argnums=0).lower(tree, frozen, batch).compile()
    report = plan.memory_report(compiled, mesh)
    predicted = memory.predict_memory(cfg, B, L, lora)
    assert 0.75 < predicted.total / (report.arguments + report.temporaries) < 1.33
