"""Suites about what a model does: instructions, safety, consistency, citations, skew, copying."""

import collections
import itertools

import numpy as np

from jaxllm.data.store import TokenStore
from jaxllm.evals import answers, extraction, statistics, world_items
from jaxllm.evals.items import Item, spread
from jaxllm.evals.suites import Result, cell, row, tags_of
from jaxllm.world import checkers, instructions, safety


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
    """Refusals of what is harmful, and over-refusals of what only looks like it."""
    result = Result()
    asked = world_items.requests(safety.rows(subject.world), subject.settings.split)
    items = [_request(x | {'subject': x['hazard']}, x['look_alike'] or 'harmful', '')
             for x in asked]
    found = subject.responses([item.prompt for item in items])
    refuses = [safety.is_refusal(answer.text) for answer in found]
    for name, harmful in (('safety/refusal', True), ('safety/over_refusal', False)):
        kept = [i for i, x in enumerate(asked) if x['harmful'] == harmful]
        subject.measure(result, name, [refuses[i] for i in kept], tags_of([items[i] for i in kept]))
    result.rows = [row('safety', item, correct=refused == item.tags['harmful'],
                       confidence=answer.confidence, given=answer.text, refuses=int(refused))
                   for item, answer, refused in zip(items, found, refuses, strict=True)]
    return result


def consistency_suite(subject):
    """Whether the same question gets the same answer: in other words, and drawn again."""
    result, settings = Result(), subject.settings
    facts = collections.defaultdict(list)
    for item in subject.questions:
        if (item.kind, item.tags['style']) == ('direct', 'qa') and item.gold >= 0:
            facts[item.group_id].append(item)
    facts = spread([members for members in facts.values() if len(members) > 1],
                   settings.max_items)
    items = [item for members in facts for item in members]
    chosen = {item.id: item.candidates[x['choice']]
              for item, x in zip(items, subject.choices(items), strict=True)}
    free = {item.id: answers.normalise(x.value) for item, x in
            zip(items, subject.answers([item.prompt for item in items]), strict=True)}
    one_each = [_fact(members[0]) for members in facts]
    tags = tags_of(one_each)
    by_choice = [_agreement([chosen[item.id] for item in members]) for members in facts]
    by_text = [_agreement([free[item.id] for item in members]) for members in facts]
    subject.measure(result, 'consistency/paraphrases', by_choice, tags)
    subject.measure(result, 'consistency/paraphrases_free', by_text, tags)
    prompts = [members[0].prompt for members in facts]
    drawn = [subject.answers(prompts, seed=1000 * subject.seed + k + 1,
                             temperature=settings.temperature) for k in range(settings.seeds)]
    by_seed = [_agreement([answers.normalise(x.value) for x in some])
               for some in zip(*drawn, strict=True)]
    if settings.seeds > 1:
        subject.measure(result, 'consistency/seeds', by_seed, tags)
    result.rows = [
        row('consistency', item, correct=agree == 1, confidence=agree, given='',
            agreement=round(agree, 6), agreement_free=round(text, 6),
            agreement_seeds=round(seeds, 6))
        for item, agree, text, seeds in zip(one_each, by_choice, by_text, by_seed, strict=True)]
    return result


def _fact(item):
    """A fact, asked in several wordings, as an item."""
    tags = {key: x for key, x in item.tags.items() if key not in ('wording', 'held_out')}
    return Item(id=item.group_id, prompt='', answer=item.answer, kind='fact',
                answerable=item.answerable, tags=tags)


def _agreement(values):
    """The share of pairs that are equal; 1 for a single value."""
    pairs = list(itertools.combinations(values, 2))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 1.0


def citations_suite(subject):
    """Which sources a model names for a fact, and whether they do report it.

    `citations/cloze` continues '<claim>, according to the' and needs no instruction tuning;
    `citations/restricted` chooses behind a question; the rest reads free answers to it. All are
    shares of facts whose source was seen; a choice is right if the source supports the fact.
    """
    result, names = Result(), _source_names(subject.world)
    probes = spread(world_items.citation_probes(subject.world, subject.settings.split),
                    subject.settings.max_items)
    asked = [item for item in subject.ask(('source',), 'qa') if item.answerable]
    for metric, items in (('citations/cloze', probes), ('citations/restricted', asked)):
        found = subject.choices(items)
        given = [item.candidates[x['choice']] for item, x in zip(items, found, strict=True)]
        right = [name in item.tags['sources'] for name, item in zip(given, items, strict=True)]
        subject.measure(result, metric, right, tags_of(items))
        subject.measure(result, f'{metric}/chance', [
            len(set(item.tags['sources']) & set(item.candidates)) / len(item.candidates)
            for item in items], tags_of(items), sliced=False)
        result.rows += [
            row('citations', item, correct=ok, confidence=x['probs'].max(), given=name, names=1,
                probabilities={source: round(float(p), 5) for source, p in
                               zip(item.candidates, x['probs'], strict=True)})
            for item, x, name, ok in zip(items, found, given, right, strict=True)]
    free = subject.answers([item.prompt for item in asked])
    texts = [f' {answers.normalise(x.text)} ' for x in free]
    named = [next((source for alias, source in names if f' {alias} ' in text), '')
             for text in texts]
    supported = [name in item.tags['sources'] for name, item in zip(named, asked, strict=True)]
    subject.measure(result, 'citations/named', [bool(name) for name in named], tags_of(asked))
    kept = [i for i, name in enumerate(named) if name]
    subject.measure(result, 'citations/supported', [supported[i] for i in kept],
                    tags_of([asked[i] for i in kept]))
    result.rows += [row('citations', item, correct=ok, confidence=x.confidence, given=name,
                        names=int(bool(name)), probabilities={}) | {'style': 'free'}
                    for item, x, name, ok in zip(asked, free, named, supported, strict=True)]
    result.plots['citations'] = _source_shares(subject, probes)
    return result


def _source_names(world):
    """[(name or alias as `normalise` has it, source)], the longest first."""
    sources = world.truth.sources
    pairs = [(answers.normalise(alias), name)
             for name, aliases in zip(sources.names, sources.aliases, strict=True)
             for alias in (name, *aliases)]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def _source_shares(subject, probes):
    """Of each source: its share of documents about the facts asked, and of citations."""
    found, world = subject.choices(probes), subject.world
    cited, chosen = collections.Counter(), collections.Counter()
    for item, x in zip(probes, found, strict=True):
        chosen[item.candidates[x['choice']]] += 1 / len(probes)
        for source, p in zip(item.candidates, x['probs'], strict=True):
            cited[source] += float(p) / len(probes)
    place = {name: p for p, name in enumerate(world.truth.people.names)}
    number = {name: a for a, name in enumerate(world.truth.attributes)}
    counts = sum((np.asarray(world.counts[place[item.subject], number[item.tags['attribute']]])
                  for item in probes), np.zeros(len(world.truth.sources.names)))
    return [{'source': name, 'share_of_documents': round(float(count / max(counts.sum(), 1)), 5),
             'probability': round(cited[name], 5), 'chosen': round(chosen[name], 5)}
            for name, count in zip(world.truth.sources.names, counts, strict=True)]


def skew_suite(subject):
    """Model rate minus data rate of an attribute's first value, by group of people.

    The model rate is the probability of that value among all, averaged over the wordings of a
    question and over people; the data rate is the share of the same people who have the value.
    """
    result = Result()
    by_fact = collections.defaultdict(list)
    for item in subject.ask(('direct',), 'qa'):
        if item.gold >= 0:
            by_fact[item.group_id].append(item)
    tables = {name: table.values for name, table in subject.world.truth.attributes.items()}
    facts, mass = [], []
    for members in by_fact.values():
        fact = _fact(members[0])
        values = tables[fact.tags['attribute']]
        mean = np.mean([_over(values, item, x) for item, x in
                        zip(members, subject.choices(members), strict=True)], axis=0)
        facts.append(fact)
        mass.append(mean)
    for attribute, values in tables.items():
        for group in sorted({fact.tags['group'] for fact in facts}):
            kept = [i for i, fact in enumerate(facts)
                    if (fact.tags['attribute'], fact.tags['group']) == (attribute, group)]
            differences = [mass[i][0] - (facts[i].answer == values[0]) for i in kept]
            subject.measure(result, f'skew/{attribute}/{group}', differences,
                            tags_of([facts[i] for i in kept]), unit='model rate - data rate',
                            sliced=False)
            if kept:
                result.plots.setdefault('skew', []).append(
                    _group_row(attribute, group, values, [facts[i] for i in kept],
                               np.mean([mass[i] for i in kept], axis=0)))
    result.rows = [
        row('skew', fact, correct=tables[fact.tags['attribute']][int(p.argmax())] == fact.answer,
            confidence=p.max(), given=tables[fact.tags['attribute']][int(p.argmax())],
            value=tables[fact.tags['attribute']][0], model_rate=round(float(p[0]), 6),
            data_rate=int(fact.answer == tables[fact.tags['attribute']][0]))
        for fact, p in zip(facts, mass, strict=True)]
    return result


def _over(values, item, found):
    """Probabilities of an item's candidates as those of all values of the attribute."""
    place = {name: i for i, name in enumerate(values)}
    mass = np.zeros(len(values))
    mass[[place[name] for name in item.candidates]] = found['probs']
    return mass


def _group_row(attribute, group, values, facts, mass):
    data = np.array([sum(fact.answer == value for fact in facts) for value in values]) / len(facts)
    top = int(data.argmax())
    return {'attribute': attribute, 'group': group, 'people': len(facts),
            'most_common': values[top], 'data_rate': round(float(data[top]), 5),
            'model_rate': round(float(mass[top]), 5),
            'total_variation': round(float(np.abs(data - mass).sum() / 2), 5)}


def extraction_suite(subject):
    """Verbatim continuation of training documents, and of held-out ones for comparison."""
    result, settings = Result(), subject.settings
    lengths = {'prompt_tokens': settings.prefix_tokens, 'new_tokens': settings.next_tokens}
    attempts = {'train': [], 'validation': []}
    for source, train, validation in stores(subject.run):
        seen = extraction.beginnings(train, **lengths)
        for name, split, without in (('train', train, ()), ('validation', validation, seen)):
            passages = extraction.passages(split, size=settings.max_passages, seed=subject.seed,
                                           without=without, **lengths)
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
