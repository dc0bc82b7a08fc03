"""jaxllm: the whole life of a language model as one JAX/Flax research codebase."""
