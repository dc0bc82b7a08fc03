"""Rankings of a model's own answers as the sections of a page."""

import json
import pathlib

from jaxllm.report import page
from jaxllm.report.files import read_json
from jaxllm.report.page import Section

_SHOWN = 8  # rankings of each criterion


def sections(workdir):
    """Sections of the report of a run of feedback; () if the directory holds none."""
    workdir = pathlib.Path(workdir)
    found = read_json(workdir / 'feedback.json', {})
    if not found:
        return ()
    counts = [{'criterion': name, 'rankings': count, 'prompts': found['prompts'],
               'answers to each': found['samples']} for name, count in found['rankings'].items()]
    return (Section('What was compared', page.table(counts)),
            *(Section(f'Some rankings: {name}', _examples(workdir / f'{name}.jsonl'))
              for name in found['rankings']))


def _examples(path):
    if not path.exists():
        return ''
    lines = path.read_text(encoding='utf-8').splitlines()
    count = min(_SHOWN, len(lines))
    return ''.join(_card(json.loads(lines[i * len(lines) // count])) for i in range(count))


def _card(row):
    """A prompt with its answers, the best first."""
    ordered = sorted(zip(row['ranks'], row['responses'], strict=True), key=lambda pair: pair[0])
    return (f'<div class="card prompt"><div class="text">'
            f'{page.escape(row["prompt"][-1]["content"])}</div>' + ''.join(
                f'<div class="try"><div class="step num">{rank}</div>'
                f'<div class="text">{page.escape(text)}</div></div>'
                for rank, text in ordered) + '</div>')
