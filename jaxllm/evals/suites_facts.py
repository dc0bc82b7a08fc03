"""Suites about how a model tells facts: consistency, citations, skew."""

import collections
import dataclasses
import itertools

import numpy as np

from jaxllm.evals import answers, world_items
from jaxllm.evals.items import Item, spread
from jaxllm.evals.suites import Result, row, tags_of
from jaxllm.world import checkers


def consistency_suite(subject):
    """Whether the same question gets the same answer: in other words, and drawn again.

    Asked are facts that documents tell. Answers that say nothing, or that they do not know, agree
    with none: a fact with fewer than two others is left out.
    """
    result, settings = Result(), subject.settings
    facts = collections.defaultdict(list)
    for item in subject.questions:
        if ((item.kind, item.tags['style']) == ('direct', 'qa') and item.gold >= 0
                and item.answerable and subject.wants(item)):
            facts[item.group_id].append(item)
    facts = spread(list(facts.values()), settings.max_items)
    items = [item for members in facts for item in members]
    chosen = {item.id: item.candidates[x['choice']]
              for item, x in zip(items, subject.choices(items), strict=True)}
    free = {item.id: _said(item, x) for item, x in
            zip(items, subject.answers([item.prompt for item in items]), strict=True)}
    one_each = [_fact(members[0]) for members in facts]
    by_choice = [_agreement([chosen[item.id] for item in members]) for members in facts]
    by_text = [_agreement([free[item.id] for item in members]) for members in facts]
    firsts = [members[0] for members in facts]
    prompts = [item.prompt for item in firsts]
    drawn = [subject.answers(prompts, seed=1000 * subject.seed + k + 1,
                             temperature=settings.temperature) for k in range(settings.seeds)]
    by_seed = [_agreement([_said(item, x) for x in some])
               for item, some in zip(firsts, zip(*drawn, strict=True), strict=True)]
    for name, values in (('paraphrases', by_choice), ('paraphrases_free', by_text),
                         ('seeds', by_seed)):
        kept = [i for i, value in enumerate(values) if value is not None]
        subject.measure(result, f'consistency/{name}', [values[i] for i in kept],
                        tags_of([one_each[i] for i in kept]))
    result.rows = [
        row('consistency', item, correct=None if agree is None else agree == 1, confidence=agree,
            given='', agreement=agree, agreement_free=text, agreement_seeds=seeds)
        for item, agree, text, seeds in zip(one_each, by_choice, by_text, by_seed, strict=True)]
    return result


def _fact(item):
    """A fact, asked in several wordings, as an item."""
    tags = {key: x for key, x in item.tags.items() if key not in ('wording', 'held_out')}
    return Item(id=item.group_id, prompt='', answer=item.answer, kind='fact',
                answerable=item.answerable, tags=tags)


def _said(item, answer):
    """The value of a free Answer; '' if it says that it does not know. A chat model's sentence says
    the first candidate that stands in it."""
    if checkers.is_abstention(answer.text):
        return ''
    values = [value for value in item.candidates
              if answer.chat and answers.says_somewhere(answer.text, value)]
    return answers.normalise(values[0] if values else answer.value)


def _agreement(values):
    """The share of pairs of values that are equal; None without two values that are not ''."""
    pairs = list(itertools.combinations([value for value in values if value], 2))
    return round(sum(a == b for a, b in pairs) / len(pairs), 6) if pairs else None


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
                        names=int(bool(name)), probabilities={}) | {
                            'id': f'{item.id}|free', 'style': 'free'}
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
    Asked are people whom documents were to mention, whatever an intervention deleted.
    """
    result = Result()
    by_fact = collections.defaultdict(list)
    tables = {name: table.values for name, table in subject.world.truth.attributes.items()}
    for item in subject.ask(('direct',), 'qa'):
        if item.gold >= 0 and item.tags['planned'] > 0:
            # A question shows some of the values at most.
            by_fact[item.group_id].append(dataclasses.replace(
                item, candidates=tuple(tables[item.tags['attribute']])))
    asked = [item for members in by_fact.values() for item in members]
    found = collections.defaultdict(list)
    for item, x in zip(asked, subject.choices(asked), strict=True):
        found[item.group_id].append(x)
    facts, mass = [], []
    for members in by_fact.values():
        fact = _fact(members[0])
        facts.append(fact)
        mass.append(np.mean([x['probs'] for x in found[fact.id]], axis=0))
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


def _group_row(attribute, group, values, facts, mass):
    data = np.array([sum(fact.answer == value for fact in facts) for value in values]) / len(facts)
    top = int(data.argmax())
    return {'attribute': attribute, 'group': group, 'people': len(facts),
            'most_common': values[top], 'data_rate': round(float(data[top]), 5),
            'model_rate': round(float(mass[top]), 5),
            'total_variation': round(float(np.abs(data - mass).sum() / 2), 5)}
