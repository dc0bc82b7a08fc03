"""An inspection agrees with the objective, the optimizer and the model's own attention."""

import collections
import dataclasses
import html.parser

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.data.tokenizer import byte_tokenizer
from jaxllm.errors import InputError
from jaxllm.evals import inspect as inspecting
from jaxllm.evals.inspect_page import render_html
from jaxllm.evals.inspect_text import render_terminal
from jaxllm.models import transformer
from jaxllm.models.attention import plain_attention
from jaxllm.models.config import AttentionConfig, ModelConfig, RopeConfig
from jaxllm.objectives.lm import lm
from jaxllm.sharding import ShardingConfig, make_mesh, shardings
from jaxllm.train.optim import OptimConfig, make_optimizer
from jaxllm.train.step import loss_and_grads

B, L, LR, CLIP = 4, 21, 0.02, 0.5
TOKENIZER = byte_tokenizer()
CFG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, d_model=8, num_layers=5, d_ff=20, max_seq_len=64,
    activation='geglu', mlp_bias=False, norm='rmsnorm', norm_eps=1e-5, norm_unit_offset=False,
    post_norm=False, positions='rope', tie_embeddings=True, embedding_scale=False,
    logit_softcap=6.0, layer_pattern=('local', 'global'), remat='full', dtype='float32',
    attention=AttentionConfig(4, 2, 4, 6, 2.0, 0.0, False, False, False, 'auto', 256),
    rope=RopeConfig(1e4, 1e3, 'none', 1.0, 1.0, 4.0, 8192))
OPTIM = OptimConfig('adamw', LR, 'constant', 0, 0.0, 0.0, 0.9, 0.95, 1e-8, 0.1, CLIP, 0.0, 0.95)

Case = collections.namedtuple('Case', 'params batch optimizer inspection mesh')


def make_batch():
    """Rows of two segments, padding behind; the first tokens of a row have no weight."""
    rng = np.random.default_rng(0)
    texts = ['<script>&amp;"\'\x1b[31m zwei', 'señor—\n\tx = 1', 'plain text of one row', 'ab']
    tokens_BL1 = np.full((B, L + 1), TOKENIZER.pad_id, np.int32)
    segments_BL = np.zeros((B, L), np.int32)
    for b, text in enumerate(texts):
        ids = [TOKENIZER.bos_id, *TOKENIZER.encode(text)][:L + 1]
        tokens_BL1[b, :len(ids)] = ids
        segments_BL[b, :len(ids) - 1] = 1
    segments_BL[:3, 9:] *= 2
    weights_BL = (segments_BL > 0) * rng.choice([0.5, 1.0], (B, L))
    weights_BL[:3, 8] = weights_BL[:, :1] = 0
    positions_BL = transformer.positions(jnp.asarray(segments_BL))
    return {'tokens': tokens_BL1[:, :-1], 'targets': tokens_BL1[:, 1:],
            'segment_ids': segments_BL, 'positions': np.asarray(positions_BL),
            'loss_weights': weights_BL.astype(np.float32),
            'num_bytes': np.full((B,), 9.0, np.float32)}


@pytest.fixture(scope='module')
def case():
    mesh = make_mesh(ShardingConfig(preset='dp_fsdp_tp'))
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda key: transformer.init(key, CFG), jax.random.key(0))
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
        params = jax.device_put(params, shardings(transformer.param_axes(shapes), shapes, mesh))
        batch, optimizer = make_batch(), make_optimizer(OPTIM, shapes)
        inspection = inspecting.inspect_batch(
            params, CFG, lm(CFG, z_loss=1e-3), batch, TOKENIZER, optimizer=optimizer, lr=LR,
            clip_norm=CLIP, row=1, top_candidates=3, attention_tokens=15)
    return Case(params, batch, optimizer, inspection, mesh)


@pytest.fixture(scope='module')
def grads(case):
    with jax.set_mesh(case.mesh):
        loss, _, _, grads = jax.jit(lambda p, b: loss_and_grads(
            lm(CFG, z_loss=1e-3), p, {}, b, jax.random.key(0)))(case.params, case.batch)
    return float(loss), jax.device_get(grads)


def test_token_losses_add_up_to_the_objective(case):
    weights_BL, found = case.batch['loss_weights'], case.inspection
    nll = (found.nll_BL * weights_BL).sum()
    assert nll / weights_BL.sum() == pytest.approx(found.metrics['nll'], rel=1e-5)
    assert nll / (9.0 * B) == pytest.approx(found.metrics['nats_per_byte'], rel=1e-5)
    assert found.loss > found.metrics['nll']  # the z-loss


def test_candidates_are_the_likeliest_tokens(case):
    with jax.set_mesh(case.mesh):
        logits_BLV = jax.jit(lambda p, b: transformer.apply(
            p, CFG, b['tokens'], segment_ids_BL=b['segment_ids']))(case.params, case.batch)
    logprobs_BLV = np.asarray(jax.nn.log_softmax(logits_BLV))
    found, order = case.inspection, np.argsort(-logprobs_BLV, axis=-1)[:, :, :3]
    best_BLA = np.take_along_axis(logprobs_BLV, order, axis=-1)
    np.testing.assert_allclose(found.candidate_logprobs_BLA, best_BLA, atol=1e-5)
    np.testing.assert_allclose(
        found.entropy_BL, -(np.exp(logprobs_BLV) * logprobs_BLV).sum(-1), atol=1e-4)
    texts, probabilities = zip(*found.candidates(2, 5), strict=True)
    assert texts == tuple(found.words[i] for i in order[2, 5].tolist())
    np.testing.assert_allclose(np.log(probabilities), best_BLA[2, 5], atol=1e-5)
    row, position = found.worst(4)[0]
    weighted_BL = np.where(case.batch['loss_weights'] > 0, found.nll_BL, -1)
    assert found.nll_BL[row, position] == weighted_BL.max()


def test_norms_of_layers_combine_to_the_global_norm(case, grads):
    found = case.inspection
    loss, tree = grads
    assert found.loss == pytest.approx(loss, rel=1e-5)
    whole = float(optax.tree.norm(tree))
    assert found.grad_norm == pytest.approx(whole, rel=1e-4)
    assert found.clip == pytest.approx(CLIP / whole, rel=1e-4) and found.clip < 1
    for norms in (found.norms, found.layers()):
        assert np.sqrt(sum(x.grad ** 2 for x in norms)) == pytest.approx(whole, rel=1e-4)
        assert sum(x.size for x in norms) == transformer.num_params(case.params)
    assert [(x.layer, x.name) for x in found.layers()] == [
        (-1, 'embed'), (0, ''), (1, ''), (2, ''), (3, ''), (4, ''), (-1, 'final_norm')]
    by_name = {(x.layer, x.name): x for x in found.norms}
    for (layer, name), leaf in {
            (2, 'attention/q/kernel'): tree['layers']['layer_0']['attention']['q']['kernel'][1],
            (3, 'mlp/up/kernel'): tree['layers']['layer_1']['mlp']['up']['kernel'][1],
            (4, 'mlp/up/kernel'): tree['tail']['layer_0']['mlp']['up']['kernel'],
            (-1, 'embed/tokens'): tree['embed']['tokens']}.items():
        assert by_name[layer, name].grad == pytest.approx(np.linalg.norm(leaf), rel=1e-4)
        assert by_name[layer, name].size == leaf.size


def test_updates_are_those_of_the_optimizer(case, grads):
    """Adam's first direction is sign(g), and 0.1 * w of decay is added."""
    found = {(x.layer, x.name): x for x in case.inspection.norms}
    leaf = jax.device_get(case.params)['layers']['layer_0']['mlp']['down']['kernel'][1]
    grad = grads[1]['layers']['layer_0']['mlp']['down']['kernel'][1]
    norms = found[2, 'mlp/down/kernel']
    update = np.linalg.norm(LR * (np.sign(grad) + 0.1 * leaf))
    assert norms.param == pytest.approx(np.linalg.norm(leaf), rel=1e-5)
    assert norms.update == pytest.approx(update, rel=1e-3)
    assert norms.ratio == pytest.approx(update / np.linalg.norm(leaf), rel=1e-3)


def test_attention_sees_its_own_segment_and_the_past(case):
    segments_M = case.batch['segment_ids'][1, :15]
    assert set(segments_M.tolist()) == {1, 2}
    behind = np.arange(15)[:, None] - np.arange(15)[None]
    own = (segments_M[:, None] == segments_M[None]) & (behind >= 0)
    assert len(case.inspection.attention_HMM) == 5
    for layer, maps_HMM in enumerate(case.inspection.attention_HMM):
        mask = own & (behind < 6) if layer % 2 == 0 else own
        assert maps_HMM.shape == (4, 15, 15)
        np.testing.assert_allclose(maps_HMM.sum(-1), 1, atol=1e-5)
        assert (maps_HMM[:, ~mask] == 0).all() and (maps_HMM[:, mask] > 0).all()
    assert len({maps.tobytes() for maps in case.inspection.attention_HMM}) == 5


@pytest.mark.parametrize('local', [True, False])
def test_attention_weights_are_those_of_the_model(local):
    q, k, v = (np.random.default_rng(i).normal(0, 2, (1, 13, heads, 4)).astype(np.float32)
               for i, heads in enumerate((4, 2, 2)))
    segments_BM = np.array([[1] * 5 + [2] * 6 + [0] * 2])
    att = dataclasses.replace(CFG.attention, scale=0.3)
    weights_HLM = inspecting.attention_weights(q[0], k[0], jnp.asarray(segments_BM[0]), att,
                                               local=local)
    out_LHC = np.einsum('HLM,MHC->LHC', weights_HLM, np.repeat(v[0], 2, axis=1))
    expected = plain_attention(q, k, v, segments_BM, segments_BM, None,
                               window=6 if local else 0, softcap=2.0, scale=0.3)[0]
    np.testing.assert_allclose(out_LHC, expected, atol=1e-5)


def test_text_reads_as_it_was_written(case):
    found = case.inspection
    pieces = found.text(1)
    assert pieces[0] == ('<|bos|>', -1, 1)
    assert [text for text, _, _ in pieces[1:5]] == ['s', 'e', '<C3>', '<B1>']
    # One token is only given to the second segment: its first one.
    assert [(text, t) for text, t, segment in pieces if segment == 2][:2] == [
        (found.words[int(case.batch['tokens'][1, 9])], -1),
        (found.words[int(case.batch['targets'][1, 9])], 9)]
    assert len(found.text(3)) == 3  # padding is left out


class Tags(html.parser.HTMLParser):
    """Tags that the page opens, and what it refers to."""

    def __init__(self, page):
        super().__init__()
        self.opened, self.depth, self.links = collections.Counter(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.opened[tag] += 1
        self.links += [value for name, value in attrs if name in ('src', 'href')]
        if tag not in ('meta', 'img', 'br', 'wbr', 'hr'):
            self.depth.append(tag)

    def handle_endtag(self, tag):
        assert self.depth.pop() == tag


def test_page_is_whole_and_escaped(case):
    page = render_html(case.inspection)
    tags = Tags(page)
    assert not tags.depth and not tags.opened['script']
    assert tags.opened['img'] == 5 * 4
    assert all(link.startswith('data:image/png;base64,') for link in tags.links)
    assert '\x1b' not in page and '&lt;C3&gt;' in page
    assert '<script>' not in render_html(dataclasses.replace(
        case.inspection, words={i: '<script>' for i in case.inspection.words}), title='<script>')


def test_terminal_is_plain_unless_coloured(case):
    plain = render_terminal(case.inspection)
    assert plain == render_terminal(case.inspection, colour=False)
    assert '\x1b' not in plain and '\\u001b' in plain
    assert 'layer 4' in plain and f'loss {case.inspection.loss:.4g}' in plain
    coloured = render_terminal(case.inspection, colour=True)
    assert '\x1b[38;2;255;255;255;48;2;' in coloured and '\x1b[31m' not in coloured


@pytest.mark.parametrize('kwargs', [
    {'row': B}, {'row': -1}, {'top_candidates': 0}, {'attention_tokens': 0}])
def test_bad_arguments(case, kwargs):
    with jax.set_mesh(case.mesh), pytest.raises(InputError, match=f'inspect: {next(iter(kwargs))}'):
        inspecting.inspect_batch(case.params, CFG, lm(CFG), case.batch, TOKENIZER,
                                 optimizer=case.optimizer, lr=LR, **kwargs)
