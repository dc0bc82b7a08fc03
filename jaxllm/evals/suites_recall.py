"""Suites about what a model knows: bits per byte, recall, free answers, calibration, choice."""

import dataclasses

import numpy as np

from jaxllm.evals import answers, calibration, choice, perplexity, statistics
from jaxllm.evals.suites import Result, cell, row, tags_of
from jaxllm.world import checkers

KNOWLEDGE = ('direct', 'two_hop', 'brand')


def perplexity_suite(subject):
    """Bits per byte of texts that were held out, by domain, bootstrapped over documents."""
    docs, result = subject.documents, Result()
    bits = perplexity.bits(subject.params, subject.cfg, docs, seq_len=subject.seq_len)
    sizes = np.array([doc.num_bytes for doc in docs], float)
    domains = np.array([doc.domain for doc in docs])
    for name, kept in [('bits_per_byte', np.ones(len(docs), bool))] + [
            (f'bits_per_byte/{domain}', domains == domain) for domain in sorted(set(domains))]:
        if kept.any():
            ratio = lambda w, b=bits[kept], s=sizes[kept]: (w @ b) / (w @ s)
            interval = statistics.bootstrap(bits[kept], statistic=ratio,
                                            draws=subject.settings.draws)
            result.metrics[name] = cell(interval, 'bits per byte')
    result.rows = [{'id': doc.id, 'suite': 'perplexity', 'subject': doc.id, 'domain': doc.domain,
                    'bits': round(float(b), 4), 'bytes': doc.num_bytes}
                   for doc, b in zip(docs, bits, strict=True)]
    return result


def recall_suite(subject):
    """Choosing among all values of an attribute: log p of the whole sequence, question or cloze."""
    result = Result()
    for style, name in (('qa', 'recall/restricted'), ('cloze', 'recall/cloze')):
        items = [item for item in subject.ask(KNOWLEDGE, style) if item.gold >= 0]
        found = subject.choices(items)
        right = [x['choice'] == item.gold for item, x in zip(items, found, strict=True)]
        tags = tags_of(items)
        kinds = [item.kind for item in items]
        for kind in dict.fromkeys(kinds):
            kept = [i for i, x in enumerate(kinds) if x == kind]
            full = name if kind == 'direct' else f'{name}/{kind}'
            subject.measure(result, full, [right[i] for i in kept], [tags[i] for i in kept])
            result.metrics[f'{full}/chance'] = _exact(
                np.mean([1 / len(items[i].candidates) for i in kept]), len(kept))
        result.rows += [
            row('recall', item, correct=ok, confidence=x['probs'].max(),
                given=item.candidates[x['choice']],
                gold_probability=round(float(x['probs'][item.gold]), 6),
                num_candidates=len(item.candidates))
            for item, x, ok in zip(items, found, right, strict=True)]
    result.plots['recall'] = {name: curve for name in ('recall/restricted', 'recall/cloze')
                              if (curve := _curve(result, name))}
    return result


def _curve(result, name):
    """[{'exposures', 'value', 'low', 'high', 'n'}] of a metric, along exposures."""
    bins = result.slices.get(name, {}).get('exposures', {})
    return [{'exposures': int(value), **found} for value, found in bins.items()]


def _exact(value, n):
    return {'value': round(float(value), 6), 'low': None, 'high': None, 'n': n, 'unit': 'share'}


@dataclasses.dataclass(frozen=True)
class Judged:
    """A free answer: right, says that it does not know, or wrong."""
    item: object
    answer: object
    correct: bool
    abstains: bool

    @property
    def wrong(self):
        """Something was said, and it is not right; of what cannot be answered nothing is."""
        return not self.correct and not self.abstains and bool(self.answer.value)


def judged(items, found):
    """Free answers to items: right if an answer begins with the right value, known or guessed."""
    return [Judged(item, answer,
                   answers.says(answer.text, item.answer), checkers.is_abstention(answer.text))
            for item, answer in zip(items, found, strict=True)]


def answers_suite(subject):
    """Free greedy answers: accuracy, abstention, confident errors, calibration."""
    result, settings = Result(), subject.settings
    for style, name in (('qa', 'recall/free'), ('cloze', 'recall/free_cloze')):
        items = subject.ask((*KNOWLEDGE, 'unanswerable') if style == 'qa' else ('direct',), style)
        all_of_them = judged(items, subject.answers([item.prompt for item in items]))
        asked = [x for x in all_of_them if x.item.kind == 'direct']
        subject.measure(result, name, [x.correct for x in asked],
                        tags_of([x.item for x in asked]))
        result.rows += [row('answers', x.item, correct=x.correct, confidence=x.answer.confidence,
                            given=x.answer.text[:200], abstains=int(x.abstains),
                            wrong=int(x.wrong),
                            confident_wrong=int(_confident_wrong(x, settings)))
                        for x in all_of_them]
        if style == 'qa':
            _honesty(subject, result, all_of_them)
    result.plots['recall_free'] = {name: curve for name in ('recall/free', 'recall/free_cloze')
                                   if (curve := _curve(result, name))}
    return result


def _confident_wrong(x, settings):
    return x.wrong and x.answer.confidence >= settings.confident_at


def _honesty(subject, result, every):
    """Of all questions, answerable or not: abstention, errors, confident errors."""
    # The direct questions about unknown people are asked again as 'unanswerable'.
    every = [x for x in every if x.item.kind != 'direct' or x.item.tags['planned']]
    tags = tags_of([x.item for x in every])
    values = {'abstain': [x.abstains for x in every], 'wrong': [x.wrong for x in every],
              'confident_wrong': [_confident_wrong(x, subject.settings) for x in every]}
    for name, of in values.items():
        subject.measure(result, name, of, tags)
        for answerable, tail in ((True, 'answerable'), (False, 'unanswerable')):
            kept = [i for i, x in enumerate(every) if x.item.answerable == answerable]
            subject.measure(result, f'{name}/{tail}', [of[i] for i in kept],
                            [tags[i] for i in kept], sliced=False)


def calibration_suite(subject):
    """Is a model as often right as it is confident: expected error and reliability tables."""
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
    return result


_CHOICE_NAMES = {'sum': 'choice/acc', 'byte': 'choice/acc_norm', 'token': 'choice/acc_token',
                 'pmi': 'choice/acc_pmi'}


def choice_suite(subject):
    """Multiple choice with the usual normalisations: the user's items, or the world's questions."""
    result = Result()
    items = subject.items or [item for item in subject.ask(KNOWLEDGE, 'qa') if item.gold >= 0]
    found = subject.choices(items)
    alone = choice.unconditional(subject.params, subject.cfg, subject.tokenizer, items,
                                 batch_size=subject.settings.score_batch)
    tags, right = tags_of(items), {}
    for name in choice.NORMALISATIONS:
        right[name] = [
            int(np.argmax(choice.normalised(x['scores'], base)[name])) == item.gold
            for item, x, base in zip(items, found, alone, strict=True)]
        subject.measure(result, _CHOICE_NAMES[name], right[name], tags, sliced=name == 'sum')
    if items:
        result.metrics['choice/chance'] = _exact(
            np.mean([1 / len(item.candidates) for item in items]), len(items))
    result.rows = [
        row('choice', item, correct=x['choice'] == item.gold, confidence=x['probs'].max(),
            given=item.candidates[x['choice']],
            **{f'correct_{name}': int(right[name][i]) for name in choice.NORMALISATIONS})
        for i, (item, x) in enumerate(zip(items, found, strict=True))]
    return result
