"""The filters in a row over a stream of documents, and a report of what each removed and why."""

import dataclasses
import hashlib

from jaxllm.data.clean import labelled, quality
from jaxllm.data.clean.near import NearIndex
from jaxllm.data.prepare import similar

_SHOWN = 600  # characters of an example


@dataclasses.dataclass
class Report:
    """Counts grow as the documents are read; `as_dict` is what a file says.

    dropped: {filter: {reason: count}}. examples: {filter: [example]}, chosen by a hash of the text.
    """
    examples_kept: int
    read: int = 0
    kept: int = 0
    characters_read: int = 0
    characters_kept: int = 0
    dropped: dict = dataclasses.field(default_factory=dict)
    examples: dict = dataclasses.field(default_factory=dict)

    def drop(self, step, document, why):
        """Counts one document; `why` is 'reason' or 'reason: particulars'."""
        reasons = self.dropped.setdefault(step, {})
        reason = why.partition(':')[0]
        reasons[reason] = reasons.get(reason, 0) + 1
        shown = self.examples.setdefault(step, [])
        shown.append({'rank': _digest(document.text), 'id': document.id, 'why': why,
                      'origin': document.origin, 'text': document.text[:_SHOWN]})
        shown.sort(key=lambda example: (example['rank'], example['id']))
        del shown[self.examples_kept:]

    def as_dict(self):
        """Everything, as JSON."""
        values = dataclasses.asdict(self)
        del values['examples_kept']
        values['examples'] = {step: [{key: value for key, value in example.items()
                                      if key != 'rank'} for example in shown]
                              for step, shown in self.examples.items()}
        return values


def clean(documents, config, classifier=None):
    """(the documents that stay, Report); nothing is read before the first is asked for.

    What stays depends on the documents in their order and on `config` alone. A copy is one of any
    earlier document, also of one that was dropped for being a copy. The memory is bounded by
    `config.window`.

    Args:
      documents: records.Document each.
      config: settings.CleanConfig.
      classifier: of classifier.py; default: of config.labels.
    """
    report = Report(config.examples)
    return _kept(documents, config, classifier, report), report


def _kept(documents, config, classifier, report):
    steps = _steps(config, classifier)
    for document in documents:
        report.read += 1
        report.characters_read += len(document.text)
        for name, objection in steps:
            if why := objection(document):
                report.drop(name, document, why)
                break
        else:
            report.kept += 1
            report.characters_kept += len(document.text)
            yield document


def _steps(config, classifier):
    """[(name, document -> why it goes, or '')]."""
    if config.judges and classifier is None:
        classifier = labelled.judge(config.labels)
    near, seen = NearIndex(**dataclasses.asdict(config.near), window=config.window), {}

    def exact(document):
        key = _digest(similar.normal(document.text))
        if key in seen:
            return f'copy: of {seen[key]}'
        seen[key] = document.id
        if len(seen) > config.window:
            del seen[next(iter(seen))]
        return ''

    def near_copy(document):
        found = near.add(document.text, document.id)
        return f'near copy: of {found}' if found else ''

    def judged(label, least):
        def objection(document):
            chance = classifier.probability(document.text, label)
            return f'{label}: {chance:.2f}' if chance >= least else ''
        return objection

    known = {'exact': exact, 'near': near_copy,
             'quality': lambda document: quality.problem(document.text, config.quality),
             'spam': judged('spam', config.spam), 'unsafe': judged('unsafe', config.unsafe)}
    return [(name, known[name]) for name in config.steps]


def _digest(text):
    return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest().hex()
