"""The train step of a 1B model, compiled for 16 TPU v5e chips that are not here."""

import jax
import jax.numpy as jnp
import ml_collections
import pytest
import toy_models

from jaxllm.errors import InputError
from jaxllm.models import families, layers, transformer
from jaxllm.models.config import model_config
from jaxllm.objectives import ops
from jaxllm.objectives.lm import lm
from jaxllm.sharding import ShardingConfig, shardings
from jaxllm.train import optim, plan, state, step

pytestmark = pytest.mark.tpu_aot
_MIB = 2 ** 20
_CHIPS, _ROWS, _LENGTH = 16, 16, 2048


@pytest.fixture(autouse=True)
def no_tpu_here(monkeypatch):
    """The compiler neither looks for the machine's TPU nor locks it."""
    for name, value in (('TPU_SKIP_MDS_QUERY', '1'), ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1'),
                        ('TPU_ACCELERATOR_TYPE', 'v5litepod-16'),
                        ('TPU_WORKER_HOSTNAMES', 'localhost')):
        monkeypatch.setenv(name, value)


def _model(**changes):
    section = ml_collections.ConfigDict(families.llama('1b'))
    section.update_from_flattened_dict({
        'vocab_size': 32768, 'dtype': 'bfloat16', 'remat': 'full', 'attention.impl': 'splash'}
        | changes)
    return model_config(section.to_dict())


def _build(model):
    config = optim.OptimConfig(
        name='adamw', lr=3e-4, schedule='cosine', warmup_steps=10, decay_share=0.2,
        final_lr_share=0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0,
        ema_decay=0.0, muon_momentum=0.95)
    guard = step.GuardConfig(spike_factor=5.0, history=50, max_skips_in_row=10)

    def build(mesh):
        shapes = toy_models.shapes(model)
        optimizer = optim.make_optimizer(config, shapes)
        tree = jax.eval_shape(
            lambda p: state.create(p, optimizer, ema=False, aux={'guard': step.guard_state(guard)}),
            shapes)
        shape = jax.ShapeDtypeStruct
        ids = dict.fromkeys(('tokens', 'targets', 'segment_ids', 'positions'), jnp.int32)
        batch = {name: shape((_ROWS, _LENGTH), dtype)
                 for name, dtype in (ids | {'loss_weights': jnp.float32}).items()}
        batch['num_bytes'] = shape((_ROWS,), jnp.float32)
        train_step = step.make_train_step(lm(model, z_loss=1e-4), optimizer,
                                          optim.schedule(config, 100), seed=0, clip_norm=1.0,
                                          guard=guard)
        places = shardings(transformer.param_axes(shapes), shapes, mesh)
        return train_step, tree, places, {}, {}, batch
    return build


def _temporaries_bound(model, num_params):
    """Bytes that a chip needs beside its share of the state when everything is split as promised:
    16 rows on 16 chips, parameters and gradients in 16 parts, one layer at a time."""
    D, F, V, L = model.d_model, model.d_ff, model.vocab_size, _LENGTH
    layer = 4 * D * model.attention.num_heads * model.attention.head_dim + 3 * D * F
    gradients = 4 * num_params / _CHIPS + 2 * num_params / _CHIPS   # and weights cast to bfloat16
    kept = 2 * model.num_layers * L * D                             # 'full' keeps layers' inputs
    unembedding = 2 * V * D + 2 * 4 * V * D                         # gathered, and its gradient
    one_layer = 2 * 2 * layer + 4 * L * (3 * F + 6 * D)             # this one's and the next's
    return gradients + kept + unembedding + one_layer


def test_a_step_of_a_1b_model_needs_what_sharding_promises():
    model = _model()
    compiled, report = plan.compile_for_topology(_build(model), 'v5e:4x4', ShardingConfig('fsdp'))
    num_params = 992_028_672
    # Parameters and two moments in float32, split over all chips; the rest is the batch.
    assert 0 <= report.arguments - 3 * 4 * num_params / _CHIPS < 2 * _MIB
    assert report.aliased >= 3 * 4 * num_params / _CHIPS  # the state is updated in place
    assert report.outputs - report.aliased < _MIB
    assert report.temporaries < _temporaries_bound(model, num_params)
    assert report.total < plan.HBM_BYTES['TPU v5 lite']
    flops = plan.step_flops(model, _ROWS, _LENGTH)
    # 6 per parameter and token, and attention.
    assert 1 < flops / (6 * num_params * _ROWS * _LENGTH) < 1.1
    text = compiled.as_text()
    # No chip holds all rows of an activation, and the kernel is there.
    assert f'[{_ROWS},{_LENGTH},{model.d_model}]' not in text
    assert 'tpu_custom_call' in text


def test_without_activation_constraints_it_needs_far_more(monkeypatch):
    """Four layers and 'chunked' attention: 660 MiB of temporaries, and 2965 without constraints.
    (With 'splash' none are missed: its shard_map pins each layer's rows.)"""
    for module in (layers, transformer, ops, step):
        monkeypatch.setattr(module, 'constrain', lambda x, *axes: x)
    model = _model(**{'num_layers': 4, 'attention.impl': 'chunked'})
    _, report = plan.compile_for_topology(_build(model), 'v5e:4x4', ShardingConfig('fsdp'))
    assert report.temporaries > 2 * _temporaries_bound(model, 272_648_192)


def test_an_unknown_topology_is_an_error():
    with pytest.raises(InputError, match='v5e:3x5'):
        plan.topology_mesh('v5e:3x5', ShardingConfig())
