"""The decoder: shapes, positions, padding, packing, windows, depth, precision."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from jaxllm.errors import InputError
from jaxllm.models import families, layers, stack, transformer
from jaxllm.models.layers import rope_frequencies, rope_table, rotate, sinusoids
from jaxllm.sharding import RULES, ShardingConfig, make_mesh

pytestmark = pytest.mark.usefixtures('mesh')

FAMILIES = list(families.FAMILIES)


def _config(family, **changes):
    # One whole repetition of Gemma 3's pattern and one layer more.
    return toy_models.config(family, **{'num_layers': 7 if family == 'gemma3' else 3} | changes)


def _put(rows, length):
    """Rows of (token arrays by segment, left padding) as (tokens_BL, segment_ids_BL)."""
    tokens_BL, segment_ids_BL = np.zeros((2, len(rows), length), np.int32)
    for b, (left, *documents) in enumerate(rows):
        start = left
        for i, document in enumerate(documents, start=1):
            tokens_BL[b, start:start + len(document)] = document
            segment_ids_BL[b, start:start + len(document)] = i
            start += len(document)
    return tokens_BL, segment_ids_BL


@pytest.mark.parametrize('family', FAMILIES)
def test_padding_and_packing_do_not_change_logits(family):
    cfg = _config(family)
    one, two = toy_models.tokens(cfg, 11), toy_models.tokens(cfg, 9, seed=1)
    rows = [(0, one), (1, one), (8, one), (0, one, two), (0, two), (10, two)]
    tokens_BL, segment_ids_BL = _put(rows, length=21)
    logits_BLV = jax.jit(lambda p, *xs: transformer.apply(p, cfg, xs[0], segment_ids_BL=xs[1]))(
        toy_models.params(cfg), tokens_BL, segment_ids_BL)
    assert logits_BLV.shape == (6, 21, 41) and logits_BLV.dtype == jnp.float32
    assert np.std(logits_BLV[0, :11]) > 0.1
    first, second = logits_BLV[0, :11], logits_BLV[4, :9]
    for part, same in ((logits_BLV[1, 1:12], first), (logits_BLV[2, 8:19], first),
                       (logits_BLV[3, :11], first), (logits_BLV[3, 11:20], second),
                       (logits_BLV[5, 10:19], second)):
        np.testing.assert_allclose(part, same, atol=2e-6)


@pytest.mark.parametrize('impl', ['xla', 'chunked'])
def test_packed_documents_have_no_gradient_to_each_other(impl):
    cfg = _config('gemma2', attention__impl=impl)
    params, segment_ids_BL = toy_models.params(cfg), np.array([[1] * 8 + [2] * 9 + [0] * 2])
    x_BLD = np.random.default_rng(0).normal(size=(1, 19, 16)).astype(np.float32)

    def loss(x_BLD, document):
        hidden_BLD, _ = transformer.apply_stack(
            params, cfg, x_BLD, transformer.positions(segment_ids_BL), segment_ids_BL)
        logits_BLV = transformer.unembed(params, cfg, hidden_BLD)
        nll_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - logits_BLV[:, :, 0]
        return jnp.sum(nll_BL * (segment_ids_BL == document))

    grad = jax.jit(jax.grad(loss))
    for document in (1, 2):
        grads_LD = np.asarray(grad(x_BLD, document))[0]
        other = segment_ids_BL[0] != document
        assert np.all(grads_LD[other] == 0)
        assert np.all(np.abs(grads_LD[~other]).max(axis=1) > 1e-3)


def test_positions_restart_with_each_segment():
    segment_ids_BL = jnp.array([[0, 0, 1, 1, 1, 2, 2, 0], [3, 3, 3, 3, 3, 3, 3, 3]])
    np.testing.assert_array_equal(transformer.positions(segment_ids_BL),
                                  [[0, 1, 0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5, 6, 7]])


@pytest.mark.parametrize('num_layers, scanned', [(4, False), (7, True), (9, True), (9, False)])
def test_scan_over_the_pattern_is_a_loop_over_layers(num_layers, scanned, monkeypatch):
    """4: a tail only; 7: one repetition and a tail; 9: patterns of two kinds, four and a tail,
    which CPU writes out."""
    if scanned:
        monkeypatch.setattr(stack, '_UNROLLED_LAYERS', 0)
    family = 'gemma2' if num_layers == 9 else 'gemma3'
    cfg = _config(family, num_layers=num_layers, rope__local_theta=50.)
    params, x_BLD = toy_models.params(cfg), np.random.default_rng(0).normal(size=(2, 13, 16))
    x_BLD, segment_ids_BL = x_BLD.astype(np.float32), np.ones((2, 13), np.int32)
    positions_BL = transformer.positions(segment_ids_BL)

    @jax.jit
    def unrolled(params, x_BLD):
        rope, period = transformer.rope_tables(cfg, positions_BL), len(cfg.layer_pattern)
        segments = stack.Segments(segment_ids_BL, segment_ids_BL)
        for n in range(num_layers):
            group, i = divmod(n, period)
            if group < num_layers // period:
                weights = jax.tree.map(operator.itemgetter(group), params['layers'][f'layer_{i}'])
            else:
                weights = params['tail'][f'layer_{i}']
            x_BLD, _ = stack.Block(cfg, cfg.layer_pattern[i]).apply(
                {'params': weights}, x_BLD, segments, rope, None, n)
        norm = layers.Norm(cfg.norm, cfg.norm_eps, cfg.norm_unit_offset)
        return norm.apply({'params': params['final_norm']}, x_BLD)

    hidden_BLD, _ = jax.jit(lambda p, x: transformer.apply_stack(
        p, cfg, x, positions_BL, segment_ids_BL))(params, x_BLD)
    np.testing.assert_allclose(hidden_BLD, unrolled(params, x_BLD), atol=1e-5)


def _loss_and_grads(cfg, params, tokens_BL):
    def loss(params):
        logits_BLV = transformer.apply(params, cfg, tokens_BL)
        return jnp.mean(jax.nn.logsumexp(logits_BLV, axis=-1) - logits_BLV[:, :, 0])
    return jax.jit(jax.value_and_grad(loss))


@pytest.fixture(scope='module')
def plain(mesh):
    """(config, params, tokens, loss, gradients) of a model with a tail, without remat."""
    del mesh
    cfg = _config('gemma2')
    params, tokens_BL = toy_models.params(cfg), toy_models.tokens(cfg, 2, 13)
    return cfg, params, tokens_BL, *_loss_and_grads(cfg, params, tokens_BL)(params)


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_changes_no_value_and_recomputes(plain, remat):
    cfg, params, tokens_BL, loss, grads = plain
    fn = _loss_and_grads(dataclasses.replace(cfg, remat=remat), params, tokens_BL)
    again, grads_again = fn(params)
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads_again, grads)
    tanh = lambda text: text.count('stablehlo.tanh')  # of GELU, in forward and backward pass
    assert tanh(fn.lower(params).as_text()) > tanh(
        _loss_and_grads(cfg, params, tokens_BL).lower(params).as_text())


def test_few_layers_are_written_out_and_angles_are_computed_once(monkeypatch):
    """On CPU; the loop over layers remains with remat, and where layers are many."""
    def counts(**changes):
        cfg = _config('llama', **changes)
        params = toy_models.shapes(cfg)
        text = _loss_and_grads(cfg, params, toy_models.tokens(cfg, 2, 13)).lower(
            params).compile().as_text()
        return text.count(' while('), text.count(' cosine(')

    loops, cosines = counts()
    assert cosines == 1
    assert counts(remat='full')[0] > loops
    monkeypatch.setattr(stack, '_UNROLLED_LAYERS', 2)
    assert counts()[0] > loops


def test_bfloat16_is_near_float32_and_its_gradients_are_float32(plain):
    cfg, params, tokens_BL, loss, grads = plain
    again, grads_again = _loss_and_grads(dataclasses.replace(cfg, dtype='bfloat16'), params,
                                         tokens_BL)(params)
    assert again != loss
    np.testing.assert_allclose(again, loss, rtol=5e-3)
    for a, b in zip(jax.tree.leaves(grads_again), jax.tree.leaves(grads), strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def _sees(cfg, length=12):
    """sees[i, j]: does the hidden state at i depend on the input at j?"""
    params = toy_models.params(cfg)
    x_LD = np.random.default_rng(0).normal(size=(length, cfg.d_model)).astype(np.float32)
    segment_ids_BL = np.ones((length + 1, length), np.int32)
    changed = np.tile(x_LD, (length + 1, 1, 1))
    changed[np.arange(length), np.arange(length)] += 1  # row j: token j changed; last row: none
    hidden_BLD, _ = jax.jit(lambda x: transformer.apply_stack(
        params, cfg, x, transformer.positions(segment_ids_BL), segment_ids_BL))(changed)
    return (np.abs(hidden_BLD[:-1] - hidden_BLD[-1:]).max(-1) > 1e-6).T


@pytest.mark.parametrize('pattern, num_layers, reach', [
    (('local',), 1, 3), (('local',), 2, 5), (('global',), 1, 12), (('local', 'global'), 2, 12),
    (('local', 'local', 'global'), 2, 5)])  # the third: cut before its global layer
def test_layers_see_what_their_kind_allows(pattern, num_layers, reach):
    cfg = _config('llama', layer_pattern=pattern, num_layers=num_layers, attention__window=3)
    i, j = np.arange(12)[:, None], np.arange(12)[None]
    np.testing.assert_array_equal(_sees(cfg), (j <= i) & (i - j < reach))


def test_a_window_beyond_the_length_is_no_window():
    wide = _config('mistral', attention__window=13)
    params, tokens_BL = toy_models.params(wide), toy_models.tokens(wide, 2, 13)
    logits = [jax.jit(lambda p, cfg=cfg: transformer.apply(p, cfg, tokens_BL))(params)
              for cfg in (wide, dataclasses.replace(wide, layer_pattern=('global',)))]
    np.testing.assert_array_equal(*logits)


def _axis_sizes(cfg):
    att = cfg.attention
    return {'vocab': cfg.vocab_size, 'd_model': cfg.d_model, 'd_ff': cfg.d_ff,
            'heads': att.num_heads, 'kv_heads': att.num_kv_heads, 'head_dim': att.head_dim,
            'positions': cfg.max_seq_len, 'layers': cfg.num_groups}


@pytest.mark.parametrize('family', FAMILIES)
def test_every_parameter_has_its_axes(family):
    # Two repetitions and a tail.
    cfg = _config(family, num_layers={'gemma2': 5, 'gemma3': 13}.get(family, 2))
    shapes = toy_models.shapes(cfg)
    named = jax.tree.map(lambda x, axes: x.shape == tuple(_axis_sizes(cfg)[a] for a in axes),
                         shapes, transformer.param_axes(shapes))
    assert all(jax.tree.leaves(named)), named
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))


def test_every_entry_of_param_axes_is_some_parameter():
    found = set()
    for family in ('gpt2', 'qwen3', 'gemma3'):
        cfg = _config(family, activation='geglu', mlp_bias=True, norm='layernorm', post_norm=True,
                      positions='learned', tie_embeddings=False, attention__qkv_bias=True,
                      attention__out_bias=True)
        for path, _ in jax.tree_util.tree_leaves_with_path(toy_models.shapes(cfg)):
            found.add('/'.join(entry.key for entry in path[-2:]))
    assert found == set(transformer.PARAM_AXES)
    assert {a for axes in transformer.PARAM_AXES.values() for a in axes} <= set(RULES)


def test_init_has_the_sizes_it_should():
    cfg = _config('gpt2', d_model=48, num_layers=2)
    params = jax.jit(lambda: transformer.init(jax.random.key(0), cfg))()
    layers = params['layers']['layer_0']
    for w, std in ((params['embed']['tokens'], 48 ** -0.5),
                   (params['embed']['positions'], 48 ** -0.5),
                   (layers['attention']['q']['kernel'], 48 ** -0.5),
                   (layers['attention']['o']['kernel'], 24 ** -0.5 / 2),  # (2 * 2 layers)^-1/2
                   (layers['mlp']['down']['kernel'], 20 ** -0.5 / 2)):
        np.testing.assert_allclose(np.std(w), std, rtol=0.06)
        np.testing.assert_allclose(np.mean(w), 0, atol=0.1 * std)
    first, second = layers['attention']['q']['kernel']
    assert np.abs(first - second).max() > 0.01
    assert np.all(layers['attention_norm']['scale'] == 1)
    assert np.all(layers['mlp']['up']['bias'] == 0)


def test_init_works_on_many_devices():
    with jax.set_mesh(make_mesh(ShardingConfig(preset='fsdp'))):
        shapes = toy_models.shapes(_config('llama'))
    assert shapes['embed']['tokens'].shape == (41, 16)


def test_a_sequence_beyond_the_learned_positions_is_an_error():
    cfg = _config('gpt2', max_seq_len=8)
    with pytest.raises(InputError, match='max_seq_len=8'):
        jax.eval_shape(lambda p: transformer.apply(p, cfg, jnp.zeros((1, 9), jnp.int32)),
                       toy_models.shapes(cfg))


def test_gradients_of_a_frequent_token_are_summed_in_float32():
    """1 + 2^-9 + 2^-9 + ... in bfloat16 stays 1."""
    cfg = _config('llama', dtype='bfloat16')
    params, L = toy_models.params(cfg), 257
    tokens_BL = jnp.zeros((1, L), jnp.int32)
    weights_BLD = np.full((1, L, 16), 2.0 ** -9, np.float32)
    weights_BLD[:, 0] = 1

    def loss(params):
        params = transformer.compute_params(params, cfg)
        x_BLD = transformer.embed(params, cfg, tokens_BL, jnp.zeros((1, L), jnp.int32))
        return jnp.sum(x_BLD.astype(jnp.float32) * weights_BLD)

    grads = jax.jit(jax.grad(loss))(params)['embed']['tokens']
    np.testing.assert_allclose(grads[0], 1.5, rtol=1e-3)


def _rope(**changes):
    rope = toy_models.config('llama').rope
    return dataclasses.replace(rope, theta=100., local_theta=16., **changes)


def test_rope_frequencies_by_hand():
    np.testing.assert_allclose(rope_frequencies(_rope(), 4, 'global'), [1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(_rope(), 4, 'local'), [1, 0.25], rtol=1e-6)
    linear = _rope(scaling='linear', factor=4.)
    np.testing.assert_allclose(rope_frequencies(linear, 4, 'global'), [0.25, 0.025], rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(linear, 4, 'local'), [1, 0.25], rtol=1e-6)


def test_llama3_scaling_by_hand():
    """theta 10^4, C = 8: frequencies 1, 0.1, 0.01, 0.001. With an original length of 400 * 2 pi
    they turn 400, 40, 4 and 0.4 times: kept, kept, passage, divided."""
    rope = _rope(scaling='llama3', factor=8., low_freq_factor=1., high_freq_factor=7.)
    rope = dataclasses.replace(rope, theta=1e4, original_length=400 * 2 * np.pi)
    passage = 0.01 * (0.5 + 0.5 / 8)  # 4 is in the middle of 1 and 7
    np.testing.assert_allclose(rope_frequencies(rope, 8, 'global'),
                               [1, 0.1, passage, 0.001 / 8], rtol=1e-5)


def test_rotation_by_hand_and_relative():
    table = rope_table(jnp.array([[0, 1, 7]]), jnp.array([np.pi / 2, 0.1]))
    x_BLHC = jnp.broadcast_to(jnp.array([1., 2., 3., 4.]), (1, 3, 1, 4))
    c, s = np.cos(0.1), np.sin(0.1)
    np.testing.assert_allclose(rotate(x_BLHC, table)[0, :2, 0],
                               [[1, 2, 3, 4], [-3, 2 * c - 4 * s, 1, 4 * c + 2 * s]], atol=1e-6)
    rng, freq = np.random.default_rng(0), rope_frequencies(_rope(), 6, 'global')
    q, k = rng.normal(size=(2, 1, 1, 1, 6)).astype(np.float32)
    score = lambda m, n: jnp.vdot(rotate(q, rope_table(jnp.array([[m]]), freq)),
                                  rotate(k, rope_table(jnp.array([[n]]), freq)))
    np.testing.assert_allclose(score(9, 4), score(25, 20), rtol=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


@pytest.mark.parametrize('family, shifts', [('llama3', True), ('gemma3', True), ('gpt2', False)])
def test_rotary_logits_depend_on_distances_alone(family, shifts):
    cfg = _config(family)
    params = jax.tree.map(jnp.asarray, toy_models.params(cfg))
    tokens_BL = toy_models.tokens(cfg, 2, 13)
    fn = jax.jit(lambda positions_BL: transformer.apply(params, cfg, tokens_BL,
                                                        positions_BL=positions_BL))
    positions_BL = np.tile(np.arange(13, dtype=np.int32), (2, 1))
    difference = np.abs(fn(positions_BL) - fn(positions_BL + 9)).max()
    assert difference < 1e-5 if shifts else difference > 0.01


def test_sinusoids_by_hand():
    table = sinusoids(jnp.array([[0, 3]]), 4)[0]
    np.testing.assert_allclose(table, [[0, 0, 1, 1], [np.sin(3), np.sin(0.03), np.cos(3),
                                                      np.cos(0.03)]], atol=1e-6)


def test_the_other_position_kinds_reach_the_logits():
    cfg = _config('llama', positions='sinusoidal')
    params, tokens_BL = toy_models.params(cfg), np.full((1, 7), 5, np.int32)
    for kind, same in (('sinusoidal', False), ('none', True)):
        logits_BLV = transformer.apply(params, dataclasses.replace(cfg, positions=kind), tokens_BL)
        # Equal tokens without positions: every query averages equal values.
        assert np.allclose(logits_BLV[0, 0], logits_BLV[0, 6], atol=1e-5) is same
