"""What a run will need in memory on one device, before anything is compiled: full, LoRA or QLoRA.

    total = frozen + trainable + moments [+ average] + max(activations + 2 g, 3 g)

with g bytes of gradients: while they are clipped and become updates, two or three trees of their
size are there. Arrays that live through the run are counted exactly, from their shapes; what the
backward pass keeps is counted from what it has to know again, which the compiler may undercut.
`plan.compile_step` knows the truth, at the price of compiling.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxllm.models import lora as adapters
from jaxllm.models import transformer
from jaxllm.models.config import GATED
from jaxllm.sharding import make_mesh

_CHUNK_COPIES = 2.5  # logits, their exponentials and their gradient, not all at once


@dataclasses.dataclass(frozen=True)
class MemoryPrediction:
    """Bytes."""
    trainable: int
    frozen: int
    optimizer: int    # moments, and the moving average of the parameters
    gradients: int
    activations: int  # kept for the backward pass, and the work on one layer or one chunk of logits
    num_trainable: int
    num_params: int   # of the model without an adapter

    @property
    def total(self):
        step = max(self.activations + 2 * self.gradients, 3 * self.gradients)
        return self.trainable + self.frozen + self.optimizer + step

    def __str__(self):
        mib = lambda x: f'{x / 2**20:,.0f} MiB'
        return (f'{mib(self.total)}: frozen {mib(self.frozen)}, trainable {mib(self.trainable)} '
                f'({self.num_trainable:,} of {self.num_params:,} parameters), optimizer '
                f'{mib(self.optimizer)}, gradients {mib(self.gradients)}, activations '
                f'{mib(self.activations)}')


def predict_memory(model, batch_size, seq_len, lora=None, *, moments=2, ema=False, chunk_size=512):
    """Predicts the memory of training on one device.

    Args:
      model: ModelConfig.
      batch_size: rows of one micro-batch.
      seq_len: tokens per row.
      lora: LoraConfig; None or rank 0 for all parameters.
      moments: copies of the trained parameters in the optimiser; 2 for AdamW.
      ema: whether a moving average of them is kept.
      chunk_size: tokens whose logits exist at once.

    Returns:
      MemoryPrediction.

    Raises:
      InputError: a LoraConfig that does not fit the model.
    """
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), model))
    trainable, frozen = params, {}
    if lora is not None and lora.rank:
        trainable = jax.eval_shape(lambda p: adapters.init_adapter(jax.random.key(0), p, lora),
                                   params)
        frozen = jax.eval_shape(lambda p: adapters.prepare_base(p, lora), params)
    g = tree_bytes(trainable)
    return MemoryPrediction(
        g, tree_bytes(frozen), (moments + ema) * g, g,
        activation_bytes(model, batch_size, seq_len, dora=lora is not None and lora.dora,
                         chunk_size=chunk_size),
        adapters.num_trainable(trainable), transformer.num_params(params))


def tree_bytes(tree):
    """Bytes of all arrays (or shapes) of a tree."""
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def activation_bytes(model, batch_size, seq_len, *, dora=False, chunk_size=512):
    """Roughly what the forward pass leaves for the backward pass, and the work on one layer.

    Per token and layer, without remat: the residual stream and both norms' inputs and outputs, 6 D;
    q, the result of attention twice, k and v, 3 H C + 2 K C; the MLP's hidden layer 6 times (5
    without a gate). 'dots' keeps x and the results of matrix products; 'full' keeps x alone.
    DoRA's magnitudes need the results of the products they multiply.
    """
    att, tokens = model.attention, batch_size * seq_len
    D, F, gated = model.d_model, model.d_ff, model.activation in GATED
    heads, kv_heads = att.num_heads * att.head_dim, att.num_kv_heads * att.head_dim
    products = heads + 2 * kv_heads + 2 * D + F * (2 if gated else 1)
    layer = 6 * D + 3 * heads + 2 * kv_heads + F * (6 if gated else 5) + products * dora
    kept = {'none': layer, 'dots': D + products, 'full': D}[model.remat]
    work = 0 if model.remat == 'none' else 2 * layer
    itemsize = jnp.dtype(model.dtype).itemsize
    logits = _CHUNK_COPIES * 4 * min(chunk_size, tokens) * model.vocab_size
    return round(tokens * kept * model.num_layers * itemsize
                 + max(tokens * work * itemsize, logits))
