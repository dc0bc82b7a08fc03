"""The sections of a run's report: each a pure function from data to HTML, '' without data."""

import collections
import dataclasses
import math

from jaxllm.report import page
from jaxllm.report.files import series
from jaxllm.report.plots import Line, chart, median, trend
from jaxllm.train.progress import duration

SAMPLES_SHOWN = 5
PROMPTS_SHOWN = 8
CHARACTERS_SHOWN = 1200
NOTES_SHOWN = 20


def headline(train, evals, perf):
    """Tiles with the numbers that one looks for first; `tokens` of a train record is a total."""
    tiles = [*_validation_tiles(evals), *_train_tiles(train), *_perf_tiles(perf)]
    if not tiles:
        return '<p class="quiet">Nothing has been measured yet.</p>'
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _validation_tiles(evals):
    tiles = []
    for key, name, unit in (('val/loss', 'Validation loss', _unit(evals, 'nats per token')),
                            ('val/bits_per_byte', 'Validation', 'bits per byte'),
                            ('val/accuracy', 'Next-token accuracy', '%'),
                            ('val/pair_accuracy', 'Pairs ordered rightly', '%')):
        points = series(evals, key)
        if not points:
            continue
        step, value = points[-1]
        if not key.endswith('accuracy'):
            best_step, best = min(points, key=lambda p: (math.isnan(p[1]), p[1], -p[0]))
            rank = 'the best' if best_step == step else f'best {best:.4f} at {best_step:,}'
            tiles.append(page.tile(name, f'{value:.4f}', '', f'{unit}, step {step:,}; {rank}'))
        else:
            tiles.append(page.tile(name, f'{100 * value:.1f}', unit, f'step {step:,}'))
    return tiles


def _train_tiles(train):
    tiles = []
    if tokens := series(train, 'tokens'):
        tiles.append(page.tile('Tokens seen', page.short(tokens[-1][1]), '',
                               f'in {train[-1]["step"]:,} steps'))
    skipped = sum(value for _, value in series(train, 'skipped'))
    if skipped:
        tiles.append(page.tile('Skipped steps', f'{skipped:.0f}', '', 'bad gradient or loss'))
    return tiles


def _perf_tiles(perf):
    tiles = []
    speed = median([value for _, value in series(perf, 'tokens_per_second')])
    if speed is not None:
        tiles.append(page.tile('Speed', page.short(speed), 'tokens/s', 'median'))
    share = median([value for _, value in series(perf, 'mfu')])
    if share is not None:
        tiles.append(page.tile('MFU', f'{100 * share:.1f}', '%', 'of the measured matmul peak'))
    wait = median([value for _, value in series(perf, 'data_wait_share')])
    if wait is not None:
        tiles.append(page.tile('Waiting for data', f'{100 * wait:.1f}', '%', 'of the step time'))
    if wall := series(perf, 'wall_s'):
        tiles.append(page.tile('Wall time', duration(wall[-1][1]), '', 'all sessions'))
    for key, name, hint in (('peak_rss_bytes', 'Process memory', 'peak'),
                            ('memory_bytes', 'Device memory', 'largest recorded')):
        if values := [value for _, value in series(perf, key) if math.isfinite(value)]:
            tiles.append(page.tile(name, page.size_of(max(values)), '', hint))
    return tiles


def _unit(evals, of_text):
    """That of a loss: of text where bits per byte were measured, or simply nats."""
    return of_text if not evals or series(evals, 'val/bits_per_byte') else 'nats'


def curves(train, evals, perf):
    """Charts along training."""
    skipped = tuple(step for step, value in series(train, 'skipped') if value)
    charts = [
        chart('Training loss', _unit(evals, 'nats/token'), trend(series(train, 'loss')),
              marks=skipped, marks_label='skipped step'),
        chart('Validation loss', _unit(evals, 'nats/token'),
              [Line('all sources', series(evals, 'val/loss'), dots=True),
               Line('as many training rows', series(evals, 'train_sample/loss'), 1, dots=True)]),
        chart('Validation, bits per byte', 'lower is better', _bits_per_byte(evals)),
        chart('Pairs ordered rightly', 'held-out share', [
            Line('all sources', series(evals, 'val/pair_accuracy'), dots=True)]),
        chart('Learning rate', '', [Line('lr', series(train, 'lr'))], from_zero=True),
        chart('Gradient norm', 'log scale', trend(series(train, 'grad_norm')),
              log_y=True, marks=skipped, marks_label='skipped step'),
        chart('Update norm', 'log scale', trend(series(train, 'update_norm')), log_y=True),
        chart('Speed', 'tokens/s', trend(series(perf, 'tokens_per_second')),
              from_zero=True),
        chart('MFU', 'share of the measured matmul peak', trend(series(perf, 'mfu')),
              from_zero=True)]
    if not any(charts):
        return '<p class="quiet">No curves yet: the first come with the first steps.</p>'
    return f'<div class="charts">{"".join(charts)}</div>'


def gap_chart(title, train, evals):
    """The loss of one run while it trained, on its own and on held-out data; '' without either."""
    own = trend(series(train, 'nll') or series(train, 'loss'))[-1:]
    return chart(title, _unit(evals, 'nats per token'), [
        *(dataclasses.replace(line, label='training batches') for line in own),
        Line('held out', series(evals, 'val/loss'), 1, dots=True),
        Line('as many training rows', series(evals, 'train_sample/loss'), 2, dots=True)])


def _bits_per_byte(evals):
    head, tail = 'val/', '/bits_per_byte'
    names = list(dict.fromkeys(key for record in evals for key in record
                               if key.startswith(head) and key.endswith(tail)
                               and len(key) > len(head) + len(tail)))
    lines = [Line('all sources', series(evals, 'val/bits_per_byte'), dots=True)]
    return lines + [Line(key[len(head):-len(tail)], series(evals, key), colour, dots=True)
                    for colour, key in enumerate(names, 1)]


def samples(records):
    """What the model wrote after each prompt as training went on, the latest first."""
    by_prompt = collections.defaultdict(list)
    for record in records:
        by_prompt[record['prompt']].append(record)
    parts = []
    for prompt, group in list(by_prompt.items())[:PROMPTS_SHOWN]:
        # Evenly spaced over training, the first and the last among them.
        count = min(SAMPLES_SHOWN, len(group))
        at = {round(i * (len(group) - 1) / max(count - 1, 1)) for i in range(count)}
        shown = [_completion(group[i]) for i in sorted(at, reverse=True)]
        rest = [_completion(group[i]) for i in reversed(range(len(group))) if i not in at]
        more = (f'<details><summary>{len(rest)} more</summary>{"".join(rest)}</details>'
                if rest else '')
        parts.append(f'<div class="card prompt"><div class="text">{_text(prompt)}</div>'
                     f'{"".join(shown)}{more}</div>')
    if len(by_prompt) > PROMPTS_SHOWN:
        parts.append(f'<p class="quiet">{len(by_prompt) - PROMPTS_SHOWN} more prompts are in '
                     'samples.jsonl.</p>')
    return '\n'.join(parts)


def _completion(record):
    return (f'<div class="try"><div class="step num">step {record["step"]:,}</div>'
            f'<div class="text">{_text(record["completion"])}</div></div>')


def _text(text):
    text = str(text)
    if not text:
        return '<span class="quiet">(nothing)</span>'
    left = len(text) - CHARACTERS_SHOWN
    more = f' <span class="quiet">… {left:,} more characters</span>' if left > 0 else ''
    return page.escape(text[:CHARACTERS_SHOWN]) + more


def stops(found):
    """Whether greedy answers end by themselves, of a fine-tuning run; `found` is its stops.json."""
    return f'<p class="card">{page.escape(found["text"])}</p>' if found else ''


def fertility(rows):
    """How the tokenizer splits text, per language or source."""
    return page.table(rows) if rows else ''


def data(rows):
    """The sources that the model learns from."""
    first = ('source', 'documents', 'tokens', 'bytes', 'share', 'epochs', 'license', 'licence',
             'rejects', 'path')
    ordered = []
    for row in rows:
        keys = [key for key in first if key in row] + [key for key in row if key not in first]
        ordered.append({key: _rejects(row[key]) if key == 'rejects' else row[key] for key in keys})
    return page.table(ordered) if ordered else ''


def _rejects(value):
    """'3 of 60 (too short 3)' from a summary of rejects, or from one per file."""
    if not isinstance(value, dict):
        return value
    if 'rejected' in value:
        reasons = f' ({page.show(value["reasons"])})' if value.get('reasons') else ''
        return f'{page.show(value["rejected"])} of {page.show(value.get("read"))}{reasons}'
    if any(isinstance(item, dict) for item in value.values()):
        return ', '.join(str(_rejects(item)) for item in value.values())
    return page.show(value)


def config(tree):
    """The resolved config, collapsed."""
    if not tree:
        return ''
    nested = {key: value for key, value in tree.items() if isinstance(value, dict) and value}
    top = {key: value for key, value in tree.items() if key not in nested}
    groups = ([f'<div>{page.pairs(top)}</div>'] if top else []) + [
        f'<div><h3>{page.escape(key)}</h3>{page.pairs(page.flatten(value))}</div>'
        for key, value in nested.items()]
    return (f'<details class="card"><summary>{len(page.flatten(tree))} settings</summary>'
            f'<div class="settings">{"".join(groups)}</div></details>')


def lineage(tree):
    """Where the run comes from: parents by role, then fingerprints, revision and versions."""
    if not tree:
        return ''
    rows = []
    for role, parent in (tree.get('parents') or {}).items():
        rows.append({'role': role, **(parent if isinstance(parent, dict) else {'run': parent})})
    own = {key: value for key, value in tree.items() if key != 'parents'}
    packages = {key: own.pop(key) for key in ('packages', 'versions') if key in own}
    scratch = '<p class="card quiet">No parents: started from scratch.</p>'
    parts = [page.table(rows) if rows else scratch,
             f'<div class="card below">{page.pairs(page.flatten(own))}</div>']
    for name, versions in packages.items():
        parts.append(f'<details class="card below"><summary>{len(versions)} '
                     f'{page.escape(name)}</summary>{page.pairs(page.flatten(versions))}</details>')
    return ''.join(parts)


def notes(records):
    """Warnings and repairs, equal ones counted."""
    texts = collections.defaultdict(list)
    for record in records:
        texts[str(record['text'])].append(record['step'])
    items = [f'<li>{page.escape(text)} <span class="quiet">{_steps(steps)}</span></li>'
             for text, steps in texts.items()]
    if len(items) > NOTES_SHOWN:
        items[NOTES_SHOWN:] = [f'<li class="quiet">{len(items) - NOTES_SHOWN:,} more are in '
                               'metrics.jsonl and perf.jsonl</li>']
    return f'<div class="card notes"><ul>{"".join(items)}</ul></div>' if items else ''


def _steps(steps):
    shown = ', '.join(f'{step:,}' for step in steps[:10])
    more = f' and {len(steps) - 10:,} more' if len(steps) > 10 else ''
    return f'step {shown}' if len(steps) == 1 else f'{len(steps):,} times: steps {shown}{more}'
