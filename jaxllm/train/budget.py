"""What training will cost before it starts: bytes and seconds, from sizes alone."""

import dataclasses
import math

from jaxllm.models.config import GATED
from jaxllm.train.flops import forward_flops_per_token

_FLOAT = 4
_NF4 = 0.5 + _FLOAT / 64      # bytes per number: four bits, and a scale per block of 64
# What a step reaches of the machine's matmul peak; of SmolLM2-135M on two CPU cores. A prediction
# from it is good to a factor of two.
EFFICIENCY = 0.45


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bytes while training, and seconds of it, by one method."""
    method: str
    trained: int         # parameters
    weights: int         # bytes: all parameters as they are stored
    state: int           # bytes: gradients and two Adam moments of what is trained
    activations: int     # bytes: rough
    seconds: float

    @property
    def total(self):
        return self.weights + self.state + self.activations


def linear_sizes(model):
    """[(name, inputs, outputs)] of the linear layers of one block of a ModelConfig."""
    att = model.attention
    heads, kv = att.num_heads * att.head_dim, att.num_kv_heads * att.head_dim
    sizes = [('q', model.d_model, heads), ('k', model.d_model, kv), ('v', model.d_model, kv),
             ('o', heads, model.d_model), ('up', model.d_model, model.d_ff),
             ('down', model.d_ff, model.d_model)]
    return sizes + ([('gate', model.d_model, model.d_ff)] if model.activation in GATED else [])


def embedding_params(model):
    """Of the token table, an untied head and learned positions."""
    tables = model.vocab_size * model.d_model * (1 if model.tie_embeddings else 2)
    return tables + (model.max_seq_len * model.d_model if model.positions == 'learned' else 0)


def budget(method, model, *, rank, batch_size, seq_len, num_steps, peak_flops):
    """The Budget of 'lora', 'qlora' (a base of four bits) or 'full' fine-tuning.

    Activations: of each layer about 34 numbers per D of every token (its inputs, norms, queries,
    keys, values, scores of one block, the MLP's), and the logits of one chunk.

    Args:
      model: ModelConfig. rank: of the adapter. peak_flops: of the machine's matrix products.
    """
    linear = model.num_layers * sum(i * o for _, i, o in linear_sizes(model))
    other = embedding_params(model)
    adapter = model.num_layers * sum(rank * (i + o) for _, i, o in linear_sizes(model))
    trained = linear + other if method == 'full' else adapter
    weights = (linear + other) * _FLOAT
    if method == 'qlora':
        weights = math.ceil(linear * _NF4) + other * _FLOAT
    weights += adapter * _FLOAT if method != 'full' else 0
    tokens = batch_size * seq_len
    width = 10 * model.d_model + 3 * model.d_ff + 2 * model.attention.num_heads * (
        model.attention.head_dim)
    activations = _FLOAT * tokens * model.num_layers * width
    activations += 3 * _FLOAT * min(tokens, 512) * model.vocab_size
    factor = 3 if method == 'full' else 2  # no gradients of frozen weights
    flops = factor * forward_flops_per_token(model, seq_len) * tokens * num_steps
    slower = 1.15 if method == 'qlora' else 1.0
    return Budget(method, trained, weights, 3 * _FLOAT * trained, activations,
                  slower * flops / (EFFICIENCY * peak_flops))


def bytes_text(number):
    """'1.3 GB'."""
    return f'{number / 1e9:.1f} GB' if number >= 1e9 else f'{number / 1e6:.0f} MB'
