"""Prompts that models are asked once each: of all sources, each prompt once, evenly chosen."""

import dataclasses

import jax

from jaxllm.data import prompts as readers
from jaxllm.data.rejects import Rejects
from jaxllm.evals.items import spread


def read(sources, data, template, tokenizer, workdir):
    """[Prompt] with the name of its source before its id; rejects-<source>.jsonl says what cannot
    be asked.

    Args:
      sources: DialogueSpecs. data: has max_prompts (0 = all), max_prompt_tokens, max_reject_share.

    Raises:
      InputError: more of a source than data.max_reject_share cannot be asked.
    """
    found = {}
    for spec in sources:
        rejects = Rejects(workdir / f'rejects-{spec.name}.jsonl'
                          if jax.process_index() == 0 else '')
        own, _ = readers.read_prompts(spec, template, tokenizer, data.max_prompt_tokens, rejects)
        rejects.check(data.max_reject_share)
        for prompt in own:
            prompt = dataclasses.replace(prompt, id=f'{spec.name}/{prompt.id}')
            found.setdefault(prompt.ids, prompt)
    return spread(list(found.values()), data.max_prompts)
