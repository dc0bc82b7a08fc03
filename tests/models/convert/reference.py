"""Tiny random Transformers models of every family, the reference for conversion."""

import os
import sys

import pytest

if sys.version_info >= (3, 12):
    pytest.skip('the reference (PyTorch, CPU build) is installed on Python 3.11 only',
                allow_module_level=True)

os.environ['HF_HUB_OFFLINE'] = '1'
import torch  # noqa: E402
import transformers  # noqa: E402

from jaxllm.data import tokenizer as tokenizers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

COMMON = dict(vocab_size=300, hidden_size=32, intermediate_size=44, num_hidden_layers=3,
              num_attention_heads=4, num_key_value_heads=2, head_dim=6, bos_token_id=1,
              eos_token_id=2, pad_token_id=0, max_position_embeddings=64)
WINDOW = dict(sliding_window=5)
LLAMA3 = dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192, rope_theta=500000.0)
FAMILIES = {
    'llama2': ('Llama', COMMON | dict(tie_word_embeddings=False)),
    'smollm2': ('Llama', COMMON | dict(tie_word_embeddings=True)),
    'llama_biased': ('Llama', COMMON | dict(attention_bias=True, mlp_bias=True)),
    'llama3': ('Llama', COMMON | dict(rope_parameters=LLAMA3, head_dim=16)),
    'mistral': ('Mistral', COMMON | WINDOW),
    'mistral_global': ('Mistral', COMMON | dict(sliding_window=None)),
    'qwen2': ('Qwen2', COMMON | dict(head_dim=8, rope_theta=1e6)),
    'qwen2_local': ('Qwen2', COMMON | WINDOW | dict(head_dim=8, use_sliding_window=True,
                                                    max_window_layers=2)),
    'qwen3': ('Qwen3', COMMON | dict(rope_theta=1e6)),
    'gemma2': ('Gemma2', COMMON | WINDOW | dict(
        query_pre_attn_scalar=10, attn_logit_softcapping=20.0, final_logit_softcapping=15.0)),
    'gemma3': ('Gemma3', COMMON | WINDOW | dict(num_hidden_layers=7, query_pre_attn_scalar=9)),
    'gpt2': ('GPT2', dict(vocab_size=300, n_embd=32, n_layer=3, n_head=4, n_positions=64,
                          bos_token_id=1, eos_token_id=2)),
}

# Transformers' own GGUF loader leaves some settings at their defaults, whatever the file says.
FAMILIES |= {
    'qwen3_default': ('Qwen3', FAMILIES['qwen3'][1] | dict(head_dim=128)),
    'gemma2_default': ('Gemma2', COMMON | dict(query_pre_attn_scalar=256, sliding_window=4096)),
    'gemma3_default': ('Gemma3', FAMILIES['gemma3'][1] | dict(query_pre_attn_scalar=256)),
    'gpt2_default': ('GPT2', FAMILIES['gpt2'][1] | dict(n_positions=1024)),
}


def make(name, seed=0):
    """A random model in which every parameter matters, norms and biases too."""
    kind, settings = FAMILIES[name]
    prefix = 'Gemma3Text' if kind == 'Gemma3' else kind
    config = getattr(transformers, f'{prefix}Config')(**settings)
    head = 'GPT2LMHeadModel' if kind == 'GPT2' else f'{kind}ForCausalLM'
    torch.manual_seed(seed)
    config._attn_implementation = 'eager'
    model = getattr(transformers, head)(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def save(model, folder, **options):
    """As save_pretrained writes it, with a tokenizer of bytes beside it."""
    model.save_pretrained(folder, **options)
    tokenizers.byte_tokenizer().save(folder)
    (folder / 'jaxllm_tokenizer.json').unlink()
    return folder


def logits(model, tokens, mask=None):
    with torch.no_grad():
        more = {} if mask is None else {'attention_mask': torch.tensor(mask)}
        if mask is not None:
            more['position_ids'] = (more['attention_mask'].cumsum(-1) - 1).clamp(min=0)
        return model(torch.tensor(tokens, dtype=torch.long), **more).logits.numpy()
