"""report.html of fine-tuning on your own data, for people who do not program, from finetune.json.

finetune.json: data, model, run (paths); prepare {counts, findings}; candidates [rows]; method;
budgets [Budget as dict]; measured {peak_bytes, seconds, tokens_per_second}; settings, reasons
{name: value, why}; measure, shape (in words); compared {name: of evals.finetune.compare}; val
[[step, nats]]; gap, gap_before; stops; advice [{kind, text, command}]; sweep [{name, val_loss}];
before, after (what each model was asked and answered); minutes.
"""

import json
import pathlib

from jaxllm.errors import InputError
from jaxllm.evals.finetune.compare import MEASURED
from jaxllm.report import finetune_parts as parts
from jaxllm.report import page
from jaxllm.report.page import Section
from jaxllm.train.metrics import read_jsonl

FILE = 'finetune.json'


def write_report(workdir):
    """Writes workdir/report.html. Returns its path. Raises InputError without finetune.json."""
    workdir = pathlib.Path(workdir)
    if not (workdir / FILE).exists():
        raise InputError(f'{workdir} has no {FILE}; let `jaxllm finetune` come to its end first')
    found = json.loads((workdir / FILE).read_text(encoding='utf-8'))
    steps = read_jsonl(workdir / 'sft' / 'metrics.jsonl')
    return page.write(workdir / 'report.html', render(found, steps))


def render(found, steps=()):
    """The page as one HTML string; `steps` are the records of the run's metrics.jsonl."""
    counts = found['prepare']['counts']
    name = pathlib.Path(found['data']).name
    model = pathlib.Path(found['model']).name
    return page.page(
        f'Fine-tuning {model} on {name}',
        f'{counts["train"]:,} records to learn from, {counts["held_out"]:,} held out · '
        f'{found["method"]} · {found["minutes"]:.0f} minutes',
        [Section('Did it help?', parts.headline(found)),
         Section('Before and after', parts.table(found)),
         Section('Side by side', parts.side_by_side(found)),
         Section('Step 1: your data', parts.data(found)),
         Section('Step 2: the base model', parts.candidates(found)),
         Section('Step 3: the method', parts.method(found)),
         Section('Step 4: settings and training', parts.training(found, steps)),
         Section('Step 5: what to do next', parts.advice(found)),
         Section('Questions that have nothing to do with your data', parts.probes(found)),
         Section('Using the result, and going back', parts.usage(found)),
         Section('Words used here', parts.glossary())],
        footer='Made by jaxllm from finetune.json and the files of the run.')


def text(found):
    """The comparison for a terminal."""
    lines = [f'{"":<32}{"before":>10}{"after":>10}{"difference":>12}   95% interval']
    for key, row in found['compared'].items():
        label, unit, _, _ = MEASURED[key]
        limits = ('' if row['low'] is None
                  else f'{row["low"]:+.3f} to {row["high"]:+.3f}  {row["verdict"]}')
        lines.append(f'{label:<32}{row["before"]:>10.3f}{row["after"]:>10.3f}'
                     f'{row["difference"]:>+12.3f}   {limits}')
    lines.append(f'held-out answers are measured by: {found["measure"]}')
    lines += [f'next ({x["kind"]}): {x["text"]}' + (f'  [{x["command"]}]' if x['command'] else '')
              for x in found['advice']]
    return '\n'.join(lines)
