"""The filters of `config.data.clean` in front of a source: what stays is kept as a file of a run.

The full curation of data takes this place: whoever reads documents asks `documents` for them.
"""

import dataclasses
import json
import pathlib
import shutil

from jaxllm.config import one_builder, section, to_plain, write_atomic
from jaxllm.data.clean.clean import clean
from jaxllm.data.clean.settings import CleanConfig, NearConfig, QualityConfig
from jaxllm.data.records import Document, Rejects, read_source
from jaxllm.errors import InputError
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
    """Of what a source gives after cleaning, whichever run does it."""
    if settings(data) is None:
        return spec.fingerprint
    filters = {key: value for key, value in to_plain(data.clean).items() if key != 'run'}
    return f'{spec.fingerprint}/{json.dumps(filters, sort_keys=True)}'


def documents(spec, data, folder):
    """The cleaned documents of a source, read from `folder/cleaned/<source>.jsonl`.

    Where that is missing it is made, with the source's rejects and `cleaning-<source>.json`, or
    taken with these from the run `data.clean.run`.

    Args:
      data: the section `config.data`, with `clean`.
      folder: `data` of a run.

    Raises:
      InputError: that run has not cleaned this source in this way.
    """
    file, config = folder / 'cleaned' / f'{spec.name}.jsonl', settings(data)
    with one_builder(file):
        if not file.exists() and config.run:
            _take(spec, data, pathlib.Path(config.run) / 'data', folder)
        elif not file.exists():
            _make(spec, data, folder, file)
    with open(file, encoding='utf-8') as lines:
        for line in lines:
            yield Document(**json.loads(line))


def _take(spec, data, source, folder):
    """Copies what another run has made of a source; the cleaned texts last, as in `_make`."""
    made = source / f'cleaning-{spec.name}.json'
    found = json.loads(made.read_text()) if made.exists() else {}
    if 'fingerprint' not in found or found['fingerprint'] != fingerprint(spec, data):
        raise InputError(f'data.clean.run={data.clean.run} has not cleaned the source {spec.name} '
                         f'with these filters ({made} is '
                         f'{"of others" if found else "missing"}); give its data section, or use '
                         "--config.data.clean.run='' to clean it here")
    (folder / 'cleaned').mkdir(parents=True, exist_ok=True)
    for name in (f'rejects-{spec.name}.jsonl', f'rejects-{spec.name}.json', made.name,
                 f'cleaned/{spec.name}.jsonl'):
        if (source / name).exists():  # rejects that there are none of have no file
            shutil.copyfile(source / name, folder / f'{name}.partial')
            (folder / f'{name}.partial').rename(folder / name)
    say(f'{spec.name}: cleaned texts of {data.clean.run}')


def _make(spec, data, folder, file):
    say(f'cleaning {spec.name} ...')
    rejects = Rejects(folder / f'rejects-{spec.name}.jsonl')
    kept, report = clean(read_source(spec, rejects), settings(data))
    partial = file.with_name(file.name + '.partial')
    with open(partial, 'w', encoding='utf-8') as out:
        for document in kept:
            out.write(json.dumps(dataclasses.asdict(document)) + '\n')
    rejects.check(data.max_reject_share)
    write_atomic(folder / f'rejects-{spec.name}.json', json.dumps(rejects.summary()))
    write_atomic(folder / f'cleaning-{spec.name}.json', json.dumps(
        {'fingerprint': fingerprint(spec, data), **report.as_dict()}, indent=1))
    partial.rename(file)  # last: where it is, the rest is
    say(f'cleaning {spec.name}: {report.kept:,} of {report.read:,} documents stay; removed: '
        + (', '.join(f'{name} {sum(counts.values()):,}'
                     for name, counts in report.dropped.items()) or 'none'))


def write_report(specs, folder):
    """`folder/cleaning.json`: {source: what was removed, why, and examples}."""
    reports = {spec.name: json.loads((folder / f'cleaning-{spec.name}.json').read_text())
               for spec in specs}
    write_atomic(folder / REPORT, json.dumps(reports, indent=1))
