"""Facts in the long tail: what a model has read more often, it recalls more often.

    jaxllm sweep --config=experiments/ablations/long_tail.py --workdir=runs/long_tail
    jaxllm sweep --config=experiments/ablations/long_tail.py:smoke --workdir=/tmp/long_tail
    jaxllm run --config=experiments/ablations/long_tail.py --workdir=runs/natural    # one arm alone

A base model is trained on a synthetic world in which every person's facts are told by 0, 1, 2, 4,
... 64 documents, and is then asked for each fact in wordings that no training document uses: which
of all values of the attribute makes the most likely sentence? Arms share the world and the initial
weights: in `deleted` all documents about half of the people with 32 documents per fact are taken
away, and nothing else changes.

Expect (first command, Python 3.11.7, jax 0.10.2, two CPU cores, nothing cached): 9 minutes, and

    DIRECTION_ONLY gain per doubling +0.12 [+0.115, +0.126] over 3 seeds
    DIRECTION_ONLY monotone +0.984 [+0.921, +0.992] over 3 seeds
    DIRECTION_ONLY deletion +0.533 [+0.484, +0.579] over 3 seeds

Three seeds can show no more than the direction; with --seeds=0,1,2,3,4 all three are REPLICATED
(BUILD_NOTES.md).

Ref: Kandpal et al. 2023, Large Language Models Struggle to Learn Long-Tail Knowledge (arXiv
2211.08411), figures 1 and 4: the correlation, and the retrained counterfactual.
"""

import pathlib

import ml_collections
import numpy as np

from jaxllm.config import load_file, parse_arg
from jaxllm.evals import effects, statistics
from jaxllm.evals.verdict import Rule
from jaxllm.report import figures

CLAIM = ('The more documents tell a fact, the more often a base model recalls it, and without them '
         'it does not.')
SEEDS = 0, 1, 2
REFERENCE = 'natural'
FILES = pathlib.Path(__file__).parents[1]
DELETED_BIN = 32  # documents per fact of the people of whom half are deleted

RECALL = dict(suite='recall')  # the rows that the rules read
# Facts asked in wordings that no training document uses, of which nothing false was told and no
# document was copied.
ASKED = dict(suite='recall', style='cloze', kind='direct', held_out=True, copies=0, false_count=0)


def get_config(arg=''):
    """`scale` is that of the world, `size` that of the model; `smoke` is the path in seconds."""
    arg = parse_arg(arg, smoke=False, scale='nano', size='')
    smoke = 'smoke,' if arg.smoke else ''
    # Documents alone: texts to be read about other people would say nothing about these.
    base = load_file(f'{FILES / "pretrain.py"}:{smoke}world={arg.scale},size={arg.size},reading=0')
    base.train.sample_every = 0
    evaluate = load_file(str(FILES / 'evaluate.py'))
    evaluate.run, evaluate.suites = '@base', ('recall', 'perplexity')
    evaluate.settings.update(split='all', wordings='held_out')
    if arg.smoke:
        evaluate.settings.update(max_items=64, max_documents=4, draws=200)
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.chain'
    config.seed = 0
    base.seed = evaluate.seed = config.get_ref('seed')
    base.world.seed = config.get_ref('seed')
    config.steps = dict(base=base, eval=evaluate)
    return config


def get_sweep():
    intervention = 'steps.base.world.intervention.'
    natural = {'name': 'natural', 'set': {}}
    deleted = {'name': 'deleted', 'set': {
        f'{intervention}kind': 'delete', f'{intervention}exposures': DELETED_BIN,
        f'{intervention}share': 0.5}}
    return [natural, deleted]


def get_rules():
    """Stated before the runs; the thresholds come from a pilot with other text and another
    tokenizer."""
    return [
        Rule('gain per doubling', 'Recall grows by at least 8 points per doubling of the '
             'documents.', effects.of('natural', effects.slope(**ASKED)), delta=0.08, where=RECALL),
        Rule('monotone', 'The rank correlation of recall with the number of documents is at least '
             '0.9.', effects.of('natural', effects.rank_correlation('correct', 'planned', **ASKED)),
             delta=0.9, where=RECALL),
        Rule('deletion', 'Deleting the documents of a fact costs at least 30 points of recall.',
             effects.on_treated('natural', 'deleted', **ASKED), delta=0.30, where=RECALL),
    ]


def get_figures(rows):
    """Recall against the number of documents, per arm; people of all seeds."""
    series = [figures.Series(arm, tuple(_points(rows, arm)), colour=number, band=True)
              for number, arm in enumerate(('natural', 'deleted'))]
    chance = float(np.mean(1 / _column(rows, 'natural', 'num_candidates')))
    return [figures.points('Recall', 'share of facts', series, scale='log2',
                           x_label='documents per fact, as planned', y_range=(0.0, 1.0),
                           reference=(chance, 'chance'))]


def _points(rows, arm):
    planned, correct, seed, subject = (_column(rows, arm, name) for name in (
        'planned', 'correct', 'seed', 'subject'))
    for value in np.unique(planned):
        at = planned == value
        yield figures.Point.of(int(value), statistics.bootstrap(
            correct[at].astype(float), clusters=np.char.add(seed[at].astype(str), subject[at])))


def _column(rows, arm, name):
    """A column of an arm's rows that are asked about, the seeds one after the other."""
    parts = []
    for seed, arms in rows.items():
        kept = effects.select(arms[arm], ASKED)
        parts.append(np.full(kept.sum(), seed) if name == 'seed' else arms[arm][name][kept])
    return np.concatenate(parts)
