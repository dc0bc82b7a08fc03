"""What fine-tuning by each method will cost before it starts: bytes and seconds."""

import dataclasses

import jax

from jaxllm.models import lora, transformer
from jaxllm.sharding import make_mesh
from jaxllm.train import flops, memory

# What a step reaches of the machine's matmul peak: of SmolLM2-135M on two CPU cores. Seconds
# predicted from it are good to a factor of two.
EFFICIENCY = 0.45


@dataclasses.dataclass(frozen=True)
class Budget:
    """Of 'lora', 'qlora' (a frozen base of four bits) or 'full'. total: bytes."""
    method: str
    trained: int
    total: int
    seconds: float


def budget(method, model, *, rank, batch_size, seq_len, num_steps, peak_flops):
    """The Budget of a method.

    Args:
      model: ModelConfig. rank: of the adapter. peak_flops: of the machine's matrix products.
    """
    adapter = None if method == 'full' else adapter_config(
        rank, 'nf4' if method == 'qlora' else 'float32')
    predicted = memory.predict_memory(model, batch_size, seq_len, adapter)
    per_token = flops.train_flops_per_token(model, seq_len)
    if adapter:
        per_token = flops.adapter_train_flops_per_token(model, shapes(model, adapter), seq_len)
    return Budget(method, predicted.num_trainable, predicted.total,
                  per_token * batch_size * seq_len * num_steps / (EFFICIENCY * peak_flops))


def adapter_config(rank, base='float32'):
    """LoRA of a rank on all linear layers; only its sizes matter here."""
    return lora.LoraConfig(rank=rank, alpha=1.0, targets=('*',), rslora=False, dora=False,
                           train_embeddings=False, base=base)


def shapes(model, adapter):
    """Shapes of the adapter of a LoraConfig on a ModelConfig."""
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), model))
    return jax.eval_shape(lambda x: lora.init_adapter(jax.random.key(0), x, adapter), params)


def bytes_text(number):
    """'1.3 GB'."""
    return f'{number / 1e9:.1f} GB' if number >= 1e9 else f'{number / 1e6:.0f} MB'
