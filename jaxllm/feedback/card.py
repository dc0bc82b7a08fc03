"""The data card of exported comparisons."""

_MEANINGS = {
    'id': 'of the record', 'split': 'by the prompt: equal prompts are in one split',
    'messages': 'the prompt: role and content of each message',
    'responses': 'in a fixed order that says nothing of their sources',
    'ranks': '1 is the best, equal numbers are ties', 'sources': 'what wrote each response',
    'chosen': 'the better response', 'rejected': 'the worse one',
    'margin': 'how much better, in grades, where the rater was asked; else 0',
    'source_chosen': 'what wrote it', 'source_rejected': 'what wrote it',
    'item': 'several raters of one item are separate records with the same item',
    'rater': 'the name that the rater gave; empty in a consensus', 'criterion': 'what was asked',
    'raters': 'how many raters are in the record',
    'all_bad': 'the rater (in a consensus: most of them) found no response acceptable',
    'comment': 'what the rater wrote about it'}
_WHAT = {'rankings': 'a row per rater and item', 'pairs': 'every two responses of a ranking that '
         'are not tied', 'consensus': 'a row per item: ranks by the mean of all raters'}


def card(title, origin, license, counts, fields, version, tied, notes):
    """Markdown. Args: counts: {name: {split: rows}}; tied: pairs that are in no row of `pairs`."""
    rows = '\n'.join(f'| {name} | {"  ".join(f"{split} {n:,}" for split, n in found.items()) or 0} '
                     f'| {_WHAT[name]} |' for name, found in counts.items())
    parts = '\n\n'.join(_fields(name, fields[name]) for name in counts if name != 'consensus')
    more = ''.join(f'\n- {note}' for note in notes)
    return f"""# {title}

Responses to prompts in the order of raters, for reward models and preference optimisation.

| dataset | rows | what it is |
|---|---|---|
{rows}

```python
import tensorflow_datasets as tfds
rows = tfds.builder_from_directory('tfds/rankings/{version}').as_data_source('train')
```

The same rows, one JSON object per line: `jsonl/<dataset>/<split>.jsonl`. A split without a row has
no file.

{parts}

## How it was made

{origin}

## Limits

- {tied:,} pairs of responses were tied: they are in `rankings`, not in `pairs`.
- Records with `all_bad` have a ranking too: the better of two bad responses.
- Raters are named as they named themselves: ask them before you publish this.{more}

## Licence

{license}
"""


def _fields(name, kinds):
    rows = '\n'.join(f'| `{field}` | {kind} | {_MEANINGS[field]} |'
                     for field, kind in kinds.items())
    return f'## Fields of {name}\n\n| field | type | meaning |\n|---|---|---|\n{rows}'
