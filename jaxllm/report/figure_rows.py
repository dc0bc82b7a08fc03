"""Figures of named rows with intervals, as inline SVG: bars, and effects with a line at zero."""

import dataclasses
import math

from jaxllm.report import figures, page, plots
from jaxllm.report.plots import COLOURS, WIDTH

EDGE, ROW, BAR, AXIS = 8, 46, 15, 40


@dataclasses.dataclass(frozen=True)
class Row:
    """An effect with its limits, and perhaps the effect of every seed."""
    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    seeds: tuple = ()
    note: str = ''

    @classmethod
    def of(cls, verdict):
        """From a verdict of jaxllm.evals.verdict."""
        return cls(verdict.rule.name, verdict.effect, verdict.low, verdict.high,
                   tuple(verdict.effects_by_seed.values()), verdict.verdict)

    @property
    def bounded(self):
        return math.isfinite(self.low) and math.isfinite(self.high)

    def excludes(self, null):
        return self.low > null or self.high < null


def compared(title, unit, rows, *, null=0., delta=None, x_label='effect'):
    """Dots with whiskers and a line at the null; what does not exclude it is hollow and grey.

    Args:
        title, unit: text above the figure.
        rows: Rows; the seeds' effects are small strokes under the whisker.
        null: where the line stands.
        delta: distance from the null that was fixed beforehand, a dashed line; None = no line.
        x_label: text under the axis.

    Returns:
        HTML; '' when no row has a finite value.
    """
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return ''
    values = [null] + ([null + delta] if delta else []) + [
        x for row in rows for x in (row.value, row.low, row.high, *row.seeds) if math.isfinite(x)]
    to_x, low, high = _scale(values, WIDTH - EDGE)
    floor = ROW * len(rows) + 6
    drawing = _axis(to_x, low, high, floor, x_label)
    # Below the text of each row, so that no line runs through it.
    down = lambda x: ''.join(f'M{to_x(x):.1f} {top + 22}V{min(top + ROW, floor)}'
                             for top in range(0, ROW * len(rows), ROW))
    drawing += f'<path class="zero" d="{down(null)}V{floor}"/>'
    if delta:
        drawing += f'<path class="reference" d="{down(null + delta)}V{floor}"/>'
    for number, row in enumerate(rows):
        drawing += _effect(row, number * ROW, to_x, null)
    keys = [(f'excludes {plots.tick_label(null)}', any(row.excludes(null) for row in rows), 'key'),
            (f'does not exclude {plots.tick_label(null)}',
             not all(row.excludes(null) for row in rows), 'key hollow'),
            ('each seed', any(row.seeds for row in rows), 'key stroke')]
    if delta:
        keys.append((f'fixed beforehand: {plots.tick_label(null + delta)}', True, 'kn dashed'))
    items = ''.join(f'<li><i class="{style}"></i>{page.escape(text)}</li>'
                    for text, shown, style in keys if shown)
    return plots.figure(title, unit, drawing, f'<ul class="legend">{items}</ul>', floor + AXIS)


def bars(title, unit, series, *, x_label=''):
    """Bars from 0 with whiskers, one row per category and one bar per series.

    Args:
        title, unit: text above the figure.
        series: figures.Series whose points' x are the names of categories.
        x_label: text under the axis.

    Returns:
        HTML; '' when there is no point.
    """
    series = [dataclasses.replace(line, points=tuple(
        point for point in line.points if math.isfinite(point.value))) for line in series]
    names = list(dict.fromkeys(point.x for line in series for point in line.points))
    if not names:
        return ''
    to_x, low, high = _scale([0.] + [
        x for line in series for point in line.points
        for x in (point.value, point.low, point.high) if math.isfinite(x)], WIDTH - 62)
    tall = 24 + BAR * len(series) + 6
    floor = tall * len(names) + 4
    drawing = _axis(to_x, low, high, floor, x_label)
    drawing += f'<path class="zero" d="M{to_x(0):.1f} 0V{floor}"/>'
    for number, name in enumerate(names):
        top = number * tall
        drawing += _label(str(name), top, 52)
        for place, line in enumerate(series):
            for point in line.points:
                if point.x == name:
                    drawing += _bar(point, line, top + 24 + BAR * place, to_x)
    return plots.figure(title, unit, drawing, figures.legend(series), floor + AXIS)


def _scale(values, right):
    """(value -> pixel, low, high) with a little room on both sides of values that are not 0."""
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) or 1.
    low, high = (low - pad if low else low), (high + pad if high or low == high else high)
    return lambda x: EDGE + (x - low) / (high - low) * (right - EDGE), low, high


def _axis(to_x, low, high, floor, x_label):
    drawn = ''
    for tick in plots.linear_ticks(low, high, 4):
        x = to_x(tick)
        drawn += (f'<path class="grid" d="M{x:.1f} 0V{floor}"/><text x="{x:.1f}" y="{floor + 17}" '
                  f'text-anchor="middle">{plots.tick_label(tick)}</text>')
    return drawn + (f'<line class="axis" x1="{EDGE}" x2="{to_x(high):.1f}" y1="{floor}" '
                    f'y2="{floor}"/><text x="{WIDTH - EDGE}" y="{floor + AXIS - 4}" '
                    f'text-anchor="end">{page.escape(x_label)}</text>')


def _label(text, top, letters):
    shown = text if len(text) <= letters else f'{text[:letters - 1]}…'
    return (f'<text class="name halo" x="{EDGE}" y="{top + 17}">{page.escape(shown)}'
            f'<title>{page.escape(text)}</title></text>')


def _effect(row, top, to_x, null):
    """A row: its name and numbers, and under them the whisker, the dot and the seeds."""
    sure = row.excludes(null)
    value, *limits = _signed(row.value, *((row.low, row.high) if row.bounded else ()))
    numbers = f'{value} [{", ".join(limits)}]' if limits else f'{value} (no interval)'
    y = top + 32
    letters = int((WIDTH - 2 * EDGE) / figures.LETTER - 1.08 * len(numbers)) - 1
    drawn = _label(row.label, top, letters) + (
        f'<text class="halo" x="{WIDTH - EDGE}" y="{top + 17}" text-anchor="end">'
        f'{page.escape(numbers)}</text>')
    style = 'k0' if sure else 'kn'
    drawn += ''.join(f'<path class="stroke {style}" d="M{to_x(seed):.1f} {y + 4}v6"/>'
                     for seed in row.seeds if math.isfinite(seed))
    if row.bounded:
        drawn += (f'<line class="whisker {style}" x1="{to_x(row.low):.1f}" '
                  f'x2="{to_x(row.high):.1f}" y1="{y}" y2="{y}"/>')
    title = page.escape(f'{row.label}: {numbers}' + (f', {row.note}' if row.note else ''))
    return drawn + (f'<circle class="dot {style}{"" if sure else " hollow"}" '
                    f'cx="{to_x(row.value):.1f}" cy="{y}" r="5"><title>{title}</title></circle>')


def _bar(point, line, top, to_x):
    left, right = sorted((to_x(0), to_x(point.value)))
    middle, end = top + (BAR - 2) / 2, max(right, to_x(0))
    drawn = (f'<rect class="bar k{line.colour % COLOURS}" x="{left:.1f}" y="{top}" '
             f'width="{right - left:.1f}" height="{BAR - 2}"><title>'
             f'{page.escape(line.label)}, {point.title()}</title></rect>')
    if point.bounded:
        end = max(end, to_x(point.high))
        drawn += (f'<line class="whisker ki" x1="{to_x(point.low):.1f}" '
                  f'x2="{to_x(point.high):.1f}" y1="{middle}" y2="{middle}"/>')
    return drawn + (f'<text class="small" x="{end + 6:.1f}" y="{middle + 4.5}">'
                    f'{plots.tick_label(point.value)}</text>')


def _signed(*values):
    """'+0.12', '-0.3', '0': three digits of the largest, and of the others what is as coarse."""
    largest = max(abs(value) for value in values)
    digits = 2 - math.floor(math.log10(largest)) if largest else 0
    rounded = [round(value, digits) for value in values]
    plain = 0.001 <= largest < 1000
    return [('+' if value > 0 else '') + (
        f'{value:.{max(digits, 0)}f}'.rstrip('0').rstrip('.') if plain and digits > 0 and value
        else plots.tick_label(value)) for value in rounded]
