"""Generation against the full forward pass, sampling against numpy, and what ends a row."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxllm import decode, rng
from jaxllm.decode import loop
from jaxllm.decode.text import TextTail
from jaxllm.errors import InputError
from jaxllm.models import stack, transformer
from jaxllm.models.config import AttentionConfig, ModelConfig, RopeConfig
from jaxllm.sharding import ShardingConfig, make_mesh, shardings

V = 46
# Compiling is what takes time here: the tests share few shapes, those of PROMPTS and of NEW.
NEW = 40
PROMPTS = [[5, 9, 3], [7] * 5 + [11, 2, 40, 1, 1, 30, 8], [45]]
SAMPLED = decode.SamplingConfig(max_new_tokens=NEW, temperature=1.4)
SEED = 7  # row 0 holds what the test of stop strings looks for

Model = collections.namedtuple('Model', 'cfg params mesh')


def local_global():
    """A window shorter than the text, fewer key-value heads, soft-caps, a layer in the tail."""
    return ModelConfig(
        vocab_size=V, d_model=16, num_layers=3, d_ff=24, max_seq_len=8, activation='geglu',
        mlp_bias=False, norm='rmsnorm', norm_eps=1e-5, norm_unit_offset=True, post_norm=True,
        positions='rope', tie_embeddings=True, embedding_scale=True, logit_softcap=7.0,
        layer_pattern=('local', 'global'), remat='none', dtype='float32',
        attention=AttentionConfig(4, 2, 4, 5, 3.0, 0.0, True, False, False, 'xla', 256),
        rope=RopeConfig(1e4, 1e3, 'none', 1.0, 1.0, 4.0, 8192))


def learned():
    """Learned positions and heads, biases, embeddings that are not tied."""
    return dataclasses.replace(
        local_global(), norm='layernorm', norm_unit_offset=False, positions='learned',
        max_seq_len=12 + NEW, activation='gelu', mlp_bias=True, tie_embeddings=False,
        embedding_scale=False, post_norm=False, layer_pattern=('global',), logit_softcap=0.0,
        num_layers=2,
        attention=AttentionConfig(4, 4, 4, 5, 0.0, 0.0, False, True, True, 'xla', 256))


def build(cfg, mesh):
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda key: transformer.init(key, cfg), jax.random.key(0))
        rng = np.random.default_rng(3)  # compiling `init` takes longer than a test
        params = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
        return Model(cfg, jax.device_put(params, shardings(
            transformer.param_axes(shapes), shapes, mesh)), mesh)


@pytest.fixture(scope='module')
def one():
    """On one device."""
    return build(local_global(), make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope='module', params=['local_global', 'learned'])
def spread(request):
    """On data 2 x fsdp 2 x tensor 2."""
    cfg = {'local_global': local_global, 'learned': learned}[request.param]()
    return build(cfg, make_mesh(ShardingConfig(preset='dp_fsdp_tp')))


def generate(model, prompts, config, **kwargs):
    with jax.set_mesh(model.mesh):
        return decode.generate(model.params, model.cfg, prompts, config, **kwargs)


def full_logits(model, rows):
    """Logits of whole rows by the training forward pass, [L, V] each."""
    L = max(map(len, rows))
    tokens_BL = np.zeros((max(len(rows), 8), L), np.int32)
    for i, row in enumerate(rows):
        tokens_BL[i, :len(row)] = row
    with jax.set_mesh(model.mesh):
        logits_BLV = np.asarray(jax.jit(lambda p, x: transformer.apply(p, model.cfg, x))(
            model.params, tokens_BL))
    return [logits_BLV[i, :len(row)] for i, row in enumerate(rows)]


def test_every_step_has_the_logprobs_of_the_full_forward(spread):
    result = generate(spread, PROMPTS, SAMPLED, top_candidates=V)
    full = full_logits(spread, [p + t for p, t in zip(PROMPTS, result.tokens, strict=True)])
    for row, (prompt, tokens) in enumerate(zip(PROMPTS, result.tokens, strict=True)):
        expected_TV = log_softmax(full[row][len(prompt) - 1:-1] / 1.4, axis=-1)
        ids_TA, logprobs_TA = result.candidates[row]
        assert ids_TA.shape == (NEW, V) and (np.sort(ids_TA) == np.arange(V)).all()
        np.testing.assert_allclose(logprobs_TA, np.take_along_axis(expected_TV, ids_TA, 1),
                                   atol=2e-5)
        assert (np.diff(logprobs_TA) <= 0).all()
        chosen_T = expected_TV[np.arange(NEW), tokens]
        np.testing.assert_allclose(result.logprobs[row], chosen_T, atol=2e-5)
        np.testing.assert_allclose(result.sample_logprobs[row], chosen_T, atol=2e-5)
        assert result.logprobs[row].dtype == np.float32
    assert result.finish == ['length'] * 3 and result.texts == [''] * 3


def test_greedy_is_the_argmax_of_the_full_forward(one):
    config = dataclasses.replace(SAMPLED, temperature=0.0)
    result = generate(one, PROMPTS[1:2], config)
    full, = full_logits(one, [PROMPTS[1] + result.tokens[0]])
    steps_TV = full[len(PROMPTS[1]) - 1:-1]
    assert result.tokens[0] == steps_TV.argmax(-1).tolist()
    log_p_TV = log_softmax(steps_TV, axis=-1)
    np.testing.assert_allclose(result.logprobs[0], log_p_TV.max(-1), atol=2e-5)
    assert (result.sample_logprobs[0] == 0).all()


def test_a_row_does_not_depend_on_its_batch(one):
    together = generate(one, PROMPTS, SAMPLED, seed=8)
    one_by_one = generate(one, PROMPTS, SAMPLED, seed=8, batch_size=1, pad_id=17)
    alone = generate(one, [PROMPTS[1]], SAMPLED, seed=8, row_ids=[1])
    assert together.tokens == one_by_one.tokens and together.tokens[1:2] == alone.tokens
    assert one_by_one.num_steps == 3 * together.num_steps == 3 * NEW
    for row in range(3):
        np.testing.assert_allclose(together.logprobs[row], one_by_one.logprobs[row], atol=1e-5)


def test_results_do_not_depend_on_the_mesh(one):
    spread = build(one.cfg, make_mesh(ShardingConfig(preset='dp_fsdp_tp')))
    assert (generate(one, PROMPTS, SAMPLED, seed=5).tokens
            == generate(spread, PROMPTS, SAMPLED, seed=5, top_candidates=V).tokens)


def test_seeds(one):
    same = [generate(one, [PROMPTS[1]] * 3, SAMPLED, seed=s).tokens for s in (1, 1, 2)]
    assert same[0] == same[1]
    assert same[0] != same[2]
    assert len(set(map(tuple, same[0]))) == 3  # one prompt, three rows, three texts
    by_key = generate(one, [PROMPTS[1]] * 3, SAMPLED, seed=rng.key(1, rng.SAMPLE))
    assert by_key.tokens == same[0]


def test_steps_and_rows_draw_anew(one):
    """A model without preferences shows the noise itself: no two steps or rows share it."""
    flat = one._replace(params=jax.tree.map(jnp.zeros_like, one.params))
    result = generate(flat, [PROMPTS[1]] * 3, SAMPLED)
    np.testing.assert_allclose(result.logprobs, -np.log(V), rtol=1e-5)
    # Of 40 draws from 46 ids about 27 differ.
    assert min(len(set(tokens)) for tokens in result.tokens) > 18
    same = [np.mean(np.equal(result.tokens[i], result.tokens[i - 1])) for i in range(3)]
    assert max(same) < 0.3


def test_penalty_counts_prompt_and_text(one):
    """So strong a penalty lets no token come twice, whether of the prompt or of the text."""
    config = decode.SamplingConfig(max_new_tokens=12, temperature=0.0, repetition_penalty=1e6)
    result = generate(one, PROMPTS, config)
    for prompt, tokens in zip(PROMPTS, result.tokens, strict=True):
        assert len(set(tokens)) == 12 and not set(tokens) & set(prompt)


@pytest.mark.parametrize('refill', [False, True])
def test_neighbours_with_one_prompt_are_fed_once_and_written_as_alone(one, refill):
    rows = [prompt for prompt in PROMPTS for _ in range(4)]
    config = decode.SamplingConfig(max_new_tokens=6, temperature=1.0)
    fed = []
    plain = loop.start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'start', lambda params, tokens, lengths, real, *args, **more: (
            fed.append((len(tokens), len(real))), plain(params, tokens, lengths, real, *args,
                                                        **more))[1])
        together = generate(one, rows, config, seed=SEED, refill=refill)
    assert fed == [(3, 12)]
    for i, prompt in enumerate(rows):
        alone = generate(one, [prompt], config, seed=SEED, row_ids=[i])
        assert together.tokens[i] == alone.tokens[0]
        np.testing.assert_allclose(together.logprobs[i], alone.logprobs[0], atol=2e-5)


def test_layers_taken_apart_write_what_the_scan_writes(one):
    config = decode.SamplingConfig(max_new_tokens=9, temperature=1.0)
    assert stack.unrolls(one.cfg)
    apart = generate(one, PROMPTS, config, seed=SEED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, '_UNROLLED_LAYERS', 0)
        jax.clear_caches()
        scanned = generate(one, PROMPTS, config, seed=SEED)
    jax.clear_caches()
    assert apart.tokens == scanned.tokens
    for a, b in zip(apart.logprobs, scanned.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


class Words:
    """A tokenizer whose tokens are pieces of words; two of them halves of one character."""
    bos_id = 6
    pieces = [b'ab', b'a', b'bc', ' ü'.encode(), 'ü'.encode()[:1], 'ü'.encode()[1:], b'',
              b'\n', 'x–'.encode(), b' the']

    def token_bytes(self, token_id):
        return self.pieces[token_id % len(self.pieces)]

    def text(self, ids):
        return b''.join(map(self.token_bytes, ids)).decode(errors='replace')


@pytest.fixture(scope='module')
def long(one):
    """Without a stop: what the rows below would have been."""
    return generate(one, PROMPTS, SAMPLED, tokenizer=Words(), seed=SEED)


def test_stop_ids_end_a_row_and_the_loop(one, long):
    assert long.num_steps == NEW and long.finish == ['length'] * 3
    assert long.texts == [Words().text(tokens) for tokens in long.tokens]
    stops = tuple(tokens[5 + 2 * i] for i, tokens in enumerate(long.tokens))
    result = generate(one, PROMPTS, SAMPLED, tokenizer=Words(), seed=SEED, stop_ids=stops)
    ends = [min(tokens.index(s) for s in stops if s in tokens) + 1 for tokens in long.tokens]
    for row, end in enumerate(ends):
        assert result.tokens[row] == long.tokens[row][:end]
        assert result.texts[row] == Words().text(long.tokens[row][:end - 1])
        assert len(result.logprobs[row]) == len(result.sample_logprobs[row]) == end
        np.testing.assert_array_equal(result.logprobs[row], long.logprobs[row][:end])
    assert result.finish == ['stop'] * 3
    assert result.num_steps == max(ends) < 12


def test_stop_strings_cut_within_tokens(one, long):
    words = Words()
    text, tokens = long.texts[0], long.tokens[0]
    # From the middle of one token to the middle of a later one.
    ends = np.cumsum([len(words.token_bytes(t)) for t in tokens])
    raw = b''.join(map(words.token_bytes, tokens))
    at = next(i for i in range(8, 30) if raw[i:i + 4].isascii() and i not in ends
              and raw.find(raw[i:i + 4]) == i)
    stop = raw[at:at + 4].decode()
    result = generate(one, PROMPTS, SAMPLED, tokenizer=words, seed=SEED,
                      stop_strings=(stop, 'never written'))
    assert result.texts[0] == raw[:at].decode(errors='replace') != text
    assert result.tokens[0] == tokens[:int(np.searchsorted(ends, at + 4)) + 1]
    assert len(result.logprobs[0]) == len(result.tokens[0])
    for row in range(3):
        assert (result.finish[row] == 'stop_string') == (stop in long.texts[row])
    alone = generate(one, PROMPTS[:1], SAMPLED, tokenizer=words, seed=SEED, stop_strings=[stop])
    assert alone.texts == result.texts[:1] and alone.num_steps == 16


@pytest.mark.parametrize('temperature', [0.0, 1.4])
def test_stream_is_generate_piece_by_piece(one, long, temperature):
    config = dataclasses.replace(SAMPLED, temperature=temperature)
    stops = [long.texts[1][30:34]]
    expected = generate(one, [PROMPTS[1]], config, tokenizer=Words(), seed=SEED, stop_strings=stops)
    with jax.set_mesh(one.mesh):
        pieces = list(decode.stream(one.params, one.cfg, PROMPTS[1], config, Words(), seed=SEED,
                                    stop_strings=stops))
    assert ''.join(pieces) == expected.texts[0]
    assert all(pieces)


def test_stream_ends_at_a_stop_token(one, long):
    stop = long.tokens[0][5]
    want = generate(one, [PROMPTS[0]], SAMPLED, tokenizer=Words(), seed=SEED, stop_ids=(stop,))
    assert want.finish == ['stop']
    with jax.set_mesh(one.mesh):
        pieces = list(decode.stream(one.params, one.cfg, PROMPTS[0], SAMPLED, Words(), seed=SEED,
                                    stop_ids=(stop,)))
    assert ''.join(pieces) == want.texts[0]


def test_tail_gives_out_whole_characters_and_no_stop_string():
    """Random bytes in random tokens: the pieces add up to what one search over all of it finds."""
    rng = np.random.default_rng(7)
    alphabet = 'aab ü–\U0001f600'.encode() + b'\xff'
    for _ in range(300):
        raw = bytes(rng.choice(list(alphabet), 40).astype(np.uint8))
        cuts = sorted(rng.integers(0, 40, 12).tolist())
        tokens = [raw[a:b] for a, b in zip([0] + cuts, cuts + [40], strict=True)]
        stops = ['b ', 'aab', 'ba', ' ü']
        tail, pieces = TextTail(stops), []
        for i, token in enumerate(tokens):
            stopped = tail.push(token)
            pieces.append(tail.take(final=i == len(tokens) - 1))
            if stopped:
                break
        expected = raw
        for end in np.cumsum([len(t) for t in tokens]):
            found = [at for s in stops if (at := raw[:end].find(s.encode())) >= 0]
            if found:
                expected = raw[:min(found)]
                break
        assert ''.join(pieces) == tail.text == expected.decode(errors='replace')
        if len(expected.decode(errors='ignore').encode()) == len(expected):  # valid UTF-8
            assert '�' not in ''.join(pieces)


def test_tail_holds_back_only_what_may_become_a_stop_string():
    tail = TextTail(['\nUser'])
    tail.push(b'Hi.\nUs')
    assert tail.take() == 'Hi.'
    tail.push(b'\xc3')
    assert tail.take() == '\nUs'
    tail.push(b'\xbc')
    assert tail.take() == 'ü'
    assert not tail.push(b'\nUse') and tail.take() == ''
    assert tail.push(b'r:') and tail.take() == '' and tail.text == 'Hi.\nUsü'


def test_an_empty_prompt_starts_from_bos(one):
    empty, bos = (generate(one, [p, *PROMPTS[1:]], SAMPLED, tokenizer=Words())
                  for p in ([], [6]))
    assert empty.tokens == bos.tokens
    assert generate(one, [[], *PROMPTS[1:]], SAMPLED, bos_id=6).tokens == bos.tokens
    with pytest.raises(InputError, match='prompt 1 is empty'):
        generate(one, [[1], []], SAMPLED)
    assert generate(one, [], SAMPLED).tokens == []


def test_learned_positions_bound_the_text(one):
    """All of them are used above; one more is refused, whereas rotary positions have no end."""
    model = Model(learned(), None, one.mesh)
    with pytest.raises(InputError, match=f'max_new_tokens={NEW - 1}'):
        generate(model, [[1] * 13], SAMPLED)
    assert one.cfg.max_seq_len < 12 < len(generate(one, PROMPTS, SAMPLED).tokens[1])


@pytest.mark.parametrize('message, prompts, kwargs', [
    ('token id 46', [[46]], {}),
    ('stop_ids', [[1]], {'stop_ids': (99,)}),
    ('need the bytes', [[1]], {'stop_strings': ('a',)}),
    ('must be a list', [[1]], {'stop_strings': 'ab', 'tokenizer': Words()}),
    ('not empty', [[1]], {'stop_strings': ('a', ''), 'tokenizer': Words()}),
    ('top_candidates', [[1]], {'top_candidates': V + 1}),
    ('2 row_ids for 1', [[1]], {'row_ids': [1, 2]})])
def test_bad_arguments(one, message, prompts, kwargs):
    with pytest.raises(InputError, match=message):
        generate(one, prompts, SAMPLED, **kwargs)


def test_other_numbers_and_lengths_of_one_bucket_compile_nothing(one):
    def compiled(lengths, config):
        generate(one, [[1] * n for n in lengths], config)
        return [f._cache_size() for f in (loop.start, loop.run)]

    other = dataclasses.replace(SAMPLED, temperature=0.6, max_new_tokens=NEW - 1)
    assert compiled((12, 5, 2), SAMPLED) == compiled((11, 1, 1), other)


def test_what_is_written_is_on_average_as_likely_as_the_entropy_says(one):
    """The mean of -log p over samples of p is the entropy of p, at every step of a text."""
    rows, new = [PROMPTS[0]] * 256, 8
    config = decode.SamplingConfig(max_new_tokens=new, temperature=1.4)
    result = generate(one, rows, config, seed=SEED)
    full = full_logits(one, [prompt + tokens for prompt, tokens in
                             zip(rows, result.tokens, strict=True)])
    apart = []
    for logits, logprobs in zip(full, result.logprobs, strict=True):
        log_p_TV = log_softmax(logits[len(PROMPTS[0]) - 1:-1] / 1.4, axis=-1)
        apart.append(np.sum(-logprobs + np.sum(np.exp(log_p_TV) * log_p_TV, axis=-1)))
    assert abs(np.mean(apart)) < 4 * np.std(apart) / np.sqrt(len(apart))
    assert np.std(apart) > 0.5
