"""What happens inside training on one batch: losses per token, gradients per layer, attention.

    inspection = inspect_batch(params, cfg, objective, batch, tokenizer, optimizer=..., lr=...)

`evals/inspect_text.py` and `evals/inspect_page.py` show it.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.errors import InputError
from jaxllm.models import transformer
from jaxllm.sharding import batch_shardings, batch_ways
from jaxllm.train.step import loss_and_grads


@dataclasses.dataclass(frozen=True)
class Norms:
    """L2 norms of one parameter (of one layer, where layers are stacked) in one optimizer step."""
    layer: int     # -1: outside the layers
    name: str      # path of the parameter, in its layer if it has one
    size: int
    grad: float    # before clipping
    param: float   # before the step
    update: float

    @property
    def ratio(self):
        """Update to weight; about 1e-3 is usual (https://cs231n.github.io/neural-networks-3/)."""
        return self.update / self.param if self.param else math.inf if self.update else 0.0


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Of B rows of L tokens; A candidates per token; attention of M tokens of one row. All on host.

    nll_BL: -log p(target) [nats], whatever its weight; entropy_BL: of the next-token distribution.
    candidate_ids_BLA, candidate_logprobs_BLA: the likeliest next tokens, likeliest first.
    words: {token id: text} of all ids above.
    loss: of the objective; metrics: {name: value} of it; clip: the factor that clipping put on the
      gradients; lr: learning rate of the step.
    norms: a Norms per parameter and layer.
    attention_HMM: per layer, [H, M query, M key] of row `row`, float32.
    """
    tokens_BL: np.ndarray
    targets_BL: np.ndarray
    weights_BL: np.ndarray
    segment_ids_BL: np.ndarray
    nll_BL: np.ndarray
    entropy_BL: np.ndarray
    candidate_ids_BLA: np.ndarray
    candidate_logprobs_BLA: np.ndarray
    vocab_size: int
    words: dict
    loss: float
    metrics: dict
    grad_norm: float
    clip: float
    lr: float
    norms: tuple
    attention_HMM: tuple
    row: int

    def text(self, row):
        """The row as it reads: [(text, position whose loss is of this token, segment id)].

        The first token of a segment is only given, never predicted: its position is -1.
        """
        pieces, L = [], self.tokens_BL.shape[1]
        for t in range(L):
            segment = self.segment_ids_BL[row, t]
            before = self.segment_ids_BL[row, t - 1] if t else 0
            after = self.segment_ids_BL[row, t + 1] if t + 1 < L else segment
            if not segment:
                continue
            if segment != before:
                pieces.append((self.words[int(self.tokens_BL[row, t])], -1, int(segment)))
            if segment == after or self.weights_BL[row, t]:
                pieces.append((self.words[int(self.targets_BL[row, t])], t, int(segment)))
        return pieces

    def worst(self, count):
        """(row, position) of the `count` weighted tokens with the largest losses, largest first."""
        nll_BL = np.where(self.weights_BL > 0, self.nll_BL, -np.inf)
        order = np.argsort(-nll_BL, axis=None, kind='stable')[:count]
        places = zip(*np.unravel_index(order, nll_BL.shape), strict=True)
        return [(int(b), int(t)) for b, t in places if self.weights_BL[b, t] > 0]

    def candidates(self, row, position):
        """[(text, probability)] of the likeliest next tokens."""
        return [(self.words[int(i)], math.exp(x)) for i, x in zip(
            self.candidate_ids_BLA[row, position], self.candidate_logprobs_BLA[row, position],
            strict=True)]

    def layers(self):
        """Norms of whole layers, in the order of the data flow: [Norms] with an empty name, or the
        name of the part that is no layer."""
        groups = {}
        for norms in self.norms:
            key = norms.layer, '' if norms.layer >= 0 else norms.name.split('/')[0]
            groups.setdefault(key, []).append(norms)
        total = lambda group, field: math.hypot(*(getattr(norms, field) for norms in group))
        whole = [Norms(layer, name, sum(norms.size for norms in group), total(group, 'grad'),
                       total(group, 'param'), total(group, 'update'))
                 for (layer, name), group in groups.items()]
        place = lambda norms: (norms.layer < 0 and norms.name != 'embed', norms.layer)
        return sorted(whole, key=place)


def inspect_batch(params, cfg, objective, batch, tokenizer, *, optimizer, lr, opt_state=None,
                  clip_norm=0.0, frozen=None, row=0, top_candidates=5, attention_tokens=64):
    """Runs one batch forward and backward and one optimizer step, and keeps what happened.

    Args:
      params, cfg: the model and its ModelConfig; nothing of it is changed.
      objective: as in `objectives/lm.py`, of `params`.
      batch: tokens, targets, segment_ids, positions, loss_weights [B, L], and what else the
        objective reads; B a multiple of the devices that the mesh splits rows over.
      tokenizer: has token_bytes(id) and special, {name: id}.
      optimizer: maps gradients to directions (`train/optim.py`); `opt_state`: None = its first.
      lr: the learning rate of the step.
      clip_norm: as in the train step; 0 = off.
      frozen: passed on to the objective.
      row: the row whose attention is kept, for its first `attention_tokens` tokens.
      top_candidates: next tokens kept per position.

    Raises:
      InputError: a row that the batch does not have, or fewer than one candidate or token.
    """
    B, L = batch['tokens'].shape
    for name, value, most in (('row', row + 1, B), ('top_candidates', top_candidates,
                                                    cfg.vocab_size)):
        if not 1 <= value <= most:
            raise InputError(f'inspect: {name} is out of range for a batch of {B} rows and a '
                             f'vocabulary of {cfg.vocab_size} ids; use one within')
    if attention_tokens < 1:
        raise InputError(f'inspect: attention_tokens={attention_tokens} must be at least 1')
    host = {name: np.asarray(x) for name, x in batch.items()}
    mesh = jax.sharding.get_mesh()
    batch = jax.device_put(host, batch_shardings(host, mesh))
    seen = jax.jit(_tokens, static_argnums=(1, 3))(params, cfg, batch, top_candidates)
    step = jax.jit(lambda *args: _step(objective, optimizer, clip_norm, *args))
    loss, sums, grad_norm, clip, norms = jax.device_get(
        step(params, {} if frozen is None else frozen, opt_state, batch, np.float32(lr)))
    # Causal: the first tokens of a row do not depend on what follows. As many copies as the mesh
    # splits rows over.
    first = {name: np.repeat(host[name][row:row + 1, :attention_tokens], batch_ways(mesh), axis=0)
             for name in ('tokens', 'positions', 'segment_ids')}
    attention = jax.jit(_attention, static_argnums=(1,))(
        params, cfg, jax.device_put(first, batch_shardings(first, mesh)))
    nll_BL, entropy_BL, ids_BLA, logprobs_BLA = jax.device_get(seen)
    ids = set().union(*(np.unique(x).tolist() for x in (host['tokens'], host['targets'], ids_BLA)))
    return Inspection(
        host['tokens'], host['targets'], host['loss_weights'], host['segment_ids'], nll_BL,
        entropy_BL, ids_BLA, logprobs_BLA, cfg.vocab_size, words(tokenizer, ids), float(loss),
        {name: float(total / max(weight, 1e-9)) for name, (total, weight) in sums.items()},
        float(grad_norm), float(clip), float(lr), tuple(_list_norms(params, norms, cfg)),
        tuple(jax.device_get(attention)), row)


def words(tokenizer, ids):
    """{id: text}; special tokens by name, bytes that are no text on their own as <E2 80>."""
    special = {i: name for name, i in tokenizer.special.items()}
    found = {}
    for i in ids:
        raw = b'' if i in special else tokenizer.token_bytes(i)
        try:
            found[i] = special.get(i) or raw.decode()
        except UnicodeDecodeError:
            found[i] = f'<{raw.hex(" ").upper()}>'
    return found


def _tokens(params, cfg, batch, top_candidates):
    """(nll_BL, entropy_BL, candidate ids_BLA, their logprobs_BLA), a position at a time."""
    hidden_BLD = transformer.apply_hidden(params, cfg, batch['tokens'],
                                          positions_BL=batch['positions'],
                                          segment_ids_BL=batch['segment_ids'])

    def position(at):
        hidden_BD, targets_B = at
        logits_BV = transformer.unembed(params, cfg, hidden_BD[:, None])[:, 0]
        logprobs_BV = jax.nn.log_softmax(logits_BV)
        logprobs_BA, ids_BA = jax.lax.top_k(logprobs_BV, top_candidates)
        nll_B = -jnp.take_along_axis(logprobs_BV, targets_B[:, None], axis=1)[:, 0]
        return nll_B, -jnp.sum(jnp.exp(logprobs_BV) * logprobs_BV, axis=1), ids_BA, logprobs_BA

    seen = jax.lax.map(position, (hidden_BLD.swapaxes(0, 1), batch['targets'].swapaxes(0, 1)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1), seen)


def _step(objective, optimizer, clip_norm, params, frozen, opt_state, batch, lr):
    """(loss, metric sums, gradient norm, clip factor, {grad, param, update: norms per leaf})."""
    loss, sums, _, grads = loss_and_grads(objective, params, frozen, batch, jax.random.key(0))
    grad_norm = optax.tree.norm(grads)
    clip = jnp.ones(())
    if clip_norm:
        clip = jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-12))
    if opt_state is None:
        opt_state = optimizer.init(params)
    directions, _ = optimizer.update(jax.tree.map(lambda g: g * clip, grads), opt_state, params)
    updates = jax.tree.map(lambda d: -lr * d, directions)
    return loss, sums, grad_norm, clip, {
        'grad': _leaf_norms(grads), 'param': _leaf_norms(params), 'update': _leaf_norms(updates)}


def _leaf_norms(tree):
    """The norm of every leaf; of those stacked over layers, a vector with a norm per repetition."""
    def norm(path, x):
        axes = tuple(range(1 if _is_stacked(path) else 0, x.ndim))
        return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axes))
    return jax.tree_util.tree_map_with_path(norm, tree)


def _is_stacked(path):
    return path[0].key == 'layers'


def _list_norms(params, norms, cfg):
    """A Norms per parameter and layer, from the norms per leaf."""
    leaves = zip(jax.tree_util.tree_leaves_with_path(params),
                 *(jax.tree.leaves(norms[name]) for name in ('grad', 'param', 'update')),
                 strict=True)
    for (path, leaf), *values in leaves:
        names = [entry.key for entry in path]
        if names[0] not in ('layers', 'tail'):
            yield Norms(-1, '/'.join(names), leaf.size, *map(float, values))
            continue
        repeats = cfg.num_groups if _is_stacked(path) else 1
        first = 0 if _is_stacked(path) else cfg.num_groups * len(cfg.layer_pattern)
        first += int(names[1].removeprefix('layer_'))
        for i in range(repeats):
            one = [float(np.reshape(value, -1)[i]) for value in values]
            yield Norms(first + i * len(cfg.layer_pattern), '/'.join(names[2:]),
                        leaf.size // repeats, *one)


def _attention(params, cfg, rows):
    """Attention weights of the first row, a list of [H, M, M] over the layers."""
    params = transformer.compute_params(params, cfg)
    x_BLD = transformer.embed(params, cfg, rows['tokens'], rows['positions'])
    _, seen = transformer.apply_stack(params, cfg, x_BLD, rows['positions'], rows['segment_ids'],
                                      collect='intermediates')
    pick = lambda group, i, name: seen[group][f'layer_{i}']['attention'][name][0]
    maps = []
    for layer in range(cfg.num_layers):
        group, i = divmod(layer, len(cfg.layer_pattern))
        if group < cfg.num_groups:
            q, k = (pick('layers', i, name)[group, 0] for name in ('queries', 'keys'))
        else:
            q, k = (pick('tail', i, name)[0] for name in ('queries', 'keys'))
        maps.append(attention_weights(q, k, rows['segment_ids'][0], cfg.attention,
                                      local=cfg.layer_pattern[i] == 'local'))
    return maps


def attention_weights(q_LHC, k_MKC, segment_ids_M, att, *, local):
    """softmax(mask(cap(scale * q k^T))) of one row, [H, L, M] float32; zero where nothing is seen.

    Args:
      att: AttentionConfig; `local`: whether its window applies. See `models/attention.py`.
    """
    k_MHC = jnp.repeat(k_MKC, att.num_heads // att.num_kv_heads, axis=1).astype(jnp.float32)
    scores_HLM = jnp.einsum('LHC,MHC->HLM', q_LHC.astype(jnp.float32), k_MHC)
    scores_HLM *= att.scale or att.head_dim ** -0.5
    if att.softcap:
        scores_HLM = att.softcap * jnp.tanh(scores_HLM / att.softcap)
    index_M = jnp.arange(segment_ids_M.shape[0])
    behind_LM = index_M[:, None] - index_M[None]
    mask_LM = (segment_ids_M[:, None] == segment_ids_M[None]) & (segment_ids_M != 0)[None]
    mask_LM &= behind_LM >= 0
    if local:
        mask_LM &= behind_LM < att.window
    scores_HLM = jnp.where(mask_LM[None], scores_HLM, jnp.finfo(jnp.float32).min)
    return jnp.where(mask_LM[None], jax.nn.softmax(scores_HLM), 0.0)
