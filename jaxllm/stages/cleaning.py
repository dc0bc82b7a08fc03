"""The filters of `config.data.clean` in front of a source: what stays is kept as a file of a run.

The full curation of data takes this place: whoever reads documents asks `documents` for them.
"""

import dataclasses
import json

from jaxllm.config import one_builder, section, to_plain, write_atomic
from jaxllm.data.clean.clean import clean
from jaxllm.data.clean.settings import CleanConfig, NearConfig, QualityConfig
from jaxllm.data.records import Document, Rejects, read_source
from jaxllm.train.progress import stage as say

REPORT = 'cleaning.json'


def settings(data):
    """CleanConfig of a section `config.data`, or None where it cleans nothing (has no `clean`)."""
    if 'clean' not in data:
        return None
    given = dict(data.clean)
    for name, kind in (('near', NearConfig), ('quality', QualityConfig)):
        if name in given:
            given[name] = section(kind, given[name], f'data.clean.{name}')
    return section(CleanConfig, given, 'data.clean')


def fingerprint(spec, data):
    """Of what a source gives after cleaning."""
    if settings(data) is None:
        return spec.fingerprint
    return f'{spec.fingerprint}/{json.dumps(to_plain(data.clean), sort_keys=True)}'


def documents(spec, data, folder):
    """The cleaned documents of a source, read from `folder/cleaned/<source>.jsonl`.

    Where that is missing it is made, with the source's rejects and `cleaning-<source>.json`.

    Args:
      data: the section `config.data`, with `clean`.
      folder: `data` of a run.
    """
    file = folder / 'cleaned' / f'{spec.name}.jsonl'
    with one_builder(file):
        if not file.exists():
            _make(spec, settings(data), data.max_reject_share, folder, file)
    with open(file, encoding='utf-8') as lines:
        for line in lines:
            yield Document(**json.loads(line))


def _make(spec, config, max_reject_share, folder, file):
    say(f'cleaning {spec.name} ...')
    rejects = Rejects(folder / f'rejects-{spec.name}.jsonl')
    kept, report = clean(read_source(spec, rejects), config)
    partial = file.with_name(file.name + '.partial')
    with open(partial, 'w', encoding='utf-8') as out:
        for document in kept:
            out.write(json.dumps(dataclasses.asdict(document)) + '\n')
    rejects.check(max_reject_share)
    write_atomic(folder / f'rejects-{spec.name}.json', json.dumps(rejects.summary()))
    write_atomic(folder / f'cleaning-{spec.name}.json', json.dumps(report.as_dict(), indent=1))
    partial.rename(file)  # last: where it is, the rest is
    say(f'cleaning {spec.name}: {report.kept:,} of {report.read:,} documents stay; removed: '
        + (', '.join(f'{name} {sum(counts.values()):,}'
                     for name, counts in report.dropped.items()) or 'none'))


def write_report(specs, folder):
    """`folder/cleaning.json`: {source: what was removed, why, and examples}."""
    reports = {spec.name: json.loads((folder / f'cleaning-{spec.name}.json').read_text())
               for spec in specs}
    write_atomic(folder / REPORT, json.dumps(reports, indent=1))
