"""The tokenizer stage: learns a tokenizer from text, or loads one, and reports its fertility."""

import jax

from jaxllm.config import check_keys, section, to_json
from jaxllm.report.run import write_report
from jaxllm.stages import cleaning, corpus, lineage
from jaxllm.train.progress import stage as say

OUTPUTS = 'tokenizer',


def prepare(config):
    """Checks the config. Returns (TokenizerConfig, SourceSpecs)."""
    keys = 'stage', 'seed', 'data', 'tokenizer'
    check_keys(config, (*keys, 'world') if 'world' in config else keys)
    cleaning.settings(config.data)
    return (section(corpus.TokenizerConfig, config.tokenizer, 'tokenizer'),
            corpus.source_specs(config))


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    prepare(config)
    return to_json(config)


def run(config, workdir):
    """Writes `workdir/tokenizer`: tokenizer.json, fertility.json."""
    settings, specs = prepare(config)
    tokenizer = corpus.make_tokenizer(settings, specs, workdir / 'tokenizer',
                                      corpus.reader(config.data, workdir / 'data'))
    if jax.process_index() == 0:
        if cleaning.settings(config.data) is not None:
            cleaning.write_report(specs, workdir / 'data')
        lineage.write_lineage(workdir, config, tokenizer=tokenizer.fingerprint)
        say(f'{tokenizer.vocab_size:,} tokens in {workdir / "tokenizer"}')
        say(f'report: {write_report(workdir)}')
