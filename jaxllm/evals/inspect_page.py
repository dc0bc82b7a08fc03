"""An inspection as one self-contained HTML page, light or dark."""

import base64
import html
import math
import struct
import zlib

import numpy as np

from jaxllm.evals.inspect_text import visible

_STYLE = '''
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fff; --ink: #1d1f23; --soft: #5d6470;
  --line: #dfe0dc; --hot: #e4572e; --cool: #2459b8; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e7e8ea;
  --soft: #a2a9b4; --line: #31353d; --hot: #e0532b; --cool: #8ab4ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { margin: 0; font-size: 1.9rem; } h2 { margin: 36px 0 6px; font-size: 1.25rem; }
p { margin: 0 0 12px; color: var(--soft); max-width: 80ch; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; margin-bottom: 12px; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px;
  margin: 18px 0; }
.tiles .card { margin: 0; } .tiles div div { color: var(--soft); font-size: .83rem; }
.tiles b { font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.text, code { font-family: ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; }
.text { font-size: .95rem; line-height: 1.95; overflow-wrap: anywhere; }
.text h3 { font: 600 .83rem system-ui, sans-serif; margin: 0 0 4px; color: var(--soft); }
.text i { color: var(--soft); font-style: normal; }
.text span, .text i { padding: 2px 0; border-right: 1px solid var(--card); }
.text span, td.heat, .scale { background: color-mix(in srgb, var(--hot) calc(var(--a) * 80%),
  transparent); }
.scale { display: inline-block; width: 42px; color: var(--ink);
  text-align: center; font-size: .83rem; }
.text hr { border: 0; border-top: 1px dashed var(--line); margin: 8px 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .83rem;
  border-bottom: 1px solid var(--line); } th, td { padding: 4px 10px; white-space: nowrap; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
.bar { width: 40%; min-width: 120px; } .bar div { height: 12px; border-radius: 3px;
  background: var(--cool); width: calc(var(--a) * 100%); min-width: 1px; }
.p { display: inline-block; margin-right: 14px; color: var(--soft); }
.p code { color: var(--ink); }
td.heat { text-align: right; font-variant-numeric: tabular-nums; font-size: .83rem;
  border: 1px solid var(--card); }
.maps { display: grid; gap: 10px; align-items: center; justify-content: start; }
.maps img { width: 100%; display: block; image-rendering: pixelated; background: var(--page);
  border: 1px solid var(--line); border-radius: 4px; }
.maps div { font-size: .78rem; color: var(--soft); text-align: center; }
footer { margin-top: 32px; color: var(--soft); font-size: .83rem; }
'''


def escape(text):
    return html.escape(str(text), quote=True)


def render_html(inspection, *, title='Inside one training step', rows=4, worst=20):
    """The page as a string; it refers to no other file.

    Args:
      rows: rows of the batch whose text is shown.
      worst: tokens in the table of the most surprising ones.
    """
    B, L = inspection.tokens_BL.shape
    num_losses = int((inspection.weights_BL > 0).sum())
    sections = [
        ('Text by loss', 'Each token is shaded by its loss, -log p, up to log V, a uniform '
         'guess. Grey tokens are only read: their loss weighs nothing. Hover over a token for '
         'what the model expected in its place.', _texts(inspection, rows)),
        ('Most surprising tokens', 'Those with the largest loss, what stands before them, and what '
         'the model expected.', _worst(inspection, worst)),
        ('Norms by layer', 'Gradients before clipping, and the update that this step makes.',
         _layers(inspection)),
        ('Gradient norm by parameter', 'L2 norm per layer; shading is logarithmic.',
         _matrix(inspection, 'grad')),
        ('Update / weight by parameter', 'About 1e-3 is usual; far more is unstable, far less '
         'hardly learns.', _matrix(inspection, 'ratio')),
        (f'Attention of row {inspection.row}', f'The first {len(inspection.attention_HMM[0][0])} '
         'tokens: a query per line, a key per column. Shading is the square root of the weight. '
         'Below each: mean entropy of a query, in nats, and its weight on the first token.',
         _maps(inspection))]
    body = '\n'.join(f'<section><h2>{escape(name)}</h2>\n<p>{escape(note)}</p>\n{content}</section>'
                     for name, note, content in sections)
    return f'''<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body><main>
<h1>{escape(title)}</h1>
{_tiles(inspection)}
{body}
<footer>{B} rows of {L} tokens, {num_losses} of them with a loss.</footer>
</main></body>
</html>
'''


def _tiles(inspection):
    values = {'loss': inspection.loss} | inspection.metrics | {
        'gradient norm': inspection.grad_norm, 'clip factor': inspection.clip,
        'learning rate': inspection.lr}
    tiles = ''.join(f'<div class="card"><div>{escape(name.replace("_", " "))}</div>'
                    f'<b>{value:.4g}</b></div>' for name, value in values.items())
    return f'<div class="tiles">{tiles}</div>'


def _shade(share):
    return f'style="--a:{min(max(share, 0.0), 1.0):.3f}"'


def _texts(inspection, rows):
    uniform = math.log(inspection.vocab_size)
    scale = ''.join(f'<span class="scale" {_shade(i / 4)}>{i * uniform / 4:.1f}</span>'
                    for i in range(5))
    cards = [f'<div class="card text"><h3>Row {row}</h3>{_text(inspection, row, uniform)}</div>'
             for row in range(min(rows, len(inspection.tokens_BL)))]
    return f'<p>{scale} nats</p>' + ''.join(cards)


def _text(inspection, row, uniform):
    pieces, segment = [], None
    for text, t, new in inspection.text(row):
        if segment not in (None, new):
            pieces.append('<hr>')
        segment = new
        word = escape(visible(text)) + '<wbr>'
        if t < 0:
            pieces.append(f'<i title="given, not predicted">{word}</i>')
        else:
            nll = float(inspection.nll_BL[row, t])
            expected = '\n'.join(f'{p:6.1%}  {visible(x)}' for x, p in
                                 inspection.candidates(row, t))
            hint = f'position {t}: loss {nll:.3f}, p {math.exp(-nll):.3g}\n{expected}'
            tag, style = ('span', _shade(nll / uniform)) if inspection.weights_BL[row, t] else (
                'i', '')
            pieces.append(f'<{tag} {style} title="{escape(hint)}">{word}</{tag}>')
        pieces.append('<br>' * ('\n' in text))
    return ''.join(pieces)


def _worst(inspection, count):
    lines = []
    for row, t in inspection.worst(count):
        nll = float(inspection.nll_BL[row, t])
        start = max(0, t - 7)
        context = ''.join(inspection.words[int(i)] for i, segment in zip(
            inspection.tokens_BL[row, start:t + 1], inspection.segment_ids_BL[row, start:t + 1],
            strict=True) if segment == inspection.segment_ids_BL[row, t])
        instead = ''.join(f'<span class="p"><code>{escape(visible(text))}</code> {p:.0%}</span>'
                          for text, p in inspection.candidates(row, t))
        word = visible(inspection.words[int(inspection.targets_BL[row, t])])
        lines.append(
            f'<tr><td class="num">{row}</td><td class="num">{t}</td>'
            f'<td class="num">{nll:.2f}</td><td class="num">{math.exp(-nll):.2g}</td>'
            f'<td class="num">{float(inspection.entropy_BL[row, t]):.2f}</td>'
            f'<td class="num"><code>{escape(visible(context)[-24:])}</code></td>'
            f'<td><code><b>{escape(word)}</b></code></td><td>{instead}</td></tr>')
    head = ''.join(f'<th class="num">{name}</th>'
                   for name in ('row', 'position', 'loss', 'p', 'entropy', 'after'))
    return (f'<div class="card"><table><tr>{head}<th>token</th><th>expected</th></tr>'
            f'{"".join(lines)}</table></div>')


def _layers(inspection):
    layers = inspection.layers()
    top = max(norms.grad for norms in layers) or 1.0
    lines = ''.join(
        f'<tr><td>{escape(_name(norms))}</td><td class="num">{norms.grad:.3g}</td>'
        f'<td class="bar"><div {_shade(norms.grad / top)}></div></td>'
        f'<td class="num">{norms.param:.4g}</td><td class="num">{norms.update:.3g}</td>'
        f'<td class="num">{norms.ratio:.2e}</td></tr>' for norms in layers)
    return ('<div class="card"><table><tr><th></th><th class="num">gradient norm</th><th></th>'
            '<th class="num">weight norm</th><th class="num">update norm</th>'
            f'<th class="num">update / weight</th></tr>{lines}</table></div>')


def _name(norms):
    return f'layer {norms.layer}' if norms.layer >= 0 else norms.name


def _matrix(inspection, field):
    """Parameters by layers; what is in no layer stands in a line with one cell."""
    cells, columns = {}, []
    for norms in inspection.norms:
        column = _name(norms) if norms.layer >= 0 else ''
        if norms.layer >= 0 and column not in columns:
            columns.append(column)
        cells.setdefault(norms.name, {})[column] = getattr(norms, field)
    columns.sort(key=lambda name: int(name.split()[1]))
    logs = [math.log10(x) for line in cells.values() for x in line.values()
            if 0 < x < math.inf]
    low, high = min(logs, default=0.0), max(logs, default=1.0)

    def cell(value):
        if value is None:
            return '<td></td>'
        share = (math.log10(value) - low) / max(high - low, 1e-9) if 0 < value < math.inf else 0
        return f'<td class="heat" {_shade(share)}>{value:.2e}</td>'

    columns = columns + [''] if any('' in line for line in cells.values()) else columns
    head = ''.join(f'<th class="num">{escape(c) or "elsewhere"}</th>' for c in columns)
    body = ''.join(f'<tr><td>{escape(name)}</td>' + ''.join(cell(line.get(c)) for c in columns)
                   + '</tr>' for name, line in cells.items())
    return f'<div class="card"><table><tr><th></th>{head}</tr>{body}</table></div>'


def _maps(inspection):
    heads = len(inspection.attention_HMM[0])
    cells = ['<div></div>'] + [f'<div>head {h}</div>' for h in range(heads)]
    for layer, maps_HMM in enumerate(inspection.attention_HMM):
        cells.append(f'<div>layer {layer}</div>')
        for h, weights_MM in enumerate(maps_HMM):
            w = weights_MM.astype('float64')
            rows = max(int((w.sum(-1) > 0.5).sum()), 1)
            entropy = -(w * _log(w)).sum() / rows
            cells.append(f'<div><img alt="attention of layer {layer}, head {h}" '
                         f'src="{_image(w)}">{entropy:.2f} · {w[:, 0].sum() / rows:.0%}</div>')
    columns = f'grid-template-columns: 56px repeat({heads}, minmax(84px, 150px))'
    return f'<div class="card"><div class="maps" style="{columns}">{"".join(cells)}</div></div>'


def _log(w):
    return np.log(np.where(w > 0, w, 1.0))


def _image(w):
    """A PNG as a data URI: one colour whose opacity is the square root of the weight."""
    levels = np.rint(255 * np.sqrt(np.clip(w, 0, 1))).astype(np.uint8)
    lines = b''.join(b'\0' + line.tobytes() for line in levels)

    def chunk(name, data):
        return (struct.pack('>I', len(data)) + name + data
                + struct.pack('>I', zlib.crc32(name + data)))

    header = struct.pack('>IIBBBBB', w.shape[1], w.shape[0], 8, 3, 0, 0, 0)
    png = (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
           + chunk(b'PLTE', bytes((0xe4, 0x57, 0x2e)) * 256) + chunk(b'tRNS', bytes(range(256)))
           + chunk(b'IDAT', zlib.compress(lines, 9)) + chunk(b'IEND', b''))
    return 'data:image/png;base64,' + base64.b64encode(png).decode()
