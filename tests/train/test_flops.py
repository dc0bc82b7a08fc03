"""Model FLOPs against a count by hand, and measurements that must be plausible."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from jaxllm.train import flops

ATTENTION = types.SimpleNamespace(num_heads=4, num_kv_heads=2, head_dim=3, window=2)


@dataclasses.dataclass(frozen=True)
class Model:
    vocab_size: int = 11
    d_model: int = 5
    num_layers: int = 3
    d_ff: int = 7
    activation: str = 'swiglu'
    tie_embeddings: bool = True
    layer_pattern: tuple = ('local', 'global')
    attention: types.SimpleNamespace = dataclasses.field(default_factory=lambda: ATTENTION)


def test_forward_flops_by_hand():
    # Multiply-adds of a token and a layer: q 5*12, k and v 5*6 each, o 12*5; gate, up and down
    # 5*7 each. Layers are local, global, local. Over 6 tokens a global query sees
    # (1+2+3+4+5+6)/6 = 3.5 keys, a local one (1+2+2+2+2+2)/6 = 11/6, each 3 wide in 4 heads, once
    # for scores and once for values. The unembedding is 5*11.
    linear = 3 * (60 + 30 + 30 + 60 + 3 * 35)
    mixing = 2 * 4 * 3 * (11 / 6 + 3.5 + 11 / 6)
    expected = 2 * (linear + mixing + 55)
    assert expected == pytest.approx(2164)
    assert flops.forward_flops_per_token(Model(), seq_len=6) == pytest.approx(expected)
    assert flops.train_flops_per_token(Model(), seq_len=6) == pytest.approx(3 * expected)


def test_an_adapter_saves_the_gradients_of_the_base_by_hand():
    """Base: 4 FLOPs per weight and not 6; attention 3 times forward; 6 per number of A and B."""
    adapter = {'layers': {'q': {'lora_a': jnp.zeros((3, 5, 2)), 'lora_b': jnp.zeros((3, 2, 4, 3)),
                                'magnitude': jnp.zeros((3, 4, 3))}}}
    linear = 3 * (60 + 30 + 30 + 60 + 3 * 35)
    mixing = 2 * 4 * 3 * (11 / 6 + 3.5 + 11 / 6)
    numbers = 3 * (5 * 2 + 2 * 12)
    expected = 4 * (linear + 55) + 6 * mixing + 6 * numbers
    got = lambda model, adapter: flops.adapter_train_flops_per_token(model, adapter, seq_len=6)
    assert got(Model(), adapter) == pytest.approx(expected)
    # A token table that is trained in full, and unembeds as well only where it is tied.
    adapter['embed'] = {'tokens': jnp.zeros((11, 5))}
    assert got(Model(), adapter) == pytest.approx(expected + 2 * 55)
    assert got(Model(tie_embeddings=False), adapter) == pytest.approx(expected)


def test_an_ungated_mlp_has_two_matrices():
    gated = flops.forward_flops_per_token(Model(), seq_len=6)
    plain = flops.forward_flops_per_token(Model(activation='relu'), seq_len=6)
    assert gated - plain == pytest.approx(2 * 3 * 35)


@pytest.mark.parametrize('seq_len,window', [(1, 0), (7, 0), (7, 3), (7, 7), (7, 9), (8, 1)])
def test_mean_keys_counts_the_mask(seq_len, window):
    distance_LM = jnp.arange(seq_len)[:, None] - jnp.arange(seq_len)[None, :]
    mask_LM = (distance_LM >= 0) & (distance_LM < (window or seq_len))
    assert flops.mean_keys(seq_len, window) == pytest.approx(mask_LM.sum() / seq_len)


def test_matmul_flops_agree_with_the_compiler():
    # One layer, one token: scores and values see one key, so the linear layers dominate, and
    # XLA's own count of the same matrix products must agree.
    model = Model(num_layers=1, layer_pattern=('global',))
    shapes = [(5, 12), (5, 6), (5, 6), (12, 5), (5, 7), (5, 7), (7, 5), (5, 11)]
    counted = 0
    for rows, columns in shapes:
        compiled = jax.jit(jnp.dot).lower(jnp.ones((1, rows)), jnp.ones((rows, columns))).compile()
        counted += compiled.cost_analysis()['flops']
    mixing = 2 * 2 * 4 * 3 * 1
    assert flops.forward_flops_per_token(model, seq_len=1) == counted + mixing


def test_measured_peak_is_plausible():
    peak = flops.measure_matmul_peak('float32', seconds=0.01, sizes=(64, 128))
    assert 1e6 < peak < 1e15


def test_memory_is_that_of_this_process():
    before = flops.rss_bytes()
    block = bytearray(b'x' * 200_000_000)
    assert flops.rss_bytes() - before > 150_000_000
    assert flops.peak_rss_bytes() >= before + 150_000_000
    assert flops.memory_bytes() > 0
    del block
