"""The modules of Transformers' models, and adapters of our layers as adapters of theirs.

Where the other side has one module for several of our layers (GPT-2's c_attn for q, k and v), their
adapters stand in it as blocks: A_q, A_k, A_v below each other and B block-diagonal, of rank 3 R.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import InputError
from jaxllm.models.transformer import PARAM_AXES, num_inputs


@dataclasses.dataclass(frozen=True)
class Modules:
    """What Transformers calls the layers of a family of models."""
    layers: str      # prefix of layer n's modules, with {}
    linears: dict    # {module: our layers that it consists of, their features side by side}
    tokens: str
    head: str
    transposed: bool  # Conv1D: weights stored as [inputs, features]


LLAMA = Modules('model.layers.{}.', {
    'self_attn.q_proj': ('attention/q',), 'self_attn.k_proj': ('attention/k',),
    'self_attn.v_proj': ('attention/v',), 'self_attn.o_proj': ('attention/o',),
    'mlp.gate_proj': ('mlp/gate',), 'mlp.up_proj': ('mlp/up',), 'mlp.down_proj': ('mlp/down',),
}, 'model.embed_tokens', 'lm_head', False)

GPT2 = Modules('transformer.h.{}.', {
    'attn.c_attn': ('attention/q', 'attention/k', 'attention/v'),
    'attn.c_proj': ('attention/o',), 'mlp.c_fc': ('mlp/up',), 'mlp.c_proj': ('mlp/down',),
}, 'transformer.wte', 'lm_head', True)


def modules_of(family):
    """The Modules of a family; all but GPT-2 have Llama's."""
    return GPT2 if family == 'gpt2' else LLAMA


def short_names(modules):
    """{module: its last name, or as much as tells it from the others}."""
    last = [module.split('.')[-1] for module in modules.linears]
    return {module: name if last.count(name) == 1 else module
            for module, name in zip(modules.linears, last, strict=True)}


def layer_leaves(tree, model, n, name):
    """The leaves of layer n's `name` ('attention/q') in a tree of ours, or {} without any."""
    group, i = divmod(n, len(model.layer_pattern))
    stacked = group < model.num_groups
    node = tree.get('layers' if stacked else 'tail', {}).get(f'layer_{i}', {})
    for key in name.split('/'):
        node = node.get(key, {})
    return {key: to_numpy(x)[group] if stacked else to_numpy(x) for key, x in node.items()}


def put_layers(adapter, model, name, layers, factor):
    """The opposite of `layer_leaves` for all layers; B is multiplied by `factor`."""
    period = len(model.layer_pattern)
    whole = model.num_groups * period
    for i in range(period):
        stack, rest = layers[i:whole:period], layers[whole + i:whole + i + 1]
        for group, rows in (('layers', stack), ('tail', rest)):
            if not rows:
                continue
            node = adapter.setdefault(group, {}).setdefault(f'layer_{i}', {})
            for part in name.split('/'):
                node = node.setdefault(part, {})
            for key in rows[0]:
                scale = np.float32(factor if key == 'lora_b' else 1)
                values = [jnp.asarray(leaves[key] * scale) for leaves in rows]
                node[key] = jnp.stack(values) if group == 'layers' else values[0]


def layer_sizes(model, name):
    """(inputs, features) of one of our layers, two tuples."""
    att = model.attention
    size = {'d_model': model.d_model, 'd_ff': model.d_ff, 'heads': att.num_heads,
            'kv_heads': att.num_kv_heads, 'head_dim': att.head_dim}
    axes = PARAM_AXES[f'{name.split("/")[-1]}/kernel']
    shape = tuple(size[a] for a in axes)
    return shape[:num_inputs(axes)], shape[num_inputs(axes):]


def fused(leaves, parts, model):
    """PEFT's tensors of one module from our leaves of its parts ({} = no adapter)."""
    widths = [math.prod(layer_sizes(model, part)[1]) for part in parts]
    a, b, magnitudes, column = [], [], [], 0
    ranks = [part['lora_a'].shape[-1] if part else 0 for part in leaves]
    for part, width, rank in zip(leaves, widths, ranks, strict=True):
        block = np.zeros((width, sum(ranks)), np.float32)
        if part:
            a.append(part['lora_a'].reshape(-1, rank).T)
            block[:, column:column + rank] = part['lora_b'].reshape(rank, -1).T
            magnitudes += [part['magnitude'].reshape(-1)] if 'magnitude' in part else []
        b.append(block)
        column += rank
    out = {'lora_A.weight': np.ascontiguousarray(np.concatenate(a)),
           'lora_B.weight': np.ascontiguousarray(np.concatenate(b))}
    if magnitudes:
        out['lora_magnitude_vector'] = np.concatenate(magnitudes)
    return out


def parted(found, parts, model, module, folder):
    """{our layer: [leaves of layer n]} from PEFT's tensors of one module in all layers."""
    features = [layer_sizes(model, part)[1] for part in parts]
    inputs = layer_sizes(model, parts[0])[0]
    want = math.prod(inputs), sum(map(math.prod, features))
    got = found[0]['lora_a'].shape[1], found[0]['lora_b'].shape[0]
    if got != want or found[0]['lora_a'].shape[0] != found[0]['lora_b'].shape[1]:
        raise InputError(f'{folder}: the adapter of {module} is for a matrix of {got[0]} x {got[1]}'
                         f', this model has {want[0]} x {want[1]}; it was made for another base')
    out, row = {}, 0
    nonzero = np.any([leaves['lora_b'] != 0 for leaves in found], axis=0)  # in any layer
    for part, shape in zip(parts, features, strict=True):
        rows = slice(row, row := row + math.prod(shape))
        used = np.ones(nonzero.shape[1], bool)
        if len(parts) > 1 and nonzero.any():
            # Of the blocks of several parts only this one's; zeros elsewhere compute nothing.
            used = nonzero[rows].any(axis=0)
        if not used.any():
            if 'magnitude' not in found[0]:
                continue
            used[0] = True
        out[part] = []
        for leaves in found:
            new = {'lora_a': leaves['lora_a'][used].T.reshape(*inputs, -1),
                   'lora_b': leaves['lora_b'][rows][:, used].T.reshape(-1, *shape)}
            if 'magnitude' in leaves:
                new['magnitude'] = leaves['magnitude'].reshape(-1)[rows].reshape(shape)
            out[part].append(new)
    return out


def to_numpy(x):
    return np.asarray(jax.device_get(x), np.float32)
