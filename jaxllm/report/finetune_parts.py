"""The parts of the page about fine-tuning on your own data."""

import math

from jaxllm.evals.finetune.compare import GENERAL, MEASURED
from jaxllm.report import figure_rows, page, plots
from jaxllm.report.figure_rows import Row
from jaxllm.report.files import series
from jaxllm.report.plots import Line
from jaxllm.train.budget import bytes_text

_SHOWN = 12  # prompts side by side
_WORDS = {'better': 'better', 'worse': 'worse', 'no difference shown': 'no difference shown'}


def headline(found):
    """One sentence on what was gained, one on what was lost, and a few numbers."""
    compared, stops = found['compared'], found['stops']
    main, score = compared['nll'], compared.get('score')
    said = {
        'better': 'Yes: the fine-tuned model finds the right answers to prompts it has never seen '
                  'more likely than before.',
        'worse': 'No: the fine-tuned model finds the right answers to new prompts less likely than '
                 'before.',
        'no difference shown': 'Not shown: on prompts it has never seen, the model is not clearly '
                               'better or worse than before.'}[main['verdict']]
    lost = [MEASURED[key][0].lower() for key, row in compared.items() if row['verdict'] == 'worse']
    gained = [MEASURED[key][0].lower() for key, row in compared.items()
              if row['verdict'] == 'better' and key != 'nll']
    sentences = [f'<strong>{said}</strong>']
    if gained:
        sentences.append(f'Also better: {page.escape(", ".join(gained))}.')
    sentences.append(f'Worse than before: {page.escape(", ".join(lost))}.' if lost else
                     'Nothing that was measured has clearly become worse.')
    forgot = [key for key in GENERAL if compared.get(key, {}).get('verdict') == 'worse']
    if forgot:
        sentences.append('Some of that is forgetting: it concerns things that have nothing to do '
                         'with your data.')
    tiles = [page.tile('Surprise at new answers', f'{main["before"]:.2f} → {main["after"]:.2f}',
                       '', f'nats per token, lower is better; {_interval(main)}')]
    if score:
        tiles.append(page.tile('Held-out answers', f'{score["before"]:.0%} → {score["after"]:.0%}',
                               '', f'{_interval(score)}; {found["measure"]}'))
    if 'stopped' in compared:
        row = compared['stopped']
        tiles.append(page.tile('Answers that end by themselves',
                               f'{row["before"]:.0%} → {row["after"]:.0%}', '', stops['text']
                               .split(';')[0] + ', right after training'))
    tiles.append(page.tile('Over-fitting', f'{found["gap_before"]:+.2f} → {found["gap"]:+.2f}', '',
                           'surprise at new answers less that at learned ones, nats per token'))
    return (f'<p class="card">{" ".join(sentences)}</p>'
            f'<div class="tiles">{"".join(tiles)}</div>')


def _interval(row):
    if row['low'] is None:
        return 'too few to say how sure'
    return f'difference {row["low"]:+.2f} to {row["high"]:+.2f} (95%)'


def table(found):
    """Every measure before and after, and a picture of the differences."""
    rows, drawn = [], []
    for key, row in found['compared'].items():
        label, unit, higher, _ = MEASURED[key]
        limits = None if row['low'] is None else f'{row["low"]:+.3f} to {row["high"]:+.3f}'
        rows.append({'what': label, 'before': round(row['before'], 3),
                     'after': round(row['after'], 3), 'difference': f'{row["difference"]:+.3f}',
                     '95% interval': limits, 'unit': unit, 'items': row['n'],
                     'good is': 'more' if higher else 'less', 'verdict': _WORDS[row['verdict']]})
        sign = 1 if higher else -1
        low, high = (sign * (math.nan if row[x] is None else row[x]) for x in ('low', 'high'))
        drawn.append(Row(label, sign * row['difference'], min(low, high), max(low, high),
                         note=row['verdict']))
    what = ''.join(f'<dt>{page.escape(MEASURED[key][0])}</dt><dd>{page.escape(MEASURED[key][3])}'
                   '</dd>' for key in found['compared'])
    shares = [row for row, key in zip(drawn, found['compared'], strict=True)
              if MEASURED[key][1] == 'share']
    others = [row for row, key in zip(drawn, found['compared'], strict=True)
              if MEASURED[key][1] != 'share']
    figures = figure_rows.compared('Better or worse, shares', 'right of the line is better; hollow '
                                   '= the interval holds zero', shares, x_label='improvement')
    figures += figure_rows.compared('Better or worse, surprise', 'right of the line is better',
                                    others, x_label='improvement')
    return (f'{page.table(rows)}<p class="quiet">Held-out answers are measured by: '
            f'{page.escape(found["measure"])}. Form of nine in ten training answers: they '
            f'{page.escape(found["shape"])}. An interval that holds 0 shows no difference, however '
            'large the number looks.</p>'
            f'<div class="charts">{figures}</div>'
            f'<details class="card below"><summary>What each of these means</summary>'
            f'<dl class="pairs">{what}</dl></details>')


def side_by_side(found):
    """The same held-out prompts, the right answer, and both models' answers."""
    cards = []
    pairs = list(zip(found['before']['answers'], found['after']['answers'], strict=True))
    for old, new in pairs:
        tries = [('right', old['reference'], ''), ('before', old['text'], _mark(old)),
                 ('after', new['text'], _mark(new))]
        body = ''.join(f'<div class="try"><div class="step">{name} {mark}</div>'
                       f'<div class="text">{page.escape(text[:1200]) or "(nothing)"}</div></div>'
                       for name, text, mark in tries)
        cards.append(f'<div class="card prompt"><div class="text">{page.escape(old["prompt"])}'
                     f'</div>{body}</div>')
    rest = ''.join(cards[_SHOWN:])
    more = (f'<details class="card below"><summary>{len(cards) - _SHOWN} more</summary>{rest}'
            '</details>' if rest else '')
    return (f'<p class="quiet">Prompts that were held out of training; answers without chance '
            f'(temperature 0). The number is: {page.escape(found["measure"])}.</p>'
            + ''.join(cards[:_SHOWN]) + more)


def _mark(row):
    stopped = '' if row['stopped'] else ' · cut off'
    return f'<span class="num">{row["score"]:.2f}</span>{stopped}'


def data(found):
    """What the preparation found, with the lines of the file."""
    counts = found['prepare']['counts']
    tiles = [page.tile(name, f'{counts[key]:,}', '', hint) for name, key, hint in (
        ('Records read', 'read', ''), ('Dropped', 'dropped', 'each with its reason in '
                                       'prepare/dropped.jsonl'),
        ('To learn from', 'train', 'a tenth of them only watches the training'),
        ('Held out', 'held_out', 'never trained on; all numbers above are about these'))]
    marks = {'error': 'left out', 'warning': 'look at this', 'info': 'for your information'}
    items = []
    for finding in found['prepare']['findings']:
        examples = ''.join(f'<li><code>{page.escape(x)}</code></li>' for x in finding['examples'])
        shown = f'<ul>{examples}</ul>' if examples else ''
        items.append(f'<li><strong>{marks[finding["severity"]]}:</strong> '
                     f'{page.escape(finding["text"])}{shown}</li>')
    notes = f'<ul>{"".join(items)}</ul>' if items else '<p>Nothing stood out.</p>'
    warn = 'notes' if any(x['severity'] != 'info' for x in found['prepare']['findings']) else ''
    return (f'<div class="tiles">{"".join(tiles)}</div>'
            f'<div class="card {warn}">{notes}</div>')


def candidates(found):
    """The bases that were compared before training, or the one that was given."""
    if not found['candidates']:
        return (f'<p class="card">One base was given: <code>{page.escape(found["model"])}</code>. '
                'Give several <code>--model</code> to have them compared on your held-out prompts '
                'before training.</p>')
    rows = [{'model': row['model'], 'parameters': row['parameters'],
             'bits per byte': round(row['bits_per_byte'], 4),
             '95% interval': f'{row["low"]:.3f} to {row["high"]:.3f}',
             'held-out answers': round(row['score'], 3),
             'tokens per second': round(row['tokens_per_second'], 1),
             'taken': 'yes' if row['model'] == found['model'] else ''}
            for row in found['candidates']]
    return f'{page.table(rows)}<p class="quiet">{page.escape(found["rule"])}</p>'


def method(found):
    """Predicted memory and time of each method, and what was measured."""
    rows = [{'method': row['method'], 'parameters trained': row['trained'],
             'memory, predicted': bytes_text(row['total']),
             'minutes, predicted': round(row['seconds'] / 60, 1),
             'chosen': 'yes' if row['method'] == found['method'] else ''}
            for row in found['budgets']]
    seen = found['measured']
    return (f'{page.table(rows)}<p class="card below">Measured: {bytes_text(seen["peak_bytes"])} '
            f'of memory at its peak (with Python and all programs), {seen["seconds"] / 60:.1f} '
            f'minutes of training and validation, '
            f'{seen["tokens_per_second"]:,.0f} tokens per second.</p>')


def training(found, steps):
    """Settings with their reasons, curves, and the sweep."""
    rows = [{'setting': name, 'value': page.show(found['settings'].get(name)), 'why': why}
            for name, why in found['reasons'].items()]
    train = [x for x in steps if x['kind'] == 'train']
    evals = [x for x in steps if x['kind'] == 'eval']
    charts = plots.chart('Surprise while training', 'nats per token; lower is better', [
        Line('your records, as they are learned', series(train, 'loss'), faint=True),
        Line('records that only watch', series(evals, 'val/loss'), 1, dots=True),
        Line('as many learned records', series(evals, 'train_sample/loss'), 2, dots=True)])
    sweep = ''
    if found['sweep']:
        best = min(row['val_loss'] for row in found['sweep'])
        sweep = '<h3>One setting changed at a time</h3>' + page.table([
            {'run': row['name'], 'lowest validation loss': round(row['val_loss'], 4),
             'best': 'yes' if row['val_loss'] == best else ''} for row in found['sweep']])
    return (f'{page.table(rows)}<div class="charts below">{charts}</div>'
            '<p class="quiet">Where the watching records rise while the learned ones fall, the '
            'model learns by heart; the best moment is kept.</p>' + sweep)


def advice(found):
    """What to change, in the order in which to try it."""
    items = ''.join(
        f'<li><strong>{x["kind"]}:</strong> {page.escape(x["text"])}'
        + (f' <code>{page.escape(x["command"])}</code>' if x['command'] else '') + '</li>'
        for x in found['advice'])
    return ('<div class="card"><p>Settings first, then the data, and training anew only when '
            f'the cause is known.</p><ol>{items}</ol></div>')


def probes(found):
    """Answers to the fixed questions, before and after."""
    parts = []
    for kind, title in (('format', 'Follows instructions'), ('fact', 'Knows facts'),
                        ('unknown', 'Things that do not exist')):
        key = {'format': 'score', 'fact': 'right', 'unknown': 'abstains'}[kind]
        rows = [{'question': old['prompt'], 'before': old['text'][:160] or '–',
                 'ok before': old[key] > 0, 'after': new['text'][:160] or '–',
                 'ok after': new[key] > 0}
                for old, new in zip(found['before'][kind], found['after'][kind], strict=True)]
        good = [sum(row[name] for row in rows) for name in ('ok before', 'ok after')]
        parts.append(f'<details class="card below"><summary>{title}: {good[0]} of {len(rows)} '
                     f'before, {good[1]} after</summary>{page.table(rows)}</details>')
    return ('<p class="quiet">The same for every model and every data set. They show what was '
            'forgotten, and whether a model makes things up.</p>' + ''.join(parts))


def usage(found):
    """Commands."""
    commands = [('talk to it', f'jaxllm chat --workdir={found["run"]}'),
                ('go back to the model before', f'jaxllm revert {found["run"]}'),
                ('where it comes from', f'jaxllm lineage {found["run"]}'),
                ('for Transformers, vLLM',
                 f'jaxllm export {found["run"]} --format=hf --out=FOLDER'),
                ('for llama.cpp', f'jaxllm export {found["run"]} --format=gguf --out=FILE.gguf')]
    if found['method'] != 'full':
        commands.append(('the adapter alone, for PEFT',
                         f'jaxllm adapters export {found["run"]} --out=FOLDER'))
    return page.table([{'to': what, 'command': command} for what, command in commands])


def glossary():
    """Terms in plain words."""
    words = {
        'token': 'a piece of text, about three quarters of an English word',
        'surprise (nats per token)': 'how unlikely the model finds the next token of a right '
        'answer: minus the natural logarithm of its probability, on average; 0.1 less is about 10% '
        'more likely per token',
        'held out': 'records that were kept away from training, so that the model cannot know them',
        'interval (95%)': 'the range in which the difference would lie for most other choices of '
        'held-out records; if it holds 0, chance alone could explain what is seen',
        'over-fitting': 'the model learns records by heart and gets no better at new ones',
        'forgetting': 'the model gets worse at what has nothing to do with your data',
        'LoRA': 'a small trained addition beside the frozen model; taking it away gives the old '
        'model back', 'epoch': 'one reading of all your training records'}
    items = ''.join(f'<dt>{page.escape(k)}</dt><dd>{page.escape(v)}</dd>' for k, v in words.items())
    return f'<dl class="card pairs">{items}</dl>'
