"""The checks: each takes Conversations and the settings and returns Findings."""

import collections
import functools
import json
import re

import numpy as np

from jaxllm.data.prepare import personal, similar
from jaxllm.data.prepare.findings import (ERROR, INFO, WARNING, Finding, count, lines, many,
                                          places, short)

_MOJIBAKE = re.compile(
    'Ã[\u0080-\u00bf©¨ª«¤¶¼]|â€[\u0080-\u00ff™œ\u009d“”]|\ufffd|Â[\u00a0-\u00bf]')
_REFUSAL = re.compile(r"\bas an? (?:AI|artificial intelligence)(?: language)? (?:model|assistant)\b"
                      r"|\bI(?: am|'m) (?:sorry|unable)[^.]{0,40}\b(?:cannot|can't|unable)\b", re.I)
_ENDINGS = tuple('.!?…。！？:;)]}"\'»”’`*|>')
_MIN_FOR_LANGUAGE = 40  # characters; shorter texts are guessed wrong too often


def whole(record):
    """All that a record says, as one text."""
    return '\n'.join(message['content'] for message in record.messages)


def exact_duplicates(records, config):
    """Records that say the same as an earlier one, but for case, spaces and punctuation."""
    del config
    first, copies = {}, []
    for record in records:
        key = (similar.normal(whole(record)), tuple(map(similar.normal, record.rejected)))
        if key in first:
            copies.append(record)
        else:
            first[key] = record
    if not copies:
        return []
    return [Finding('duplicate', ERROR, f'the same as an earlier record: '
                    f'{many(copies)}; each is kept once', places(copies),
                    tuple(short(whole(x)) for x in copies[:3]))]


def near_duplicates(records, config):
    """Records that are nearly the same as an earlier one."""
    pairs = similar.near_pairs([whole(x) for x in records], config.near_duplicate)
    later = sorted({j for i, j in pairs})
    if not later:
        return []
    found = [records[j] for j in later]
    partner = {j: records[i] for i, j in reversed(pairs)}
    return [Finding('near_duplicate', WARNING, f'nearly the same as an earlier record: '
                    f'{many(found)}; the model hears them more often than others', places(found),
                    tuple(f'{partner[j].origin}: {short(whole(partner[j]), 90)}  ~  '
                          f'{records[j].origin}: {short(whole(records[j]), 90)}'
                          for j in later[:3]))]


def contradictions(records, config):
    """The same question with different answers."""
    by_prompt = collections.defaultdict(list)
    for record in records:
        by_prompt[similar.normal('\n'.join(m['content'] for m in record.prompt))].append(record)
    found, examples = [], []
    for same in by_prompt.values():
        for record in same[1:]:
            a, b = similar.shingles(same[0].answer), similar.shingles(record.answer)
            if similar.jaccard(a, b) < config.near_duplicate:
                found.append(record)
                examples.append(f'{short(record.request, 80)}  →  {same[0].origin}: '
                                f'{short(same[0].answer, 60)}  |  {record.origin}: '
                                f'{short(record.answer, 60)}')
    if not found:
        return []
    return [Finding('contradiction', WARNING, f'another answer to a question than in an '
                    f'earlier record: {many(found)}; the model cannot learn both', places(found),
                    tuple(examples[:5]))]


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text):
    """ISO code of the language that a text is most likely in, or '' if it is too short to say."""
    if len(text) < _MIN_FOR_LANGUAGE:
        return ''
    code, probability = _identifier().classify(text[:2000])
    return code if probability > 0.9 else ''


def languages(records, config):
    """In which languages answers are, and which records stand out."""
    found = [language_of(f'{record.request}\n{record.answer}') for record in records]
    counts = collections.Counter(filter(None, found))
    if not counts:
        return []
    total, (main, most) = counts.total(), counts.most_common(1)[0]
    shares = ', '.join(f'{code} {count / total:.0%}' for code, count in counts.most_common(5))
    out = [Finding('languages', INFO, f'languages, of the records long enough to tell: {shares}')]
    rare = [record for record, code in zip(records, found, strict=True)
            if code and code != main and counts[code] < config.language_share * total]
    if rare and most > 0.5 * total:
        out.append(Finding('language', WARNING, f'in another language than most, it seems: '
                           f'{many(rare)}', places(rare),
                           tuple(f'{x.origin}: {short(whole(x))}' for x in rare[:3])))
    return out


def lengths(records, config, count_tokens=None, context=0):
    """How long prompts and answers are, outliers, and what does not fit the context."""
    out = []
    for name, of in (('prompts', lambda x: x.request), ('answers', lambda x: x.answer)):
        sizes = np.array([len(of(x)) for x in records], float)
        low, middle, high = np.percentile(sizes, [5, 50, 95])
        out.append(Finding('lengths', INFO, f'{name}: {middle:.0f} characters in the middle, 90% '
                           f'between {low:.0f} and {high:.0f}'))
        logs = np.log1p(sizes)
        spread = max(1.4826 * np.median(np.abs(logs - np.median(logs))), 0.1)
        odd = np.abs(logs - np.median(logs)) > config.outlier * spread
        found = [x for x, is_odd in zip(records, odd, strict=True) if is_odd]
        if found:
            out.append(Finding('length', WARNING, f'{name} far longer or shorter than the others: '
                               f'{many(found)}', places(found),
                               tuple(f'{x.origin}: {len(of(x))} characters: {short(of(x), 80)}'
                                     for x in found[:3])))
    if count_tokens and context:
        long = [x for x in records if count_tokens(x) > context]
        if long:
            out.append(Finding('too_long', WARNING, f'more than {context} tokens, so that they are '
                               f'cut in training: {many(long)}; raise seq_len or split them',
                               places(long)))
    return out


def damaged(records, config):
    """Letters that were decoded wrongly, and answers that seem to be cut off."""
    del config
    out = []
    bad = [x for x in records if _MOJIBAKE.search(whole(x))]
    if bad:
        out.append(Finding('damaged', WARNING, f'letters that were read in the wrong encoding: '
                           f'{many(bad)}; save the file as UTF-8 anew', places(bad),
                           tuple(short(whole(x)) for x in bad[:3])))
    ends = [x.answer.rstrip().endswith(_ENDINGS) for x in records]
    long = [len(x.answer) > 200 for x in records]
    if sum(e for e, is_long in zip(ends, long, strict=True) if is_long) > 0.8 * max(sum(long), 1):
        cut = [x for x, e, is_long in zip(records, ends, long, strict=True) if is_long and not e]
        if cut:
            out.append(Finding('cut_off', WARNING, f'long answers without a full stop at the end, '
                               f'unlike the others: {many(cut)}; were they cut off?', places(cut),
                               tuple('… ' + short(x.answer[-80:]) for x in cut[:3])))
    return out


def pii(records, config):
    """Personal and secret data."""
    kinds, found = collections.defaultdict(list), []
    for record in records:
        hits = {kind for kind, *_ in personal.find(whole(record))}
        found += [record] if hits else []
        for kind in hits:
            kinds[kind].append(record)
    if not found:
        return []
    parts = '; '.join(f'{personal.NAMES[kind]}: {lines(places(some))}'
                      for kind, some in kinds.items())
    what = 'they are masked' if config.mask_pii else 'a model may repeat them to anybody'
    return [Finding('pii', WARNING, f'personal or secret data in {count(found)} ({parts}); '
                    f'{what}', places(found))]


def answers(records, config):
    """The form of answers: JSON or not, few labels, the prompt repeated, boilerplate refusals."""
    out = []
    json_ones = [x for x in records if _is_json(x.answer)]
    if 0 < len(json_ones) < len(records) and not 0.2 < len(json_ones) / len(records) < 0.8:
        odd = (json_ones if len(json_ones) < len(records) / 2 else
               [x for x in records if x not in json_ones])
        out.append(Finding('format', WARNING, f'{len(json_ones)} of {len(records)} answers are '
                           f'JSON; the odd ones are {lines(places(odd))}', places(odd)))
    labels = collections.Counter(similar.normal(x.answer) for x in records)
    if 1 < len(labels) <= config.max_labels and len(records) >= 5 * len(labels):
        shares = ', '.join(f'{label!r} {count / len(records):.0%}'
                           for label, count in labels.most_common(8))
        most = labels.most_common(1)[0][1] / len(records)
        out.append(Finding('labels', WARNING if most > config.label_share else INFO,
                           f'the answers are labels: {shares}'
                           + ('; a model that always says the most common one looks good on such '
                              'data' if most > config.label_share else '')))
    echo = [x for x in records
            if len(x.request) > 30 and similar.normal(x.answer) == similar.normal(x.request)]
    if echo:
        out.append(Finding('echo', WARNING, f'the answer repeats the prompt: {many(echo)}',
                           places(echo)))
    boiler = [x for x in records if _REFUSAL.search(x.answer)]
    if boiler:
        out.append(Finding('refusal', WARNING, f'the answer is the refusal of an AI assistant: '
                           f'{many(boiler)}; the model will learn to refuse, too',
                           places(boiler), tuple(short(x.answer) for x in boiler[:3])))
    same = [x for x in records if x.answer in x.rejected]
    if same:
        out.append(Finding('no_preference', WARNING, f'the chosen answer is also rejected: '
                           f'{many(same)}', places(same)))
    return out


def _is_json(text):
    if not text.lstrip().startswith(('{', '[')):
        return False
    try:
        json.loads(text)
        return True
    except ValueError:
        return False


def leakage(train, held_out, config):
    """Training records whose prompt, or all of which, is nearly one that is held out."""
    texts = [x.request for x in held_out] + [x.request for x in train]
    pairs = similar.near_pairs(texts, config.near_duplicate)
    found = sorted({j - len(held_out) for i, j in pairs if i < len(held_out) <= j})
    if not found:
        return []
    leaking = [train[i] for i in found]
    return [Finding('leakage', ERROR, f'training records that ask what a held-out one asks: '
                    f'{many(leaking)}; they are left out, so that the evaluation stays honest',
                    places(leaking),
                    tuple(short(x.request) for x in leaking[:3]))]


CHECKS = (near_duplicates, contradictions, languages, damaged, pii, answers)
