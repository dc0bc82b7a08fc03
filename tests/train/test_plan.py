"""Costs of a step from shapes alone, here for the host's own devices."""

import jax
import jax.numpy as jnp
import optax
import pytest
import toy_models

from jaxllm.errors import InputError
from jaxllm.models import transformer
from jaxllm.objectives.lm import lm
from jaxllm.sharding import ShardingConfig, make_mesh, shardings
from jaxllm.train import plan, state, step

_GUARD = step.GuardConfig(spike_factor=0., history=3, max_skips_in_row=5)
B, L = 16, 11


@pytest.fixture(scope='module')
def compiled():
    """(model, parameter shapes, (program, report)) of a step on 8 devices."""
    cfg = toy_models.config('llama', vocab_size=56, num_layers=2, d_ff=40)
    mesh = make_mesh(ShardingConfig(preset='fsdp'))
    with jax.set_mesh(mesh):
        shapes = toy_models.shapes(cfg)
        optimizer = optax.scale_by_adam()
        make = lambda p: state.create(p, optimizer, ema=False,
                                      aux={'guard': step.guard_state(_GUARD)})
        tree = jax.eval_shape(make, shapes)
    ids = dict.fromkeys(('tokens', 'targets', 'segment_ids', 'positions'), jnp.int32)
    batch = {name: jax.ShapeDtypeStruct((B, L), dtype)
             for name, dtype in (ids | {'loss_weights': jnp.float32}).items()}
    batch['num_bytes'] = jax.ShapeDtypeStruct((B,), jnp.float32)
    fn = step.make_train_step(lm(cfg), optimizer, lambda step: jnp.float32(0.1), seed=0,
                              guard=_GUARD)
    places = shardings(transformer.param_axes(shapes), shapes, mesh)
    return cfg, shapes, plan.compile_step(fn, tree, places, {}, {}, batch, mesh)


def test_arguments_are_a_share_of_the_state_and_the_batch(compiled):
    _, shapes, (_, report) = compiled
    assert report.num_chips == 8
    # Parameters and two moments [4 bytes] over 8 devices.
    state_bytes = 3 * 4 * transformer.num_params(shapes) / 8
    batch_bytes = 4 * (5 * L + 1) * B / 8
    assert 0 <= report.arguments - state_bytes - batch_bytes < 100
    assert report.total >= report.arguments + report.temporaries > report.arguments
    assert report.compile_s > 0
    assert 'on each of 8 chips' in str(report)


def test_flops_of_a_step_by_hand(compiled):
    cfg = compiled[0]
    # Per token: q, o 16*24 each, k, v 16*12 each, MLP 3*16*40, attention 2*24 per mean key; V D.
    layer = 2 * (2 * 16 * 24 + 2 * 16 * 12 + 3 * 16 * 40) + 4 * 24 * (L + 1) / 2
    assert plan.step_flops(cfg, B, L) == 3 * B * L * (2 * layer + 2 * 56 * 16)


def test_an_unknown_topology_is_an_error():
    with pytest.raises(InputError, match='v5e:3x5.*Expected e.g. v5e:4x4'):
        plan.topology_mesh('v5e:3x5', ShardingConfig())
