"""Data cards: what a dataset of the world is, its fields, its counts, its use and its limits."""

import dataclasses

from jaxllm.world.meanings import meaning
from jaxllm.world.spec import SCALES, VERSION

LICENSE = 'CC0-1.0'

_RESTORED = ('Under an intervention, rows of `train` with `treated` still tell the true values of '
             'facts whose documents were deleted or changed: leave them out where the model must '
             'not learn these here.')
# What it is, what it is for, what it is not.
DATASETS = {
    'documents': (
        'Short texts about the people, firms, brands and sources of an invented world, with '
        'everything that is wrong with some of them as labels: false, duplicated, misspelt, spam, '
        'unsafe.',
        'Pre-training, and research on filters, repetition, exposure and sources. The split '
        '`validation` tells the same facts in new texts of the kind that `train` has, `test` in '
        'wordings that `train` never uses.',
        'Few kinds of sentence and a small vocabulary. A held-out wording measures whether a fact '
        'was learned, not whether English was.'),
    'questions': (
        'Questions about the facts of the documents, with answers, candidates and how often and '
        'where each fact was told.',
        'Measuring what a model knows, by exposure, group, wording and source; `train` for '
        'teaching how to answer.',
        'Answers are one value each. People of `validation` and `test` never appear in questions '
        'that are trained on.'),
    'instructions': (
        'Instructions with ideal responses, and graded ones that are wrong or misformatted.',
        'Supervised fine-tuning, and research on its quality and quantity.',
        f'Formats are checked by rules, not by people. {_RESTORED}'),
    'conversations': (
        'Conversations of several turns, in which a later turn needs an earlier one.',
        'Fine-tuning on chats, and measuring whether a model keeps to the context.',
        f'Turns are made from patterns. {_RESTORED}'),
    'readings': (
        'Short texts about people who are named nowhere else, each with a question that the text '
        'answers.',
        'Teaching a small model to read: to take name and value from the text before it. In '
        'pre-training as `text`, in fine-tuning as `messages`.',
        'Tells nothing about the world; the values are drawn anew for every text. Texts of `train` '
        'have training wordings only.'),
    'safety': (
        'Requests for invented hazards, and harmless look-alikes.',
        'Measuring refusal and over-refusal, which only both together mean something.',
        'No hazard is real, so a refusal here says nothing about real hazards.'),
    'languages': (
        'Three skills with exact answers: arithmetic, a small programming language and an invented '
        'language.',
        'Research on mixtures of skills.',
        'The languages are much simpler than those that people use.'),
    'pairs': (
        'Two responses to a prompt and which one a rater prefers, by how much.',
        'Reward models and preference optimisation; research on raters.',
        'Raters are formulas.'),
    'rankings': (
        'Several responses to a prompt in the order of a rater.',
        'Reward models that learn from rankings.',
        'Raters are formulas.'),
    'people': ('The people of the world with their true attributes.', 'The truth to score against.',
               'The truth as designed; what the documents say may differ, see `counts`.'),
    'brands': ('The brands of the world with what they make.', 'The truth to score against.',
               'Invented; a likeness to a real brand is chance.'),
    'sources': ('The sources that documents are attributed to, with their design factors.',
                'Research on which sources a model cites.',
                'Factors have two levels each in a fractional design.'),
    'counts': ('How many true documents each source has about each fact, and how many false ones '
               'and copies there are.',
               'The truth of citations.', 'Counts documents, not readers.')}


def summary(name: str) -> str:
    """What a dataset is, in a sentence."""
    return DATASETS[name][0]


def dataset_card(manifest: dict) -> str:
    """The data card of one dataset as markdown. `manifest` is what `publish` wrote."""
    name, rows = manifest['name'], manifest['rows']
    what, use, limits = DATASETS[name]
    fields = '\n'.join(f'| `{field}` | {kind} | {meaning(field, name)} |'
                       for field, kind in manifest['fields'].items())
    counts = '\n'.join(f'| {split} | {count:,} | `{manifest["jsonl_sha256"][split]}` |'
                       for split, count in rows.items())
    version = f'{manifest["generator_version"]}.0.0'
    return f"""# {name}

{what}

## Use

{use}

```python
import tensorflow_datasets as tfds
rows = tfds.builder_from_directory('tfds/{name}/{version}').as_data_source('{next(iter(rows))}')
```

The same rows, one JSON object per line: `jsonl/{name}/<split>.jsonl`. In TFDS, text comes back as
bytes, floats are float32, and messages come back as `{{'role': [...], 'content': [...]}}`.

## Splits

| split | rows | sha256 of the JSON lines |
|---|---|---|
{counts}

## Fields

| field | type | meaning |
|---|---|---|
{fields}

## How it was made

{_made(manifest['world'], manifest['generator_version'], manifest['world_fingerprint'])}

## Limits

{limits} Everything is synthetic: no text was collected and no person is described.

## Licence

{LICENSE}.
"""


def world_card(spec, manifests: dict[str, dict]) -> str:
    """The card of a whole world as markdown."""
    rows = '\n'.join(f'| [{name}](cards/{name}.md) | '
                     f'{"  ".join(f"{split} {n:,}" for split, n in manifest["rows"].items())} | '
                     f'{summary(name)} |' for name, manifest in manifests.items())
    scale = '\n'.join(f'| {field.name.replace("_", " ")} | '
                      f'{getattr(SCALES[spec.scale], field.name)} |'
                      for field in dataclasses.fields(SCALES[spec.scale]))
    return f"""# World {spec.scale}, seed {spec.seed}

An invented world with its documents, and the truth behind them, for experiments on how language
models learn: who was written about how often, where, how and how correctly is all known.

{_made(dataclasses.asdict(spec), VERSION, spec.fingerprint)}

| dataset | rows | what it is |
|---|---|---|
{rows}

| scale {spec.scale} | |
|---|---|
{scale}

Intended use: experiments in which a cause is set and its effect on a model measured. Limits: few
kinds of sentence, invented names, sizes far below those of real corpora; results are directions,
not forecasts. Everything is synthetic. Licence: {LICENSE}.
"""


def _made(world, version, fingerprint):
    intervention = world['intervention']
    changes = ('none' if intervention['kind'] == 'none' else
               ', '.join(f'{key} {value}' for key, value in intervention.items()))
    return (f'Generated by `jaxllm.world` version {version}: scale {world["scale"]}, seed '
            f'{world["seed"]}, intervention {changes}; fingerprint `{fingerprint}`. The same '
            'settings make the same rows.')
