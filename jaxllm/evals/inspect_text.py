"""An inspection as text for a terminal: coloured on one, plain in a file or a pipe."""

import math
import sys
import unicodedata

_RESET = '\x1b[0m'
_SIGNS = {'\n': '↵', '\t': '⇥', ' ': '·', '\r': '␍'}


def visible(text):
    """Text in which white space shows and nothing acts on a terminal."""
    return ''.join(_SIGNS.get(c) or (c if c.isprintable() else f'\\u{ord(c):04x}') for c in text)


def render_terminal(inspection, *, colour=None, rows=2, worst=12):
    """A table of the most surprising tokens, the text coloured by loss, and norms per layer.

    Args:
      colour: None = where the standard output is a terminal.
      rows: rows of the batch whose text is shown.
      worst: tokens in the table.
    """
    colour = sys.stdout.isatty() if colour is None else colour
    parts = [_summary(inspection), _worst(inspection, worst)]
    for row in range(min(rows, len(inspection.tokens_BL))):
        text = _coloured(inspection, row) if colour else _plain(inspection, row)
        parts.append(_title(f'Row {row}, loss of each token', colour) + '\n' + text)
    parts.append(_layers(inspection))
    lines = '\n\n'.join(parts)
    return lines + '\n'


def _title(text, colour):
    return f'\x1b[1m{text}{_RESET}' if colour else text


def _summary(inspection):
    values = {'loss': inspection.loss} | inspection.metrics | {
        'grad_norm': inspection.grad_norm, 'clip': inspection.clip, 'lr': inspection.lr}
    return '   '.join(f'{name} {value:.4g}' for name, value in values.items())


def _worst(inspection, count):
    table = [('row', 'pos', 'nll', 'p', 'entropy', 'token', 'instead')]
    for row, t in inspection.worst(count):
        nll = float(inspection.nll_BL[row, t])
        word = visible(inspection.words[int(inspection.targets_BL[row, t])])
        instead = '  '.join(f'{visible(text)} {p:.0%}' for text, p in
                            inspection.candidates(row, t))
        table.append((str(row), str(t), f'{nll:.2f}', f'{math.exp(-nll):.2g}',
                      f'{inspection.entropy_BL[row, t]:.2f}', word, instead))
    return 'Most surprising tokens\n' + _table(table, left=(5, 6))


def _layers(inspection):
    layers = inspection.layers()
    top = max((norms.grad for norms in layers), default=0.0) or 1.0
    table = [('', 'grad norm', '', 'weight norm', 'update norm', 'update / weight')]
    for norms in layers:
        name = f'layer {norms.layer}' if norms.layer >= 0 else norms.name
        table.append((name, f'{norms.grad:.3g}', '█' * round(20 * norms.grad / top),
                      f'{norms.param:.4g}', f'{norms.update:.3g}', f'{norms.ratio:.2e}'))
    return 'Norms per layer\n' + _table(table, left=(0, 2))


def _table(rows, left):
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]

    def cell(i, text):
        space = ' ' * (widths[i] - _width(text))
        return text + space if i in left else space + text
    return '\n'.join('  '.join(cell(i, text) for i, text in enumerate(row)).rstrip()
                     for row in rows)


def _width(text):
    """Columns of a terminal that text takes."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in 'WF')
               for c in text)


def _coloured(inspection, row):
    worst, pieces, segment = math.log(inspection.vocab_size), [], None
    for text, t, new in inspection.text(row):
        if segment not in (None, new):
            pieces.append('\n')
        segment = new
        shown = visible(text)
        if t < 0 or not inspection.weights_BL[row, t]:
            shown = f'\x1b[2m{shown}{_RESET}'
        else:
            share = min(float(inspection.nll_BL[row, t]) / worst, 1.0)
            # From black to a strong red, with white letters.
            shown = (f'\x1b[38;2;255;255;255;48;2;{round(30 + 170 * share)};30;'
                     f'{round(45 - 25 * share)}m{shown}{_RESET}')
        pieces.append(shown + '\n' * text.count('\n'))
    return ''.join(pieces)


def _plain(inspection, row):
    """Tokens with their loss behind them; what has no loss stands alone."""
    pieces, segment = [], None
    for text, t, new in inspection.text(row):
        if segment not in (None, new):
            pieces.append('\n')
        segment = new
        has_loss = t >= 0 and inspection.weights_BL[row, t]
        loss = f'({inspection.nll_BL[row, t]:.1f})' if has_loss else ''
        pieces.append(visible(text) + loss + '\n' * text.count('\n'))
    return ' '.join(pieces).replace('\n ', '\n')
