"""What is shown of the inside of a model agrees with the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from jaxllm.data.tokenizer import byte_tokenizer
from jaxllm.errors import InputError
from jaxllm.evals import inside
from jaxllm.models import transformer
from jaxllm.sharding import ShardingConfig, make_mesh

TOKENIZER = byte_tokenizer()
CFG = toy_models.config('llama', vocab_size=TOKENIZER.vocab_size)


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(make_mesh(ShardingConfig(preset='dp'))) as mesh:
        yield mesh


@pytest.fixture
def params(mesh):
    return toy_models.params(CFG)


def test_pieces():
    found = inside.pieces(TOKENIZER, 'aé')
    assert [text for _, text in found] == ['<|bos|>', 'a', '<C3>', '<A9>']
    assert [i for i, _ in found] == [TOKENIZER.bos_id, *TOKENIZER.encode('aé')]


def test_plane_shows_the_two_directions_of_a_plane(params):
    """Embeddings that lie on a circle in a plane of 16 dimensions come out as that circle."""
    a, b, c, d = TOKENIZER.encode('abcd')
    table_VD = np.zeros((CFG.vocab_size, 16), np.float32)
    table_VD[[a, b, c, d], [3, 7, 3, 7]] = [2, 5, -1, -3]
    tokens_BL = np.array([[a, b, b, c], [d, a, *TOKENIZER.encode('.9')]])
    names, xy_N2, share = inside.embedding_plane({'embed': {'tokens': table_VD}}, TOKENIZER,
                                                 tokens_BL, 9)
    assert sorted(names) == ['a', 'b', 'c', 'd'] and set(names[:2]) == {'a', 'b'}
    assert share == pytest.approx(1)
    np.testing.assert_allclose(np.linalg.norm(xy_N2, axis=1), 1, atol=1e-5)
    by_name = dict(zip(names, xy_N2, strict=True))
    np.testing.assert_allclose(by_name['a'], -by_name['c'], atol=1e-5)
    assert abs(by_name['a'] @ by_name['b']) < 1e-5
    with pytest.raises(InputError, match='at least 3'):
        inside.embedding_plane(params, TOKENIZER, tokens_BL, 2)


class Words:
    """A tokenizer of six words, one of them a single byte."""
    special = {'<eos>': 0}
    vocab_size = 6
    texts = ('', 'up', 'down', 'left', 'over', 'x')

    def encode(self, text):
        return [self.texts.index(text)] if text else []

    def token_bytes(self, i):
        return self.texts[i].encode()

    def byte_lengths(self):
        return np.array([len(text) for text in self.texts], np.int32)


def test_neighbours():
    table_VD = np.array([[1, 0], [2, 0], [-1, 0], [0, 3], [1, 1], [1, 0.], [1, 0]], np.float32)
    found = inside.neighbours({'embed': {'tokens': table_VD}}, Words(), 'up', 3)
    assert [name for name, _ in found] == ['over', 'left', 'down']
    np.testing.assert_allclose([x for _, x in found], [0.5 ** 0.5, 0, -1], atol=1e-6)
    assert len(inside.neighbours({'embed': {'tokens': table_VD}}, Words(), 'up', 9)) == 3
    with pytest.raises(InputError, match='empty'):
        inside.neighbours({'embed': {'tokens': table_VD}}, Words(), '', 3)


def test_position_signals(params):
    rope_LC = inside.position_signals(params, CFG, 5)
    assert rope_LC.shape == (5, 3)
    np.testing.assert_allclose(rope_LC[:, 0], np.cos(np.arange(5)), atol=1e-6)
    learned = toy_models.config('gpt2', vocab_size=50)
    gpt = toy_models.params(learned)
    np.testing.assert_array_equal(inside.position_signals(gpt, learned, 4),
                                  gpt['embed']['positions'][:4])
    sines_LD = inside.position_signals(params, dataclasses.replace(CFG, positions='sinusoidal'), 4)
    np.testing.assert_allclose(sines_LD[:, [0, 8]].T, [np.sin(range(4)), np.cos(range(4))],
                               atol=1e-6)


def kernels(params, cfg):
    """One kernel of every layer, in the order of the layers."""
    pick = lambda group, i: group[f'layer_{i}']['mlp']['up']['kernel']
    kinds, stacked, tail = len(cfg.layer_pattern), params.get('layers'), params.get('tail', {})
    found = []
    if stacked:
        found += [pick(stacked, i)[g] for g in range(len(pick(stacked, 0))) for i in range(kinds)]
    return np.stack(found + [pick(tail, i) for i in range(len(tail))])


@pytest.mark.parametrize('pattern', [('global',), ('local', 'global')])
def test_hidden_states_of_each_depth(pattern):
    """The cut model ends where the whole one does, and each layer goes on from the one before."""
    cfg = dataclasses.replace(CFG, layer_pattern=pattern)
    params = toy_models.params(cfg)
    tokens_BL = jnp.tile(jnp.arange(9, dtype=jnp.int32)[None] + 40, (8, 1))
    hidden = jax.jit(lambda params: [inside.hidden_after(params, cfg, tokens_BL, count)
                                     for count in range(4)])(params)
    whole = jax.jit(lambda params: transformer.apply_hidden(params, cfg, tokens_BL))(params)
    np.testing.assert_allclose(hidden[3], whole, atol=1e-5)
    assert all(float(np.abs(x - y).max()) > 1e-2 for x, y in zip(hidden, hidden[1:]))
    for count in (1, 2, 3):
        cut, shorter = inside.first_layers(params, cfg, count)
        assert shorter.num_layers == count
        np.testing.assert_array_equal(kernels(cut, cfg), kernels(params, cfg)[:count])
    # Before the first layer nothing is mixed: a normed, scaled embedding.
    table_LD = params['embed']['tokens'][40:49]
    scale = (table_LD ** 2).mean(-1, keepdims=True) ** -0.5
    np.testing.assert_allclose(
        hidden[0][0], table_LD * scale * params['final_norm']['scale'][None], rtol=1e-3)
    for count in (0, 4):
        with pytest.raises(InputError, match=f'count={count}'):
            inside.first_layers(params, cfg, count)


def test_depths(params):
    text = 'abc!'
    seen = inside.look_at_depths(params, CFG, TOKENIZER, text)
    assert seen.hidden_NLD.shape == (4, 4, 16) and seen.prob_NL.shape == (4, 4)
    assert seen.names == ('<|bos|>', 'a', 'b', 'c', '!')
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode(text)]
    logits_BLV = jax.jit(lambda params: transformer.apply(params, CFG, jnp.array([ids[:-1]] * 8)))(
        params)
    probs_LV = np.asarray(jax.nn.softmax(logits_BLV[0]))
    np.testing.assert_allclose(seen.prob_NL[3], probs_LV[range(4), ids[1:]], rtol=1e-4)
    names = inside.words(TOKENIZER, probs_LV.argmax(-1).tolist())
    assert seen.likeliest[3] == tuple(names[i] for i in probs_LV.argmax(-1).tolist())


def test_texts_are_beginnings_of_whole_texts():
    batch = {'tokens': np.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 0]]),
             'segment_ids': np.array([[1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 0, 0]]),
             'positions': np.array([[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]])}
    np.testing.assert_array_equal(inside.texts_of([batch, batch], 3),
                                  [[3, 4, 5], [7, 8, 9]] * 2)
    # The second half of a text that was cut is no beginning.
    batch['positions'][0, 2:5] += 4
    np.testing.assert_array_equal(inside.texts_of([batch], 3), [[7, 8, 9]])
    with pytest.raises(InputError, match='5 tokens'):
        inside.texts_of([batch], 5)


def test_own_context(params):
    rng = np.random.default_rng(0)
    given, (B, L) = 3, (2, 8)
    tokens_BL = rng.integers(5, CFG.vocab_size, (B, L)).astype(np.int32)
    found = inside.own_context(params, CFG, TOKENIZER, tokens_BL, given)
    assert found.nll_free_BT.shape == (B, L - given)
    # The first token stands behind the same text in both.
    np.testing.assert_allclose(found.nll_free_BT[:, 0], found.nll_forced_BT[:, 0], atol=1e-5)
    assert np.abs(found.nll_free_BT - found.nll_forced_BT)[:, 1:].max() > 1e-2
    whole = jax.jit(lambda params, tokens_BL: transformer.apply(params, CFG, tokens_BL))
    # Eight rows, for eight devices.
    apply = lambda tokens_BL: np.asarray(whole(params, np.tile(tokens_BL, (4, 1))))[:B]
    logprobs_BLV = np.asarray(jax.nn.log_softmax(apply(tokens_BL[:, :-1])))
    nll_BT = -np.take_along_axis(logprobs_BLV[:, given - 1:], tokens_BL[:, given:, None], 2)[..., 0]
    np.testing.assert_allclose(found.nll_forced_BT, nll_BT, atol=1e-5)
    # A text that the model would write itself is the same in both, and all right.
    own_BL = tokens_BL.copy()
    for t in range(given, L):
        own_BL[:, t] = apply(own_BL[:, :-1])[:, t - 1].argmax(-1)
    same = inside.own_context(params, CFG, TOKENIZER, own_BL, given)
    assert same.right_free_BT.all() and same.right_forced_BT.all()
    np.testing.assert_allclose(same.nll_free_BT, same.nll_forced_BT, atol=1e-5)
    assert same.texts[1] == (TOKENIZER.decode(own_BL[1, :given]),
                             *[TOKENIZER.decode(own_BL[1, given:])] * 2)
    with pytest.raises(InputError, match='given=8'):
        inside.own_context(params, CFG, TOKENIZER, tokens_BL, L)
