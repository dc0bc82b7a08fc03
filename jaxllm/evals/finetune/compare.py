"""One model on everything that is asked, and two such results against each other."""

import dataclasses
import math

import numpy as np

from jaxllm.errors import InputError
from jaxllm.evals import statistics
from jaxllm.evals.answers import normalise
from jaxllm.evals.finetune import metrics, probes
from jaxllm.evals.finetune.asked import likelihood, replies

_BY_HEART_WORDS = 6  # a shorter answer may be right by chance


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is asked."""
    max_new_tokens: int = 96   # of answers to held-out prompts; probes get a third
    max_prompts: int = 32      # held-out prompts that are answered; 0 = all
    max_probes: int = 0        # of each kind of fixed question; 0 = all
    seeds: int = 3             # sampled answers per prompt, for consistency
    seed_prompts: int = 6      # prompts that are asked several times
    temperature: float = 0.7
    batch_size: int = 16

    def __post_init__(self):
        for field in dataclasses.fields(self):
            least = field.name not in ('max_prompts', 'max_probes', 'temperature')
            if getattr(self, field.name) < least:
                raise InputError(f'evaluate.{field.name}={getattr(self, field.name)} must be at '
                                 f'least {int(least)}')


def ask(asked, held_out, train_sample, general, plan, measure, shape, say=lambda text: None):
    """Everything that one model is asked, as plain data: lists with a value per item.

    Args:
      asked: Asked.
      held_out, train_sample: Conversations, the latter as many from training.
      general: texts (str) of ordinary English.
      measure, shape: see metrics.measure_for and metrics.shape_of, of the training answers.
      say: told what is going on.

    Returns:
      {name: [...]}: 'nll', 'tokens', 'bytes' of held-out answers and 'train_*' of training ones;
      'general_nll', 'general_bytes'; 'preferred' of pairs; 'memorised' of training answers;
      'answers' [{...}] of held-out prompts; 'format', 'fact', 'unknown' [{...}] of the fixed
      questions; 'agreement' by kind.
    """
    say('likelihood of the held-out answers ...')
    found = {}
    for name, records in (('', held_out), ('train_', train_sample)):
        seen = likelihood(asked, [x.messages for x in records])
        found |= {f'{name}nll': seen.nll.tolist(), f'{name}tokens': seen.tokens.tolist(),
                  f'{name}bytes': seen.bytes.tolist()}
    found |= _general(asked, general)
    found['preferred'] = _preferred(asked, held_out)
    say('answers to held-out prompts ...')
    chosen = _some(held_out, plan.max_prompts)
    given = replies(asked, [x.prompt for x in chosen], max_new_tokens=plan.max_new_tokens,
                    batch_size=plan.batch_size)
    found['answers'] = [{
        'id': x.id, 'origin': x.origin, 'prompt': x.request, 'reference': x.answer,
        'text': reply.text, 'stopped': reply.stopped, 'confidence': reply.confidence,
        'score': metrics.score(measure, reply.text, x.answer),
        'follows': metrics.follows(shape, reply.text)}
        for x, reply in zip(chosen, given, strict=True)]
    found['memorised'] = _memorised(asked, _some(train_sample, plan.max_prompts), plan)
    say('the same questions again and in other words ...')
    found['agreement'] = _agreement(asked, chosen[:plan.seed_prompts], plan)
    say('fixed questions: formats, facts, things that do not exist ...')
    return found | _probes(asked, plan)


def _some(items, most):
    """At most `most` of the items, evenly spread; 0 = all."""
    if not most or len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def _general(asked, texts):
    """Bits of ordinary text, read behind a user's message as an answer would be."""
    seen = likelihood(asked, [[{'role': 'user', 'content': 'Write a text.'},
                               {'role': 'assistant', 'content': text}] for text in texts])
    return {'general_nll': seen.nll.tolist(), 'general_bytes': seen.bytes.tolist(),
            'general_tokens': seen.tokens.tolist()}


def _memorised(asked, records, plan):
    """Of each training record: does the model write the beginning of its answer word for word?

    The beginning is at most `plan.max_new_tokens` tokens. Very short answers say nothing and are
    left out.
    """
    long = [x for x in records if len(x.answer.split()) >= _BY_HEART_WORDS]
    given = replies(asked, [x.prompt for x in long], max_new_tokens=plan.max_new_tokens,
                    batch_size=plan.batch_size)
    words = [(normalise(x.answer).split(), normalise(reply.text).split())
             for x, reply in zip(long, given, strict=True)]
    same = lambda theirs, mine, n: n >= _BY_HEART_WORDS and theirs[:n] == mine[:n]
    return [float(same(theirs, mine, min(len(theirs), len(mine)))) for theirs, mine in words]


def _preferred(asked, records):
    """Of each pair: is the chosen answer likelier per token than the rejected one?"""
    pairs = [(x.messages, (*x.prompt, {'role': 'assistant', 'content': worse}))
             for x in records for worse in x.rejected]
    if not pairs:
        return []
    better, worse = (likelihood(asked, side) for side in zip(*pairs, strict=True))
    return (better.nll / better.tokens < worse.nll / worse.tokens).astype(float).tolist()


def _agreement(asked, records, plan):
    """Mean ROUGE-L between answers to one prompt: over seeds, and over paraphrases."""
    sampled = [replies(asked, [x.prompt for x in records], temperature=plan.temperature,
                       max_new_tokens=plan.max_new_tokens, seed=1 + k, batch_size=plan.batch_size)
               for k in range(plan.seeds)]
    reworded = []
    for record in records:
        for text in probes.paraphrases(record.request):
            reworded.append([*record.prompt[:-1], {'role': 'user', 'content': text}])
    said = replies(asked, reworded, max_new_tokens=plan.max_new_tokens,
                   batch_size=plan.batch_size)
    each = len(reworded) // max(len(records), 1)
    return {'seeds': [_mean_overlap([column[i].text for column in sampled])
                      for i in range(len(records))],
            'paraphrases': [_mean_overlap([x.text for x in said[i * each:(i + 1) * each]])
                            for i in range(len(records))]}


def _mean_overlap(texts):
    pairs = [(a, b) for i, a in enumerate(texts) for b in texts[i + 1:]]
    return float(np.mean([metrics.rouge_l(a, b) for a, b in pairs])) if pairs else math.nan


def _probes(asked, plan):
    short = max(plan.max_new_tokens // 3, 16)
    ask_all = lambda texts: replies(asked, [[{'role': 'user', 'content': text}] for text in texts],
                                    max_new_tokens=short, batch_size=plan.batch_size)
    formats, facts, unknown = (_some(items, plan.max_probes) for items in (
        probes.FORMATS, probes.FACTS, probes.UNKNOWN))
    said = ask_all([x[0] for x in formats] + [x[0] for x in facts] + list(unknown))
    of_formats, rest = said[:len(formats)], said[len(formats):]
    of_facts, of_unknown = rest[:len(facts)], rest[len(facts):]
    return {
        'format': [{'prompt': text, 'text': reply.text,
                    'score': float(probes.obeys(reply.text, checker, argument))}
                   for (text, checker, argument), reply in zip(formats, of_formats, strict=True)],
        'fact': [{'prompt': text, 'text': reply.text, 'confidence': reply.confidence,
                  **_judged(reply.text, accepted)}
                 for (text, accepted), reply in zip(facts, of_facts, strict=True)],
        'unknown': [{'prompt': text, 'text': reply.text, 'confidence': reply.confidence,
                     'abstains': float(probes.abstains(reply.text)),
                     'made_up': float(bool(normalise(reply.text))
                                      and not probes.abstains(reply.text))}
                    for text, reply in zip(unknown, of_unknown, strict=True)]}


def _judged(text, accepted):
    right, silent = probes.knows(text, accepted), probes.abstains(text)
    return {'right': float(right), 'abstains': float(silent and not right),
            'wrong': float(not right and not silent and bool(normalise(text)))}


# name: (label, unit, higher is better, what it measures)
MEASURED = {
    'nll': ('Surprise at new answers', 'nats per token', False,
            'how unlikely the model finds the right answers to prompts it has not seen; the most '
            'sensitive measure of all'),
    'score': ('Held-out answers', 'share', True, 'see the rule below the table'),
    'preferred': ('Chosen over rejected', 'share', True,
                  'in how many pairs the better answer is the likelier one, per token'),
    'follows': ('Form of the training answers', 'share', True,
                'whether its own answers have the form that nine in ten training answers have'),
    'stopped': ('Ends by itself', 'share', True, 'answers that end before they are cut off'),
    'agreement/seeds': ('Same answer again', 'share', True,
                        'words in common between answers to one prompt, drawn several times'),
    'agreement/paraphrases': ('Same answer in other words', 'share', True,
                              'words in common between answers to one prompt, reworded by rule'),
    'memorised': ('Training answers by heart', 'share', False,
                  'training answers of six words and more that the model writes word for word'),
    'format': ('Follows instructions', 'share', True,
               'fixed requests for formats (one word, a list, JSON ...) that have nothing to do '
               'with your data'),
    'fact/right': ('Knows facts', 'share', True, 'forty well-known facts'),
    'fact/wrong': ('Wrong about facts', 'share', False, 'the same facts, answered wrongly'),
    'unknown/made_up': ('Makes things up', 'share', False,
                        'questions about things that do not exist, answered as if they did'),
    'general': ('Surprise at other text', 'bits per byte', False,
                'English documentation of Python: what the model knew before'),
}
GENERAL = ('format', 'fact/right', 'general')  # a loss here is forgetting


def values_of(found, name):
    """(numerators, denominators) per item of one of MEASURED; empty where there is none."""
    if name == 'nll':
        return found['nll'], found['tokens']
    if name == 'general':
        return [x / math.log(2) for x in found['general_nll']], found['general_bytes']
    if name in ('preferred', 'memorised'):
        numbers = found[name]
    elif name in ('score', 'follows', 'stopped'):
        numbers = [float(row[name]) for row in found['answers']]
    elif name.startswith('agreement/'):
        numbers = [x for x in found['agreement'][name.partition('/')[2]] if math.isfinite(x)]
    else:
        kind, _, key = name.partition('/')
        numbers = [row[key or 'score'] for row in found[kind]]
    return numbers, [1.0] * len(numbers)


def compare(before, after, draws=4000):
    """{name of MEASURED: {'before', 'after', 'difference', 'low', 'high', 'n', 'verdict'}}.

    The difference of sums over items, each divided by the sum of their sizes, with a 95% interval
    by resampling items in pairs. verdict: 'better', 'worse', or 'no difference shown' where the
    interval holds 0.
    """
    out = {}
    for name, (_, _, higher, _) in MEASURED.items():
        (x, size_x), (y, size_y) = values_of(before, name), values_of(after, name)
        if not x or len(x) != len(y):
            continue
        out[name] = paired(x, size_x, y, size_y, higher, draws)
    return out


def paired(x, size_x, y, size_y, higher, draws=4000):
    """One entry of `compare`; size_* are the denominators of each item."""
    x, size_x, y, size_y = (np.asarray(v, float) for v in (x, size_x, y, size_y))
    ratio = lambda w: (w @ y) / np.maximum(w @ size_y, 1e-9) - (w @ x) / np.maximum(
        w @ size_x, 1e-9)
    difference = float(ratio(np.ones(len(x))))
    interval = statistics.bootstrap(y - x, statistic=ratio, draws=draws)
    verdict = 'no difference shown'
    if interval.excludes(0.0):
        verdict = 'better' if (difference > 0) == higher else 'worse'
    clean = lambda v: None if not math.isfinite(v) else float(v)
    return {'before': float(x.sum() / size_x.sum()), 'after': float(y.sum() / size_y.sum()),
            'difference': difference, 'low': clean(interval.low), 'high': clean(interval.high),
            'n': len(x), 'verdict': verdict}


def gap(found):
    """Surprise at held-out answers less that at as many training ones [nats per token]."""
    per = lambda name: sum(found[f'{name}nll']) / max(sum(found[f'{name}tokens']), 1e-9)
    return per('') - per('train_')
