"""Whole models against forward passes written in numpy, sharing no line with the package."""

import jax
import numpy as np
import pytest
import toy_models

from jaxllm.models import transformer
from jaxllm.sharding import make_mesh


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def rms(x, scale, eps):
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + eps) * scale


def layer_norm(x, w):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5) * w['scale'] + w['bias']


def rope(x, theta):
    """x: [L, heads, C]. Pair i, i + C/2 as a complex number, turned by position * theta^(-2i/C)."""
    L, _, C = x.shape
    angle = np.arange(L)[:, None] * theta ** (-np.arange(0, C, 2) / C)
    turned = (x[..., :C // 2] + 1j * x[..., C // 2:]) * np.exp(1j * angle)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


def attend(q, k, v, cap=None, window=None):
    """One head at a time; query head h reads key-value head h // (H / K)."""
    (L, H, C), K = q.shape, k.shape[1]
    behind = np.arange(L)[:, None] - np.arange(L)[None]
    hidden = (behind < 0) | (behind >= (window or L))
    out = np.zeros_like(q)
    for h in range(H):
        scores = q[:, h] @ k[:, h // (H // K)].T / np.sqrt(C)
        if cap:
            scores = cap * np.tanh(scores / cap)
        out[:, h] = softmax(np.where(hidden, -np.inf, scores)) @ v[:, h // (H // K)]
    return out


def project(x, w):
    """[L, D] -> [L, heads, C], with the bias where there is one."""
    return np.einsum('ld,dhc->lhc', x, w['kernel']) + w.get('bias', 0)


def gpt2(w, tokens, num_layers):
    x = w['embed']['tokens'][tokens] + w['embed']['positions'][:len(tokens)]
    for n in range(num_layers):
        layer = jax.tree.map(lambda p: p[n], w['layers']['layer_0'])  # noqa: B023
        att, mlp, y = layer['attention'], layer['mlp'], layer_norm(x, layer['attention_norm'])
        y = attend(*(project(y, att[name]) for name in 'qkv'))
        x = x + np.einsum('lhc,hcd->ld', y, att['o']['kernel']) + att['o']['bias']
        y = layer_norm(x, layer['mlp_norm']) @ mlp['up']['kernel'] + mlp['up']['bias']
        x = x + gelu(y) @ mlp['down']['kernel'] + mlp['down']['bias']
    return layer_norm(x, w['final_norm']) @ w['embed']['tokens'].T


def llama(w, tokens, num_layers):
    x = w['embed']['tokens'][tokens]
    for n in range(num_layers):
        layer = jax.tree.map(lambda p: p[n], w['layers']['layer_0'])  # noqa: B023
        att, mlp = layer['attention'], layer['mlp']
        y = rms(x, layer['attention_norm']['scale'], 1e-5)
        q, k, v = (project(y, att[name]) for name in 'qkv')
        y = attend(rope(q, 10_000), rope(k, 10_000), v)
        x = x + np.einsum('lhc,hcd->ld', y, att['o']['kernel'])
        y = rms(x, layer['mlp_norm']['scale'], 1e-5)
        gate = y @ mlp['gate']['kernel']
        x = x + (gate / (1 + np.exp(-gate)) * (y @ mlp['up']['kernel'])) @ mlp['down']['kernel']
    return rms(x, w['final_norm']['scale'], 1e-5) @ w['embed']['tokens'].T


def gemma2(w, tokens, num_layers):
    """Layers 0 and 2 are local (window 5), 1 is global: one repetition of a pattern, and a tail."""
    norm = lambda x, w: rms(x, 1 + w['scale'], 1e-6)
    first = jax.tree.map(lambda p: p[0], w['layers'])
    x = w['embed']['tokens'][tokens] * np.sqrt(16)
    for n, layer in enumerate([first['layer_0'], first['layer_1'], w['tail']['layer_0']]):
        att, mlp, y = layer['attention'], layer['mlp'], norm(x, layer['attention_norm'])
        q, k, v = (project(y, att[name]) for name in 'qkv')
        y = attend(rope(q, 10_000), rope(k, 10_000), v, cap=50., window=5 if n != 1 else None)
        y = np.einsum('lhc,hcd->ld', y, att['o']['kernel'])
        x = x + norm(y, layer['attention_post_norm'])
        y = norm(x, layer['mlp_norm'])
        y = (gelu(y @ mlp['gate']['kernel']) * (y @ mlp['up']['kernel'])) @ mlp['down']['kernel']
        x = x + norm(y, layer['mlp_post_norm'])
    assert num_layers == 3
    return 30 * np.tanh(norm(x, w['final_norm']) @ w['embed']['tokens'].T / 30)


@pytest.mark.parametrize('forward', [gpt2, llama, gemma2])
def test_model_is_what_a_few_lines_of_numpy_say(forward):
    cfg = toy_models.config(forward.__name__)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        # Larger weights than usual: soft caps and activations leave their linear range.
        params = jax.tree.map(lambda w: 2 * w, toy_models.params(cfg))
        tokens_BL = toy_models.tokens(cfg, 2, 13)
        logits_BLV = jax.jit(lambda p: transformer.apply(p, cfg, tokens_BL))(
            jax.tree.map(jax.numpy.asarray, params))
    double = jax.tree.map(np.float64, params)
    for row, logits_LV in zip(tokens_BL, logits_BLV, strict=True):
        want = forward(double, row, cfg.num_layers)
        assert np.std(want) > 1
        np.testing.assert_allclose(logits_LV, want, atol=1e-3, rtol=1e-4)
