"""The numbers behind a look inside a model: pieces, vectors, layers, and whose text it reads.

`evals/inspect.py` has losses, gradients and attention of a batch, `evals/adam.py` the update.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.evals.inspect import words
from jaxllm.models import transformer
from jaxllm.models.layers import Norm, rope_frequencies, sinusoids
from jaxllm.sharding import batch_ways


def pieces(tokenizer, text):
    """[(id, text)] of the tokens of a text, BOS first."""
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    names = words(tokenizer, set(ids))
    return [(int(i), names[int(i)]) for i in ids]


def embedding_plane(params, tokenizer, tokens_BL, count):
    """The embeddings of the `count` commonest tokens that have letters, on the plane in which they
    differ most (principal components of vectors of length 1).

    Returns:
      (names, xy_N2, share): share of the variance that the plane shows.
    """
    ids, counts = np.unique(np.asarray(tokens_BL), return_counts=True)
    names = words(tokenizer, ids.tolist())
    common = [int(i) for i in ids[np.argsort(-counts, kind='stable')]
              if names[int(i)].strip().isalpha()][:count]
    if len(common) < 3:
        raise InputError(f'embedding_plane: {len(common)} tokens with letters in these rows; a '
                         'plane needs at least 3: give more rows, or a larger count')
    table_ND = _unit(np.asarray(params['embed']['tokens'])[common])
    centred_ND = table_ND - table_ND.mean(axis=0, keepdims=True)
    u_NK, s_K, _ = np.linalg.svd(centred_ND, full_matrices=False)
    share = float((s_K[:2] ** 2).sum() / (s_K ** 2).sum())
    return [names[i] for i in common], u_NK[:, :2] * s_K[None, :2], share


def neighbours(params, tokenizer, text, count):
    """[(token, cosine)] of the embeddings nearest to that of the first token of `text`.

    Special tokens and single bytes are left out; the token itself is not in the list.
    """
    ids = tokenizer.encode(text)
    if not len(ids):
        raise InputError('neighbours: an empty text has no token; give a word')
    table_VD = _unit(np.asarray(params['embed']['tokens']))
    cosine_V = table_VD @ table_VD[ids[0]]
    sizes_V = np.resize(tokenizer.byte_lengths(), len(cosine_V))
    sizes_V[tokenizer.vocab_size:] = 0
    cosine_V[(sizes_V < 2) | (np.arange(len(cosine_V)) == ids[0])] = -np.inf
    best = [i for i in np.argsort(-cosine_V, kind='stable')[:count].tolist()
            if np.isfinite(cosine_V[i])]
    names = words(tokenizer, best)
    return [(names[i], float(cosine_V[i])) for i in best]


def _unit(x_ND):
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=-1, keepdims=True), 1e-12)


def position_signals(params, cfg, length):
    """What marks each position, [L, C]: cosines of the angles that RoPE turns queries and keys by,
    sinusoids, or the learned vectors."""
    positions_L = jnp.arange(length)
    if cfg.positions == 'rope':
        freq_C = rope_frequencies(cfg.rope, cfg.attention.head_dim, cfg.layer_pattern[0])
        return np.asarray(jnp.cos(positions_L[:, None] * freq_C[None]))
    if cfg.positions == 'learned':
        return np.asarray(params['embed']['positions'])[:length]
    return np.asarray(sinusoids(positions_L[None], cfg.d_model)[0])


def first_layers(params, cfg, count):
    """(params, cfg) of the model that ends, with the final norm, after its first layers."""
    if not 1 <= count <= cfg.num_layers:
        raise InputError(f'first_layers: count={count} is out of range; the model has '
                         f'{cfg.num_layers} layers, use 1 to so many')
    groups, rest = divmod(count, len(cfg.layer_pattern))
    cut = {name: x for name, x in params.items() if name not in ('layers', 'tail')}
    if groups:
        cut['layers'] = jax.tree.map(lambda x: x[:groups], params['layers'])
    if rest:
        whole = groups < cfg.num_groups
        tail = (jax.tree.map(lambda x: x[groups], params['layers']) if whole else params['tail'])
        cut['tail'] = {f'layer_{i}': tail[f'layer_{i}'] for i in range(rest)}
    return cut, dataclasses.replace(cfg, num_layers=count)


def hidden_after(params, cfg, tokens_BL, count):
    """Hidden states [B, L, D] after the first `count` layers (0: the embedding) and the final norm.
    """
    if count:
        return transformer.apply_hidden(*first_layers(params, cfg, count), tokens_BL)
    x_BLD = transformer.embed(params, cfg, tokens_BL, transformer.positions(
        jnp.ones_like(tokens_BL)))
    norm = Norm(cfg.norm, cfg.norm_eps, cfg.norm_unit_offset)
    return norm.apply({'params': params['final_norm']}, x_BLD)


@dataclasses.dataclass(frozen=True)
class Depths:
    """One text after 0, 1, ... N layers. L positions, each of which predicts the next token.

    hidden_NLD: hidden states after the final norm, N + 1 of them.
    likeliest: per depth and position, the likeliest next token as text.
    prob_NL: probability of the token that does come next.
    names: the L + 1 tokens.
    """
    hidden_NLD: np.ndarray
    likeliest: tuple
    prob_NL: np.ndarray
    names: tuple


def look_at_depths(params, cfg, tokenizer, text):
    """Depths of a text: what the model would say if it ended after each layer ("logit lens").
    Needs a mesh."""
    ids, names = zip(*pieces(tokenizer, text), strict=True)
    # As many copies as the mesh splits rows over.
    tokens_BL = jnp.asarray([ids[:-1]] * batch_ways(jax.sharding.get_mesh()), jnp.int32)
    next_L = np.asarray(ids[1:])
    hidden, likeliest, prob = [], [], []

    @functools.partial(jax.jit, static_argnums=2)
    def read(params, tokens_BL, count):
        hidden_BLD = hidden_after(params, cfg, tokens_BL, count)
        return hidden_BLD, jax.nn.softmax(transformer.unembed(params, cfg, hidden_BLD))

    for count in range(cfg.num_layers + 1):
        hidden_BLD, probs_BLV = read(params, tokens_BL, count)
        probs_LV = np.asarray(probs_BLV[0])
        best = probs_LV.argmax(-1).tolist()
        said = words(tokenizer, set(best))
        hidden.append(np.asarray(hidden_BLD[0], np.float32))
        likeliest.append(tuple(said[i] for i in best))
        prob.append(probs_LV[np.arange(len(next_L)), next_L])
    return Depths(np.stack(hidden), tuple(likeliest), np.stack(prob), names)


@dataclasses.dataclass(frozen=True)
class OwnContext:
    """The same T tokens of B texts predicted behind the true text and behind the model's own.

    nll_forced_BT, nll_free_BT: -log p(true token) [nats]; right_forced_BT, right_free_BT: whether
    the likeliest token is the true one. texts: [(given, true, own)] of each row.
    """
    nll_forced_BT: np.ndarray
    nll_free_BT: np.ndarray
    right_forced_BT: np.ndarray
    right_free_BT: np.ndarray
    texts: tuple


def texts_of(batches, length):
    """The first `length` tokens of every text in some batches that has so many, [B, length]."""
    rows = []
    for batch in batches:
        for tokens_L, segments_L, positions_L in zip(batch['tokens'], batch['segment_ids'],
                                                     batch['positions'], strict=True):
            starts = np.flatnonzero((positions_L == 0) & (segments_L > 0))
            rows += [tokens_L[t:t + length] for t in starts if t + length <= len(tokens_L)
                     and segments_L[t + length - 1] == segments_L[t]]
    if not rows:
        raise InputError(f'texts_of: no text of these batches has {length} tokens; use a smaller '
                         'length or more batches')
    return np.stack(rows)


def own_context(params, cfg, tokenizer, tokens_BL, given):
    """Teacher forcing against free running, greedy; returns an OwnContext. Needs a mesh.

    Args:
      tokens_BL: texts of one length; the first `given` tokens are true in both.
    """
    B, L = tokens_BL.shape
    if not 1 <= given < L:
        raise InputError(f'own_context: given={given} must be at least 1 and below the {L} tokens '
                         'of a text')
    out = decode.generate(params, cfg, tokens_BL[:, :given].tolist(),
                          decode.SamplingConfig(max_new_tokens=L - given, temperature=0.0),
                          pad_id=tokenizer.pad_id)
    own_BL = np.concatenate([tokens_BL[:, :given], np.asarray(out.tokens, np.int32)], axis=1)
    score = jax.jit(lambda params, tokens_BL: jax.nn.log_softmax(
        transformer.apply(params, cfg, tokens_BL[:, :-1])[:, given - 1:]))
    more = -B % batch_ways(jax.sharding.get_mesh())  # rows that make the batch divide
    true_BT, nll, right = tokens_BL[:, given:], [], []
    for context_BL in (tokens_BL, own_BL):
        context_BL = np.pad(context_BL, ((0, more), (0, 0))).astype(np.int32)
        logprobs_BTV = np.asarray(score(params, context_BL))[:B]
        nll.append(-np.take_along_axis(logprobs_BTV, true_BT[:, :, None], axis=2)[:, :, 0])
        right.append(logprobs_BTV.argmax(-1) == true_BT)
    say = lambda ids: tokenizer.decode(ids)
    texts = tuple((say(true[:given]), say(true[given:]), say(own[given:]))
                  for true, own in zip(tokens_BL, own_BL, strict=True))
    return OwnContext(*nll, *right, texts)
