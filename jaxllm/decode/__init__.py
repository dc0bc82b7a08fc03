"""Text from a model: `generate` for batches of prompts, `stream` for one read as it comes."""

from jaxllm.decode.generation import Generation, generate
from jaxllm.decode.sampling import SamplingConfig
from jaxllm.decode.streaming import stream

__all__ = ['Generation', 'SamplingConfig', 'generate', 'stream']
