"""The tokenizer stage: learns a tokenizer from text, or loads one, and reports its fertility."""

import jax

from jaxllm.config import section
from jaxllm.stages import corpus
from jaxllm.train.progress import stage as say


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    section(corpus.TokenizerConfig, config.tokenizer, 'tokenizer')
    corpus.source_specs(config.data)
    return str(config)


def run(config, workdir):
    """Writes `workdir/tokenizer`: tokenizer.json, fertility.json."""
    settings = section(corpus.TokenizerConfig, config.tokenizer, 'tokenizer')
    tokenizer = corpus.make_tokenizer(settings, corpus.source_specs(config.data),
                                      workdir / 'tokenizer')
    if jax.process_index() == 0:
        say(f'{tokenizer.vocab_size:,} tokens in {workdir / "tokenizer"}')
