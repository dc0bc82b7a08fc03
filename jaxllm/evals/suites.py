"""What suites of an evaluation share: the model asked, what it has answered, and their results."""

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from jaxllm.data import chat
from jaxllm.errors import InputError
from jaxllm.evals import answers, choice, statistics, world_items
from jaxllm.evals.items import SLICES, spread

_MOST_SLICES = 40  # a tag with more values is no slice
_QUESTION = re.compile('Question: (.*)\nAnswer:', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How models are asked; `config.settings`."""
    split: str             # people that are asked about: train, validation, test, or all
    wordings: str          # of questions: those of training documents ('train'), 'held_out', 'all'
    max_items: int         # of each kind of question, evenly spread; 0 = all
    max_requests: int      # of each format of instructions; 0 = all
    max_documents: int     # per domain of bits per byte; 0 = all
    max_passages: int      # of training documents, for extraction; 0 = all
    max_new_tokens: int    # of free answers
    max_response_tokens: int  # of responses to requests
    template: str          # around a request to a base model; has {prompt}
    confident_at: float    # from this confidence on, a wrong answer is confidently wrong
    seeds: int             # sampled answers per question, for consistency over seeds
    temperature: float     # of those
    prefix_tokens: int     # of a training document, for extraction
    next_tokens: int       # that must be reproduced
    score_batch: int       # candidates at once
    generate_batch: int    # prompts at once
    draws: int             # of the bootstrap

    def __post_init__(self):
        world_items.check_split(self.split)
        if self.wordings not in ('train', 'held_out', 'all'):
            raise InputError(f'settings.wordings={self.wordings!r} is unknown; use train, held_out '
                             'or all')
        least = {'max_items': 0, 'max_requests': 0, 'max_documents': 0, 'max_passages': 0,
                 'temperature': 0}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float) and value < least.get(field.name, 1) and (
                    field.name != 'confident_at'):
                raise InputError(f'settings.{field.name}={value} must be at least '
                                 f'{least.get(field.name, 1)}')
        if not 0 <= self.confident_at <= 1:
            raise InputError(f'settings.confident_at={self.confident_at} must be in [0, 1]')
        if '{prompt}' not in self.template:
            raise InputError(f'settings.template={self.template!r} has no {{prompt}}')


@dataclasses.dataclass
class Result:
    """Of one suite. rows: a dict per item, all with the same keys; notes: what a reader must know.

    metrics: {name: {'value', 'low', 'high', 'n', 'unit'}}; slices: {metric: {tag: {value of the
    tag: the same}}}; plots: {name: data}.
    """
    metrics: dict = dataclasses.field(default_factory=dict)
    slices: dict = dataclasses.field(default_factory=dict)
    plots: dict = dataclasses.field(default_factory=dict)
    rows: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Subject:
    """The model that is evaluated; it answers each question once, however many suites ask it.

    template, stop_ids: of a chat model, which gets questions as messages; texts to be continued it
    gets as they are, like any other. world: its World, or None. documents: perplexity.Documents for
    bits per byte; items: of the user; run: the run directory.
    """
    params: Any
    cfg: Any
    tokenizer: Any
    seq_len: int
    settings: Settings
    world: Any = None
    documents: list = dataclasses.field(default_factory=list)
    items: list = dataclasses.field(default_factory=list)
    run: Any = None
    seed: int = 0
    template: Any = None
    stop_ids: tuple = ()

    def __post_init__(self):
        self._choices, self._answers = {}, {}

    @functools.cached_property
    def questions(self):
        """All questions of the world about people of the split."""
        return world_items.questions(self.world, self.settings.split)

    def ask(self, kinds, style):
        """Questions of some kinds and a style, at most `max_items` of each kind."""
        chosen = []
        for kind in kinds:
            chosen += spread([item for item in self.questions
                              if item.kind == kind and item.tags['style'] == style
                              and self.wants(item)], self.settings.max_items)
        return chosen

    def wants(self, item):
        """Whether a question has a wording that is asked."""
        wordings = self.settings.wordings
        return wordings == 'all' or item.tags['held_out'] == (wordings == 'held_out')

    def choices(self, items):
        """What `choice.choose` says of each item."""
        key = lambda item: (item.prompt, item.candidates)
        new = {key(item): item for item in items if key(item) not in self._choices}
        found = choice.choose(self.params, self.cfg, self.tokenizer, list(new.values()),
                              batch_size=self.settings.score_batch)
        self._choices |= zip(new, found, strict=True)
        return [self._choices[key(item)] for item in items]

    def answers(self, prompts, *, seed=0, temperature=0.0, stop_strings=('\n',), most=0):
        """A free Answer to each prompt, of at most `most` tokens (0 = `max_new_tokens`).

        A chat model gets what stands in 'Question: ...\\nAnswer:' as a message, and ends its answer
        itself.
        """
        most = most or self.settings.max_new_tokens
        key = lambda prompt: (prompt, seed, temperature, stop_strings, most)
        new = list(dict.fromkeys(p for p in prompts if key(p) not in self._answers))
        asked = [p for p in new if self.template is not None and _QUESTION.fullmatch(p)]
        for some, ways in (([p for p in new if p not in set(asked)],
                            {'stop_strings': stop_strings}),
                           (asked, {'stop_strings': (), 'encode': self._as_message,
                                    'stop_ids': self.stop_ids})):
            found = answers.generate(
                self.params, self.cfg, self.tokenizer, some, temperature=temperature, seed=seed,
                max_new_tokens=most, batch_size=self.settings.generate_batch, **ways)
            self._answers |= {key(p): answer for p, answer in zip(some, found, strict=True)}
        return [self._answers[key(prompt)] for prompt in prompts]

    def _as_message(self, prompt):
        messages = [{'role': 'user', 'content': _QUESTION.fullmatch(prompt)[1]}]
        return chat.render(self.template, messages, self.tokenizer, add_generation_prompt=True,
                           train=False).ids

    def responses(self, prompts):
        """Free Answers to requests, which may have several lines. A base model gets them in the
        template of the settings, a chat model as messages."""
        if self.template is not None:
            prompts = [f'Question: {p}\nAnswer:' for p in prompts]
        else:
            prompts = [self.settings.template.replace('{prompt}', p) for p in prompts]
        return self.answers(prompts, stop_strings=('\nQuestion:', '\n\n'),
                            most=self.settings.max_response_tokens)

    def measure(self, result, name, values, tags, *, unit='share', sliced=True):
        """Adds a metric, a mean with its interval over subjects, and its slices.

        Args:
          values: a number per item. tags: a dict per item, 'subject' among its keys.
        """
        if not len(values):
            return
        values = np.asarray(values, float)
        subjects = np.array([str(tag['subject']) for tag in tags])
        interval = lambda kept: cell(statistics.bootstrap(
            values[kept], clusters=subjects[kept], draws=self.settings.draws), unit)
        result.metrics[name] = interval(np.ones(len(values), bool))
        for slice_, groups in (slices(tags) if sliced else {}).items():
            result.slices.setdefault(name, {})[slice_] = {
                value: interval(kept) for value, kept in groups.items()}

    def measure_told(self, result, name, values, items, *, sliced=True):
        """The metric over items that documents answer; over the others '<name>/never_told'."""
        for told, full in ((True, name), (False, f'{name}/never_told')):
            kept = [i for i, item in enumerate(items) if item.answerable == told]
            self.measure(result, full, [values[i] for i in kept],
                         tags_of([items[i] for i in kept]), sliced=sliced and told)


def cell(interval, unit):
    """An Interval for results.json."""
    found = interval.as_dict()
    numbers = {name: None if found[name] is None else round(float(found[name]), 6)
               for name in ('value', 'low', 'high')}
    return numbers | {'n': int(found['n']), 'unit': unit}


def slices(tags):
    """{tag: {value as text: bool [items]}} of the SLICES that tell these items apart."""
    found = {}
    for name in SLICES:
        column = [tag.get(name) for tag in tags]
        values = sorted({x for x in column if x is not None and x != ''}, key=_order)
        if 1 < len(values) <= _MOST_SLICES:
            found[name] = {str(value): np.array([x == value for x in column])
                           for value in values}
    return found


def _order(value):
    return (isinstance(value, str), value)


def row(suite, item, *, correct, confidence, given, **more):
    """A line of items.jsonl: the item, its tags, and what the model made of it.

    `correct` and `confidence` are None where the suite cannot say.
    """
    return {'id': item.id, 'suite': suite, 'kind': item.kind, 'subject': item.subject,
            'answer': item.answer, 'answerable': item.answerable, 'given': given,
            'correct': None if correct is None else int(correct),
            'confidence': None if confidence is None else round(float(confidence), 6), **more,
            **{key: value for key, value in item.tags.items() if key != 'subject'}}


def tags_of(items):
    """Tags of items with what every item has: its subject and kind."""
    return [item.tags | {'subject': item.subject, 'kind': item.kind} for item in items]


def uniform(rows):
    """Rows of one suite with the same keys in the same order; None where one has no value."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]
