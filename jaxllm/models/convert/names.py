"""Which tensor of a Hugging Face model or a GGUF file is which leaf of our parameter tree.

A kernel of ours is [*inputs, *features], theirs is [out, in] (or [in, out] in GPT-2's own files):
transposing and reshaping turns one into the other. GPT-2 has queries, keys and values in one
tensor.
"""

import dataclasses

from jaxllm.models.config import GATED


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of theirs.

    name: theirs. leaves: paths of ours that it holds, side by side along its output axis. layer:
    index along the leading axis of these leaves, or None where they have none.
    transposed: it is [out, in]; otherwise it has the axes of ours in order.
    """
    name: str
    leaves: tuple
    layer: int | None = None
    transposed: bool = False


_LLAMA = {
    'attention/q': 'self_attn.q_proj', 'attention/k': 'self_attn.k_proj',
    'attention/v': 'self_attn.v_proj', 'attention/o': 'self_attn.o_proj',
    'attention/q_norm': 'self_attn.q_norm', 'attention/k_norm': 'self_attn.k_norm',
    'mlp/gate': 'mlp.gate_proj', 'mlp/up': 'mlp.up_proj', 'mlp/down': 'mlp.down_proj',
    'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm',
}
_GEMMA = _LLAMA | {'attention_post_norm': 'post_attention_layernorm',
                   'mlp_norm': 'pre_feedforward_layernorm',
                   'mlp_post_norm': 'post_feedforward_layernorm'}
_GPT2 = {'attention/qkv': 'attn.c_attn', 'attention/o': 'attn.c_proj', 'mlp/up': 'mlp.c_fc',
         'mlp/down': 'mlp.c_proj', 'attention_norm': 'ln_1', 'mlp_norm': 'ln_2'}
_GGUF = {
    'attention/q': 'attn_q', 'attention/k': 'attn_k', 'attention/v': 'attn_v',
    'attention/qkv': 'attn_qkv', 'attention/o': 'attn_output', 'attention/q_norm': 'attn_q_norm',
    'attention/k_norm': 'attn_k_norm', 'mlp/gate': 'ffn_gate', 'mlp/up': 'ffn_up',
    'mlp/down': 'ffn_down', 'attention_norm': 'attn_norm', 'mlp_norm': 'ffn_norm',
    'attention_post_norm': 'post_attention_norm', 'mlp_post_norm': 'post_ffw_norm',
}
# Outside the layers: {our path: their name}.
_HF_TOP = {'embed/tokens': 'model.embed_tokens.weight', 'final_norm': 'model.norm',
           'head/kernel': 'lm_head.weight'}
_GPT2_TOP = {'embed/tokens': 'transformer.wte.weight', 'embed/positions': 'transformer.wpe.weight',
             'final_norm': 'transformer.ln_f', 'head/kernel': 'lm_head.weight'}
_GGUF_TOP = {'embed/tokens': 'token_embd.weight', 'embed/positions': 'position_embd.weight',
             'final_norm': 'output_norm', 'head/kernel': 'output.weight'}


def hf_entries(model, family):
    """Entries of a Hugging Face checkpoint of a ModelConfig."""
    if family == 'gpt2':
        return _entries(model, _GPT2_TOP, _GPT2, 'transformer.h.{}.', fused=True, transposed=False)
    table = _GEMMA if family in ('gemma2', 'gemma3') else _LLAMA
    return _entries(model, _HF_TOP, table, 'model.layers.{}.', fused=False, transposed=True)


def gguf_entries(model, family):
    """Entries of a GGUF file of a ModelConfig."""
    return _entries(model, _GGUF_TOP, _GGUF, 'blk.{}.', fused=family == 'gpt2', transposed=True)


def _entries(model, top, table, prefix, *, fused, transposed):
    norm = ('scale', 'bias') if model.norm == 'layernorm' else ('scale',)
    found = [Entry(top['embed/tokens'], (('embed', 'tokens'),))]
    if model.positions == 'learned':
        found.append(Entry(top['embed/positions'], (('embed', 'positions'),)))
    for index in range(model.num_layers):
        where, layer = place(model, index)
        for part in _parts(model, fused):
            name = prefix.format(index) + table[part]
            if part.endswith('norm'):
                found += [Entry(f'{name}.{_theirs(leaf)}',
                                ((*where, *part.split('/'), leaf),), layer)
                          for leaf in (norm if '/' not in part else ('scale',))]
                continue
            layers = [('attention', x) for x in 'qkv'] if part == 'attention/qkv' else [
                tuple(part.split('/'))]
            found += [Entry(f'{name}.{_theirs(leaf)}',
                            tuple((*where, *one, leaf) for one in layers), layer,
                            transposed and leaf == 'kernel')
                      for leaf in ('kernel', 'bias') if leaf == 'kernel' or _biased(model, part)]
    found += [Entry(f'{top["final_norm"]}.{_theirs(leaf)}', (('final_norm', leaf),))
              for leaf in norm]
    if not model.tie_embeddings:
        found.append(Entry(top['head/kernel'], (('head', 'kernel'),)))
    return found


def place(model, index):
    """(path of a layer in our tree, its index along the stacked axis or None)."""
    pattern = len(model.layer_pattern)
    group, member = divmod(index, pattern)
    if group < model.num_groups:
        return ('layers', f'layer_{member}'), group
    return ('tail', f'layer_{member}'), None


def _parts(model, fused):
    """What a layer has, by our names."""
    attention = ['qkv'] if fused else ['q', 'k', 'v']
    attention += ['o'] + (['q_norm', 'k_norm'] if model.attention.qk_norm else [])
    mlp = (['gate'] if model.activation in GATED else []) + ['up', 'down']
    norms = ['attention_norm', 'mlp_norm']
    norms += ['attention_post_norm', 'mlp_post_norm'] if model.post_norm else []
    return [f'attention/{x}' for x in attention] + [f'mlp/{x}' for x in mlp] + norms


def _biased(model, part):
    if part.startswith('mlp/'):
        return model.mlp_bias
    return model.attention.out_bias if part == 'attention/o' else model.attention.qkv_bias


def _theirs(leaf):
    return 'bias' if leaf == 'bias' else 'weight'
