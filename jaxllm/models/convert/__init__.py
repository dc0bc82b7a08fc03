"""Models of others: Hugging Face safetensors and GGUF, read and written one tensor at a time."""

from jaxllm.models.convert.export import export_gguf, export_hf
from jaxllm.models.convert.foreign import Foreign, open_model
from jaxllm.models.convert.weights import TreeWeights

__all__ = ['Foreign', 'TreeWeights', 'export_gguf', 'export_hf', 'open_model']
