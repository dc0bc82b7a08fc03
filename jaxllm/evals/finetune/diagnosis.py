"""What to change next, in the order settings, data, retraining: rules with their evidence.

Ref: the order is that of the field's advice: look at the settings first, at the data second, and
train anew only when the cause is known.
"""

import dataclasses

from jaxllm.evals.finetune.compare import GENERAL, MEASURED

SETTINGS, DATA, RETRAIN = 'settings', 'data', 'retrain'


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a run. losses: training loss by step; val: validation loss by evaluation
    [(step, nats per token)]; gap: held-out less training surprise; epochs: how often the data was
    read; lr, rank: settings; train: number of training records; findings: kinds of the preparation
    and how many records each names."""
    losses: tuple
    val: tuple
    gap: float
    epochs: float
    lr: float
    rank: int
    num_train: int
    findings: dict
    skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Advice:
    """kind: SETTINGS, DATA or RETRAIN. text: what and why. command: what to add to the command."""
    kind: str
    text: str
    command: str = ''


def diagnose(facts, compared):
    """Advice in the order in which to follow it; the last entry where nothing is wrong says so."""
    advice = [*_settings(facts, compared), *_data(facts, compared), *_retrain(facts, compared)]
    return advice or [Advice(SETTINGS, 'nothing stands out; to see whether it can be better still, '
                             'change one setting at a time', '--sweep')]


def _verdict(compared, name):
    return compared[name]['verdict'] if name in compared else ''


def _settings(facts, compared):
    first, last, best = facts.val[0][1], facts.val[-1][1], min(v for _, v in facts.val)
    at = next(step for step, v in facts.val if v == best)
    if facts.skipped or not all(x == x and x < 1e4 for x in facts.losses):
        yield Advice(SETTINGS, f'training was unstable ({facts.skipped} steps were skipped): lower '
                     'the learning rate', f'--config.optim.lr={facts.lr / 4:.2g}')
    elif best >= first:
        yield Advice(SETTINGS, f'the validation loss never fell below its start ({first:.3f}): the '
                     'learning rate is too high, or the data teaches nothing about the held-out '
                     'records', f'--config.optim.lr={facts.lr / 4:.2g}')
    elif at == facts.val[-1][0] and (len(facts.val) < 3 or facts.val[-2][1] - last
                                     > 0.02 * max(first - last, 1e-9)):
        yield Advice(SETTINGS, f'the validation loss was still falling at the end ({last:.3f}): '
                     'train longer', f'--epochs={max(2, round(2 * facts.epochs))}')
    if last > best + 0.05 * max(first - best, 1e-9):
        yield Advice(SETTINGS, f'over-fitting: the validation loss rose from {best:.3f} (step '
                     f'{at}) to {last:.3f}; the best checkpoint was kept. Fewer epochs save time, '
                     'a smaller rank may help', f'--epochs={max(1, round(facts.epochs / 2))}')
    elif facts.gap > 0.5 * best:
        yield Advice(SETTINGS, f'the model is more surprised by held-out answers than by training '
                     f'ones by {facts.gap:.2f} nats per token: it learns by heart. Fewer epochs, '
                     'or more varied data', f'--epochs={max(1, round(facts.epochs / 2))}')
    by_heart = compared['memorised']['after'] if 'memorised' in compared else 0.0
    if by_heart > 0.2:
        yield Advice(SETTINGS, f'{by_heart:.0%} of the training answers that were asked for come '
                     'back word for word: whoever talks to the model can read them. Fewer epochs, '
                     'a smaller rank, and no personal data in the file',
                     f'--epochs={max(1, round(facts.epochs / 2))}')
    if 'stopped' in compared and compared['stopped']['after'] < 0.8:
        yield Advice(SETTINGS, f'only {compared["stopped"]["after"]:.0%} of the answers end by '
                     'themselves: train longer, and see that answers are not cut off '
                     '(data.seq_len)', f'--epochs={max(2, round(2 * facts.epochs))}')
    lost = [name for name in GENERAL if _verdict(compared, name) == 'worse']
    if lost:
        what = ', '.join(MEASURED[name][0].lower() for name in lost)
        yield Advice(SETTINGS, f'forgetting: worse than before in what has nothing to do with your '
                     f'data ({what}). A lower learning rate, a smaller rank, or ordinary text '
                     'beside your data keeps more', '--replay=0.2')


_DATA = {
    'contradiction': 'contradict each other; decide which answer is right',
    'near_duplicate': 'are nearly the same; keep one of each',
    'language': 'are in another language than most',
    'damaged': 'hold wrongly decoded letters',
    'length': 'are far longer or shorter than the others',
    'cut_off': 'seem to be cut off',
    'format': 'have another form than most',
    'refusal': 'teach the model to refuse',
    'pii': 'hold personal data, which a model may repeat',
}


def _data(facts, compared):
    for kind, text in _DATA.items():
        count = facts.findings.get(kind, 0)
        if count and count >= max(2, 0.02 * facts.num_train):
            yield Advice(DATA, f'{count} of {facts.num_train} records {text}',
                         f'--drop={kind}' if kind in ('contradiction', 'near_duplicate', 'language',
                                                      'damaged', 'length', 'refusal', 'pii')
                         else '')
    helped = 'better' in (_verdict(compared, 'score'), _verdict(compared, 'nll'))
    if facts.num_train < 100 and not helped:
        yield Advice(DATA, f'{facts.num_train} training records are few; a few hundred good and '
                     'varied ones usually show an effect')
    if _verdict(compared, 'unknown/made_up') == 'worse' or _verdict(compared,
                                                                    'fact/wrong') == 'worse':
        yield Advice(DATA, 'the model makes up more than before: records that state facts which it '
                     'does not know teach it to answer anyway; add records in which the right '
                     'answer is that it does not know')


def _retrain(facts, compared):
    if _verdict(compared, 'nll') != 'better' and facts.num_train >= 100:
        yield Advice(RETRAIN, 'no gain on held-out records with enough data: the base may lack '
                     'what the task needs; compare other bases before training again',
                     '--model=ANOTHER --model=YETANOTHER')
    if _verdict(compared, 'nll') == 'better' and _verdict(compared, 'score') == 'worse':
        yield Advice(RETRAIN, 'the right answers have become likelier and the given answers worse: '
                     'look at them side by side before anything else')
