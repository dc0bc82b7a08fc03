"""The same requests to several models."""

import jax

from jaxllm import decode
from jaxllm.stages import artifact


def ask(runs, prompts, *, max_new_tokens=40, temperature=0.0, seed=0):
    """Asks every model; a base model continues the text, a chat model answers it.

    Args:
      runs: {name: run directory, FILE.gguf or folder of weights}.
      prompts: texts.

    Returns:
      A list of {'prompt': text, name: answer, ...}, one per prompt.
    """
    sampling = decode.SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
    rows = [{'prompt': prompt} for prompt in prompts]
    for name, path in runs.items():
        model = artifact.load(path)
        with jax.set_mesh(model.mesh):
            said = decode.generate(
                model.params, model.model, [model.prompt(prompt) for prompt in prompts], sampling,
                stop_ids=model.stop_ids, pad_id=model.tokenizer.pad_id, seed=seed,
                tokenizer=model.tokenizer)
        for row, text in zip(rows, said.texts, strict=True):
            row[name] = text.strip()
    return rows
