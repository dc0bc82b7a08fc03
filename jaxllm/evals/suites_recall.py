"""Suites about what a model knows: bits per byte, recall, free answers, calibration, choice."""

import dataclasses

import numpy as np

from jaxllm.evals import answers, calibration, choice, perplexity, statistics
from jaxllm.evals.items import spread
from jaxllm.evals.suites import Result, cell, row, tags_of
from jaxllm.world import checkers

KNOWLEDGE = ('direct', 'two_hop', 'brand')
_MOST_POINTS = 100  # of a curve over thresholds


def perplexity_suite(subject):
    """Bits per byte of texts that were held out, bootstrapped over what they are about.

    All of them and by domain. A world's texts are of two parts, tellings in wordings that training
    documents use and in others, which are measured apart and not together.
    """
    docs, result = subject.documents, Result()
    bits = perplexity.bits(subject.params, subject.cfg, docs, seq_len=subject.seq_len)
    sizes = np.array([doc.num_bytes for doc in docs], float)
    subjects = np.array([doc.subject for doc in docs])
    groups, apart = {}, any(doc.part for doc in docs)
    for i, doc in enumerate(docs):
        part = f'bits_per_byte/{doc.part}' if doc.part else 'bits_per_byte'
        for name in ((part,) if doc.part or not apart else ()) + (f'{part}/{doc.domain}',):
            groups.setdefault(name, []).append(i)
    for name in sorted(groups):
        kept = groups[name]
        ratio = lambda w, b=bits[kept], s=sizes[kept]: (w @ b) / (w @ s)
        interval = statistics.bootstrap(bits[kept], clusters=subjects[kept], statistic=ratio,
                                        draws=subject.settings.draws)
        result.metrics[name] = cell(interval, 'bits per byte')
    result.rows = [{'id': doc.id, 'suite': 'perplexity', 'subject': doc.subject,
                    'domain': doc.domain, 'part': doc.part, 'bits': round(float(b), 4),
                    'bytes': doc.num_bytes}
                   for doc, b in zip(docs, bits, strict=True)]
    return result


def recall_suite(subject):
    """Choosing among all values of an attribute: log p of the whole sequence, question or cloze.

    What no document tells counts apart, as '<metric>/never_told': that is guessing.
    """
    result = Result()
    for style, name in (('qa', 'recall/restricted'), ('cloze', 'recall/cloze')):
        items = [item for item in subject.ask(KNOWLEDGE, style) if item.gold >= 0]
        found = subject.choices(items)
        right = [x['choice'] == item.gold for item, x in zip(items, found, strict=True)]
        kinds = [item.kind for item in items]
        for kind in dict.fromkeys(kinds):
            kept = [i for i, x in enumerate(kinds) if x == kind]
            full = name if kind == 'direct' else f'{name}/{kind}'
            some, values = [items[i] for i in kept], [right[i] for i in kept]
            subject.measure_told(result, full, values, some)
            result.metrics[f'{full}/chance'] = _exact(
                np.mean([1 / len(item.candidates) for item in some]), len(some))
            if kind == 'direct':
                result.plots.setdefault('recall', {})[name] = _curve(subject, values, some)
        result.rows += [
            row('recall', item, correct=ok, confidence=x['probs'].max(),
                given=item.candidates[x['choice']],
                gold_probability=round(float(x['probs'][item.gold]), 6),
                num_candidates=len(item.candidates))
            for item, x, ok in zip(items, found, right, strict=True)]
    return result


def _curve(subject, values, items):
    """[{'exposures', 'value', 'low', 'high', 'n'}] of all items, told or not, along exposures."""
    found, exposures = Result(), [item.tags['exposures'] for item in items]
    for bin_ in sorted(set(exposures)):
        kept = [i for i, x in enumerate(exposures) if x == bin_]
        subject.measure(found, bin_, [values[i] for i in kept],
                        tags_of([items[i] for i in kept]), sliced=False)
    return [{'exposures': bin_, **measured} for bin_, measured in found.metrics.items()]


def _exact(value, n):
    return {'value': round(float(value), 6), 'low': None, 'high': None, 'n': n, 'unit': 'share'}


@dataclasses.dataclass(frozen=True)
class Judged:
    """A free answer: right, says that it does not know, or wrong.

    correct: it begins with the right value, known or guessed (a chat model's holds it somewhere);
    to a question of the kind 'unanswerable', it says that it does not know.
    """
    item: object
    answer: object
    correct: bool
    abstains: bool

    @property
    def wrong(self):
        """Something was said, and it is not right; where no document has the answer, nothing is,
        not even a lucky guess."""
        return (not (self.correct and self.item.answerable) and not self.abstains
                and bool(self.answer.value))


def judged(items, found):
    """Judged of each item and its free answer."""
    every = []
    for item, answer in zip(items, found, strict=True):
        abstains = checkers.is_abstention(answer.text)
        says = answers.says_somewhere if answer.chat else answers.says
        right = abstains if item.kind == 'unanswerable' else says(answer.text, item.answer)
        every.append(Judged(item, answer, right, abstains))
    return every


def answers_suite(subject):
    """Free greedy answers: accuracy, abstention, confident errors, calibration."""
    result, settings = Result(), subject.settings
    for style, name in (('qa', 'recall/free'), ('cloze', 'recall/free_cloze')):
        items = subject.ask((*KNOWLEDGE, 'unanswerable') if style == 'qa' else ('direct',), style)
        all_of_them = judged(items, subject.answers([item.prompt for item in items]))
        asked = [x for x in all_of_them if x.item.kind == 'direct']
        values, some = [x.correct for x in asked], [x.item for x in asked]
        subject.measure_told(result, name, values, some)
        if asked:
            result.plots.setdefault('recall_free', {})[name] = _curve(subject, values, some)
        result.rows += [row('answers', x.item, correct=x.correct, confidence=x.answer.confidence,
                            given=x.answer.text[:200], abstains=int(x.abstains),
                            wrong=int(x.wrong),
                            confident_wrong=int(_confident_wrong(x, settings)))
                        for x in all_of_them]
        if style == 'qa':
            _honesty(subject, result, all_of_them)
    return result


def _confident_wrong(x, settings):
    return x.wrong and x.answer.confidence >= settings.confident_at


def _honesty(subject, result, every):
    """Of questions that documents answer, and of the others: abstention, errors, confident errors.

    The questions about people whom no document was to mention count once, as 'unanswerable'.
    """
    every = [x for x in every if x.item.kind == 'unanswerable' or x.item.tags['planned']]
    tags = tags_of([x.item for x in every])
    values = {'abstain': [x.abstains for x in every], 'wrong': [x.wrong for x in every],
              'confident_wrong': [_confident_wrong(x, subject.settings) for x in every]}
    for name, of in values.items():
        for answerable, tail in ((True, 'answerable'), (False, 'unanswerable')):
            kept = [i for i, x in enumerate(every) if x.item.answerable == answerable]
            subject.measure(result, f'{name}/{tail}', [of[i] for i in kept],
                            [tags[i] for i in kept])


def calibration_suite(subject):
    """Is a model as often right as it is confident: expected error, reliability tables, and how
    right it is if it answers only what it is most confident of."""
    result, draws = Result(), subject.settings.draws
    items = [item for item in subject.ask(('direct',), 'qa') if item.gold >= 0]
    found = subject.choices(items)
    free = [x for x in judged(items, subject.answers([item.prompt for item in items]))
            if x.answer.value and not x.abstains]
    for name, confidence, correct, of in (
            ('ece', [x['probs'].max() for x in found],
             [x['choice'] == item.gold for item, x in zip(items, found, strict=True)],
             items),
            ('ece/free', [x.answer.confidence for x in free], [x.correct for x in free],
             [x.item for x in free])):
        if not of:
            continue
        # A softmax may sum to a hair above 1.
        confidence = np.clip(confidence, 0, 1)
        interval = calibration.ece_interval(confidence, correct, draws=draws,
                                            clusters=[item.subject for item in of])
        result.metrics[name] = cell(interval, 'share')
        result.metrics[name.replace('ece', 'brier')] = _exact(
            calibration.brier(confidence, correct), len(of))
        auroc = calibration.auroc(confidence, correct)
        if np.isfinite(auroc):
            result.metrics[name.replace('ece', 'auroc')] = _exact(auroc, len(of))
        result.plots[f'reliability{name.removeprefix("ece")}'] = [
            {key: round(x, 6) for key, x in dataclasses.asdict(b).items()}
            for b in calibration.reliability(confidence, correct)]
        result.plots[f'risk_coverage{name.removeprefix("ece")}'] = [
            {'coverage': round(float(x), 6), 'accuracy': round(float(y), 6)}
            for x, y in spread(list(zip(*calibration.risk_coverage(confidence, correct),
                                        strict=True))[::-1], _MOST_POINTS)[::-1]]
    return result


_CHOICE_NAMES = {'sum': 'choice/acc', 'char': 'choice/acc_norm', 'token': 'choice/acc_token',
                 'pmi': 'choice/acc_pmi'}


def choice_suite(subject):
    """Multiple choice with the usual normalisations: the user's items, or the world's questions."""
    result = Result()
    items = subject.items or [item for item in subject.ask(KNOWLEDGE, 'qa') if item.gold >= 0]
    found = subject.choices(items)
    alone = choice.unconditional(subject.params, subject.cfg, subject.tokenizer, items,
                                 batch_size=subject.settings.score_batch)
    right = {}
    for name in choice.NORMALISATIONS:
        right[name] = [
            int(np.argmax(choice.normalised(x['scores'], base)[name])) == item.gold
            for item, x, base in zip(items, found, alone, strict=True)]
        subject.measure_told(result, _CHOICE_NAMES[name], right[name], items,
                             sliced=name == 'sum')
    if items:
        result.metrics['choice/chance'] = _exact(
            np.mean([1 / len(item.candidates) for item in items]), len(items))
    result.rows = [
        row('choice', item, correct=x['choice'] == item.gold, confidence=x['probs'].max(),
            given=item.candidates[x['choice']],
            **{f'correct_{name}': int(right[name][i]) for name in choice.NORMALISATIONS})
        for i, (item, x) in enumerate(zip(items, found, strict=True))]
    return result
