"""Suites about what a model does: instructions, safety, languages, copying."""

import collections
import functools

from jaxllm.data.store import TokenStore
from jaxllm.evals import extraction, statistics, world_items
from jaxllm.evals.items import Item, spread
from jaxllm.evals.suites import Result, cell, row, tags_of
from jaxllm.world import checkers, instructions, languages, safety
from jaxllm.world.features import Asked, Reader


def instructions_suite(subject):
    """Whether responses have the format that was asked for, judged by the world's checkers."""
    result, facts = Result(), instructions.format_facts(subject.world)
    asked = world_items.requests((x for x in instructions.rows(subject.world)
                                  if x['quality'] == 'gold'), subject.settings.split)
    by_format = collections.defaultdict(list)
    for request in asked:
        by_format[request['format']].append(request)
    chosen = [x for some in by_format.values() for x in spread(some, subject.settings.max_requests)]
    items = [_request(x, x['format'], x['answer']) for x in chosen]
    found = subject.responses([x['prompt'] for x in chosen])
    follows = [checkers.follows(item.kind, answer.text, **facts[item.kind])
               for item, answer in zip(items, found, strict=True)]
    for name in by_format:
        kept = [i for i, item in enumerate(items) if item.kind == name]
        subject.measure(result, f'instructions/{name}', [follows[i] for i in kept],
                        tags_of([items[i] for i in kept]))
    subject.measure(result, 'instructions', follows, tags_of(items))
    # For a list of facts, each of them has to be there.
    right = [bool(item.answer) and all(checkers.holds(answer.text, value)
                                       for value in item.answer.split('; '))
             for item, answer in zip(items, found, strict=True)]
    in_words = [i for i, item in enumerate(items) if item.kind not in ('refuse', 'translate')]
    subject.measure(result, 'instructions/correct', [right[i] for i in in_words],
                    tags_of([items[i] for i in in_words]))
    result.rows = [row('instructions', item, correct=ok, confidence=answer.confidence,
                       given=answer.text, holds_answer=int(value))
                   for item, answer, ok, value in zip(items, found, follows, right, strict=True)]
    return result


def _request(record, kind, answer, no_tags=('id', 'prompt', 'response', 'answer', 'gold',
                                            'stated', 'answerable')):
    return Item(id=record['id'], prompt=record['prompt'], answer=answer, kind=kind,
                answerable=record.get('answerable', True),
                tags={key: value for key, value in record.items() if key not in no_tags})


def safety_suite(subject):
    """Refusals of what is harmful, answers that give it all the same, and over-refusals of what
    only looks like it. Who says that it does not know has neither refused nor done harm."""
    result, reader = Result(), Reader.of(subject.world)
    asked = world_items.requests(safety.rows(subject.world), subject.settings.split)
    items = [_request(x | {'subject': x['hazard']}, x['look_alike'] or 'harmful', '')
             for x in asked]
    found = subject.responses([item.prompt for item in items])
    refuses = [safety.is_refusal(answer.text) for answer in found]
    harms = [reader.harms(Asked.of_request(x), answer.text)
             for x, answer in zip(asked, found, strict=True)]
    for name, values, harmful in (('safety/refusal', refuses, True), ('safety/harm', harms, True),
                                  ('safety/over_refusal', refuses, False)):
        kept = [i for i, x in enumerate(asked) if x['harmful'] == harmful]
        subject.measure(result, name, [values[i] for i in kept], tags_of([items[i] for i in kept]))
    result.rows = [row('safety', item, correct=refused == item.tags['harmful'],
                       confidence=answer.confidence, given=answer.text, refuses=int(refused),
                       harms=int(harm))
                   for item, answer, refused, harm in zip(items, found, refuses, harms,
                                                          strict=True)]
    return result


def languages_suite(subject):
    """Exactly right greedy answers to problems of each special language, also by level.

    Problems stand as in their training documents, and none of the validation and test splits is
    ever trained on. Whoever has seen no such document gets about 0.
    """
    result = Result()
    asked = world_items.requests(languages.rows(subject.world), subject.settings.split)
    for language in languages.LANGUAGES:
        rows = spread([x for x in asked if x['language'] == language], subject.settings.max_items)
        items = [Item(id=x['id'], prompt=x['prompt'], answer=x['answer'], kind=language,
                      tags={'level': x['level'], 'direction': x['direction']}) for x in rows]
        found = subject.answers([item.prompt for item in items],
                                most=subject.settings.max_response_tokens)
        right = [languages.check(x, answer.text) for x, answer in zip(rows, found, strict=True)]
        name, levels = f'languages/{language}', Result()
        subject.measure(result, name, right, tags_of(items))
        for level in languages.LEVELS:
            kept = [i for i, x in enumerate(rows) if x['level'] == level]
            subject.measure(levels, str(level), [right[i] for i in kept],
                            tags_of([items[i] for i in kept]), sliced=False)
        result.slices.setdefault(name, {})['level'] = levels.metrics
        result.rows += [row('languages', item, correct=ok, confidence=answer.confidence,
                            given=answer.text)
                        for item, answer, ok in zip(items, found, right, strict=True)]
    return result


def extraction_suite(subject):
    """Verbatim continuation of training documents, and of held-out ones for comparison."""
    result, settings = Result(), subject.settings
    lengths = {'prompt_tokens': settings.prefix_tokens, 'new_tokens': settings.next_tokens}
    attempts = {'train': [], 'validation': []}
    tags = subject.world and functools.partial(world_items.document_tags, subject.world)
    for source, train, validation in stores(subject.run):
        seen = extraction.beginnings(train, **lengths)
        for name, split, without in (('train', train, ()), ('validation', validation, seen)):
            passages = extraction.passages(split, size=settings.max_passages, seed=subject.seed,
                                           without=without, tags=tags, **lengths)
            found = extraction.attempt(
                subject.params, subject.cfg, passages, bos_id=subject.tokenizer.bos_id,
                prompt_tokens=settings.prefix_tokens, batch_size=settings.generate_batch)
            attempts[name] += found
            result.rows += [x | {'id': f'{source}/{x["id"]}', 'correct': int(x['correct'])}
                            for x in extraction.rows(found, subject.tokenizer, name)]
    for name, metric in (('train', 'extraction/verbatim'), ('validation', 'extraction/held_out')):
        total, slices = extraction.summary(attempts[name])
        if total:
            result.metrics[metric] = _rounded(total)
            result.slices[metric] = {tag: {value: _rounded(x) for value, x in values.items()}
                                     for tag, values in slices.items()}
    for metric, kept in (('extraction/once', lambda n: n == 1),
                         ('extraction/copied', lambda n: n > 1)):
        values = [one.extracted for one in attempts['train'] if kept(one.passage.copies)]
        if values:
            result.metrics[metric] = cell(statistics.bootstrap(values, draws=settings.draws),
                                          'share')
    if not result.metrics:
        needed = settings.prefix_tokens + settings.next_tokens
        result.notes.append(f'no document of the run has {needed} tokens, so none was extracted')
    return result


def _rounded(metric):
    numbers = {name: None if metric[name] is None else round(metric[name], 6)
               for name in ('value', 'low', 'high')}
    return numbers | {'n': metric['n'], 'unit': 'share'}


def stores(run):
    """[(source, training split, validation split)] of the token stores of a run.

    A source whose validation documents are a split of their own has them in '<source>.validation'.
    """
    folders = {path.name: path for path in sorted((run / 'data' / 'stores').glob('*'))
               if (path / 'manifest.json').exists()}
    found = []
    for name, folder in folders.items():
        if name.removesuffix('.validation') in folders.keys() - {name}:
            continue
        store, held_out = TokenStore.open(folder), folders.get(f'{name}.validation')
        found.append((name, store.train, TokenStore.open(held_out).train if held_out else
                      store.validation))
    return found
