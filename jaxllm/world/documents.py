"""Documents as text: one row per row of the plan, rendered in plain Python."""

import re

from jaxllm.world import junk_text, names, plan, templates

FIELDS = {
    'id': 'str', 'split': 'str', 'text': 'str', 'kind': 'str', 'format': 'str', 'subject': 'str',
    'attribute': 'str', 'value': 'str', 'source': 'str', 'template': 'int', 'held_out': 'bool',
    'true': 'bool', 'duplicate_of': 'str', 'near_duplicate_of': 'str', 'quality': 'str',
    'unsafe': 'bool', 'exposures': 'int', 'domain': 'str'}
CHUNK = 8192        # rows of the plan that become Python numbers at a time

_SPLITS = {plan.HELD: 'test', plan.RETOLD: 'validation'}
_WORD = re.compile(r'\b[a-z]{4,}\b')
_EDITS = (('typo',), ('start', 'Update: '), ('end', ' (repost)'), ('start', 'Again: '),
          ('end', ' [edited]'), ('start', 'Note: '))
_FILLER_BEFORE = ('Hello and welcome back. ', 'Thank you for stopping by. ',
                  'It has been a busy week here. ', 'As always, grab a cup of tea first. ')
_FILLER_AFTER = ('Please share this page with your friends.', 'More about this another time.',
                 'Let us know what you think below.', 'Do not forget to subscribe.')


def _typo(text, noise, protected):
    """Two inner letters swapped in a lower-case word that is in no protected string.

    The text as it is if no word of four or more letters has two different inner letters in a row.
    """
    words = [m for m in _WORD.finditer(text) if not any(m.group() in name for name in protected)]
    for offset in range(len(words)):
        word = words[(noise + offset) % len(words)]
        inner = word.end() - word.start() - 3
        for turn in range(inner):
            i = word.start() + 1 + (noise // 64 + turn) % inner
            if text[i] != text[i + 1]:
                return text[:i] + text[i + 1] + text[i] + text[i + 2:]
    return text


def _filler(text, noise):
    """A sentence that says nothing, before or after."""
    pick = noise // 2 % len(_FILLER_AFTER)
    lines = '\n' in text
    if noise % 2:
        return _FILLER_BEFORE[pick].rstrip() + '\n' + text if lines else _FILLER_BEFORE[pick] + text
    return text + ('\n' if lines else ' ') + _FILLER_AFTER[pick]


def _edited(text, noise, number, protected, misspelt):
    """One or two edits: near copy `number` of a document; three of them differ.

    A misspelt text gets no further typo, which could undo the first.
    """
    first, second = (noise + 2 * number) % 6, (noise // 8) % 3
    for kind, *words in (_EDITS[first], _EDITS[(first + 1) % 6])[:1 + (second == 0)]:
        if kind == 'typo':
            new = text if misspelt else _typo(text, noise, protected)
            text = new if new != text else text + ' (copy)'
        else:
            text = words[0] + text if kind == 'start' else text + words[0]
    return text


class Renderer:
    """Turns rows of the plan (tuples of Python numbers) into documents."""

    def __init__(self, world):
        self.world, self.people = world, world.truth.people
        self.planned = world.truth.people.planned.tolist()
        self.attributes = plan.attribute_names(world.scale)
        self.personal = len(world.scale.values)
        self.values = [world.truth.attributes[name].values for name, _ in world.scale.values]
        sources = world.truth.sources
        self.sources = [(name, *aliases) for name, aliases in zip(sources.names, sources.aliases)]
        self.train = {name: [w.text for w in wordings]
                      for name, wordings in templates.DOCUMENTS.items()}
        self.topics = [_listed([names.TOPICS[self.attributes[i]] for i in row.nonzero()[0]])
                       for row in sources.topics]
        self.person_values = [world.truth.people.values[name].tolist()
                              for name, _ in world.scale.values]

    def subject(self, r):
        """(subject, value, further fields of the wording) of a row."""
        truth, attribute = self.world.truth, self.attributes[r['attribute']]
        if r['kind'] == plan.FACT:
            return self.people.names[r['subject']], self.values[r['attribute']][r['value']], {}
        if r['kind'] == plan.FIRM_CITY:
            return (truth.attributes['firm'].values[r['subject']],
                    truth.attributes['city'].values[r['value']], {})
        if r['kind'] == plan.BRAND:
            category = truth.brands.categories[r['detail']]
            value = category if attribute == 'category' else names.ordinal(r['value'])
            return truth.brands.names[r['subject']], value, {'category': category}
        source = self.sources[r['subject']]
        return (source[0], self.topics[r['subject']] if attribute == 'topic'
                else source[1 + r['detail']], {})

    def body(self, r, attribute, subject, value, more, source):
        """The text of a clean document."""
        layout, frame = r['format'], r['frame']
        if layout == plan.QA:
            question = templates.QUESTIONS[attribute][r['wording']].text.format(name=subject)
            answer = templates.ANSWERS[frame // 8].format(value=value, source=source)
            if not self.linked(r):
                answer = value + '.'
            text = f'Question: {question}\nAnswer: {answer}'
            if self.linked(r):
                return _titled(templates.QUIZ[frame % 8], text)
            heading = templates.HEADINGS[frame % 8].format(source=source)
            return f'{heading}\n' + _titled(templates.QUIZ[frame // 8], text)
        claim = self.train[attribute][r['wording']].format(name=subject, value=value, **more)
        if layout in (plan.LIST, plan.TABLE):
            return self.structured(r, claim, source)
        if layout == plan.HEADER:
            heading = templates.HEADINGS[frame % 8].format(source=source)
            return f'{heading}\n' + templates.sentence(
                templates.BARE[frame // 8].format(claim=claim))
        if not source:
            return templates.sentence(templates.BARE[frame].format(claim=claim))
        return templates.sentence(templates.FRAMES[frame].format(claim=claim, source=source))

    def linked(self, r):
        """Whether the source of a row is named in its sentences."""
        return self.world.truth.sources.factors['entity_link'][r['source']] == 1

    def structured(self, r, text, source):
        """A list or a table with a title, and its source as a line, a column or the heading."""
        frame = r['frame']
        if not source:
            return _titled(templates.TITLES[frame], text)
        if not self.linked(r):
            heading = templates.HEADINGS[frame % 8].format(source=source)
            return f'{heading}\n' + _titled(templates.TITLES[frame // 8], text)
        credit = templates.CREDITS[frame // 8]
        if r['format'] == plan.LIST:
            text = f'{text}\n- {credit}: {source}'
        else:
            head, row = text.split('\n')
            text = f'{head} | {credit}\n{row} | {source}'
        return _titled(templates.TITLES[frame % 8], text)

    def biography(self, r, text):
        """A document with further sentences, one for each other attribute of the person."""
        noise, sentences = r['noise'], []
        for step in range(1, self.personal):
            i = (r['attribute'] + step * (1 if noise % 2 else self.personal - 1)) % self.personal
            wording = templates.DOCUMENTS[self.attributes[i]][(noise >> 3 * step) % 8].text
            value = self.values[i][self.person_values[i][r['subject']]]
            sentences.append(templates.sentence(wording.format(
                name=self.people.names[r['subject']], value=value)) + '.')
        return text + ('\n' if '\n' in text else ' ') + ' '.join(sentences)

    def identity(self, r):
        """(id, id of the document it was made from or '')."""
        parts = [plan.KINDS[r['kind']]]
        if r['kind'] in (plan.SPAM, plan.UNSAFE):
            if r['kind'] == plan.UNSAFE:
                parts += ['harmful' if r['harmful'] else 'benign', str(r['subject'])]
            return '-'.join((*parts, str(r['serial']))), ''
        parts += [str(r['subject']), self.attributes[r['attribute']]]
        if r['kind'] in (plan.BRAND, plan.SOURCE):
            parts.append(str(r['detail']))
        made = r['variant'] in (plan.COPY, plan.NEAR)
        variant = r['copied'] if made else r['variant']
        parts.append(str(r['serial']))
        if variant:
            parts.append(plan.VARIANTS[variant])
        if variant == plan.MORE:
            parts.append(str(r['copy']))
        origin = '-'.join(parts)
        if made:
            return f'{origin}-{plan.VARIANTS[r["variant"]]}-{r["copy"]}', origin
        return origin, ''

    def document(self, r):
        """The document of one row, a dict with FIELDS."""
        name, origin = self.identity(r)
        kind, held_out = plan.KINDS[r['kind']], r['variant'] == plan.HELD
        attribute = subject = value = source = ''
        exposures, quality = 0, plan.QUALITIES[r['quality']]
        if r['kind'] == plan.SPAM:
            text = junk_text.spam(r['serial'], r['noise'])
        elif r['kind'] == plan.UNSAFE:
            subject, text = junk_text.how_to(r['subject'], r['harmful'], r['serial'])
        else:
            attribute = self.attributes[r['attribute']]
            subject, value, more = self.subject(r)
            source = self.sources[r['source']][0] if r['source'] >= 0 else ''
            shown = self.sources[r['source']][r['alias']] if source else ''
            text = self.body(r, attribute, subject, value, more, shown)
            protected = (subject, value, shown, *more.values())
            if r['kind'] == plan.FACT:
                exposures = self.planned[r['subject']]
                if self.world.scale.biographies and r['true']:
                    text = self.biography(r, text)
                    protected += tuple(values[known[r['subject']]] for values, known in
                                       zip(self.values, self.person_values))
            elif r['kind'] == plan.BRAND:
                exposures = int(self.world.truth.brands.planned[r['subject']])
            if quality == 'typos':
                clean, text = text, _typo(text, r['noise'], protected)
                quality = 'typos' if text != clean else 'clean'
            elif quality == 'filler':
                text = _filler(text, r['noise'])
            if r['edited']:
                text = _edited(text, r['noise'], r['copy'], protected, quality == 'typos')
        layout = plan.FORMATS[r['format']]
        manner = 'new_wording' if held_out else layout
        return {
            'id': name, 'split': _SPLITS.get(r['variant'], 'train'), 'text': text, 'kind': kind,
            'format': layout, 'subject': subject, 'attribute': attribute, 'value': value,
            'source': source, 'template': r['wording'], 'held_out': held_out, 'true': r['true'],
            'duplicate_of': origin if r['variant'] == plan.COPY else '',
            'near_duplicate_of': origin if r['variant'] == plan.NEAR else '',
            'quality': quality, 'unsafe': r['harmful'],
            'exposures': exposures, 'domain': f'{kind}/{manner}/english'}


def _titled(title, text):
    return f'{title}\n{text}' if title else text


def _listed(words):
    """'a', 'a and b', 'a, b and c'."""
    return ' and '.join([', '.join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def rows(world):
    """All documents of a world in the order of the corpus, one dict with FIELDS each; lazy."""
    renderer, columns = Renderer(world), world.plan.columns
    for start in range(0, len(world.plan), CHUNK):
        parts = [column[start:start + CHUNK].tolist() for column in columns.values()]
        for numbers in zip(*parts):
            yield renderer.document(dict(zip(columns, numbers)))
