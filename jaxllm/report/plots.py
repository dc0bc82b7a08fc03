"""Line charts as inline SVG whose colours come from the page's style, light or dark."""

import dataclasses
import math
import statistics

from jaxllm.report import page

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40
COLOURS = 8
MARKS_DRAWN = 60


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of points (x, y); drawn faint (noise behind a trend) or with dots (few points)."""
    label: str
    points: tuple
    colour: int = 0
    faint: bool = False
    dots: bool = False

    @property
    def style(self):
        """CSS classes: colour, and dashes once the colours repeat."""
        dashed = ' dashed' if self.colour >= COLOURS else ''
        return f'k{self.colour % COLOURS}{dashed}'


def smooth(points, stretches=80):
    """The trend of a noisy series: medians of x and y over equal stretches of at least 5 points.

    Unlike a moving average it has no lag, and a spike does not pull it away.
    """
    count = max(min(stretches, len(points) // 5), 1)
    edges = [round(i * len(points) / count) for i in range(count + 1)]
    return tuple(tuple(statistics.median(values) for values in zip(*points[first:last]))
                 for first, last in zip(edges[:-1], edges[1:]))


def thin(points, limit=400):
    """About `limit` points: the lowest and the highest of every stretch, and the last one."""
    if len(points) <= limit:
        return tuple(points)
    size = math.ceil(2 * len(points) / limit)
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start:start + size]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept.extend(sorted(ends))
    return tuple(kept) if kept[-1] == points[-1] else (*kept, points[-1])


def linear_ticks(low, high, count=5):
    """Round numbers in [low, high], about `count` of them."""
    raw = (high - low) / count
    power = 10. ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low, high):
    """Powers of ten in [low, high]; with 2 and 5 between them where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(decades) > 4 else (1, 2, 5)
    ticks = [m * 10. ** d for d in decades for m in factors]
    ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    return ticks if len(ticks) > 1 else linear_ticks(low, high, 3)


def tick_label(value):
    """'0', '0.25', '3e-4', '20k'."""
    if value == 0:
        return '0'
    if abs(value) >= 1000:
        return page.short(value)
    if abs(value) < 0.01:
        mantissa, power = f'{value:.3e}'.split('e')
        return f'{float(mantissa):g}e{int(power)}'
    return f'{value:.4g}'


def _limits(lines, log_y, from_zero):
    """Range of y: the whole of the main lines; of the faint ones without the outermost 1 %."""
    values = []
    for line in lines:
        ys = sorted(y for _, y in line.points)
        cut = math.ceil(len(ys) / 100) if line.faint else 0
        values.extend((ys[cut], ys[len(ys) - 1 - cut]))
    low, high = min(values), max(values)
    if log_y:
        return low / 1.15, high * 1.15
    low = min(low, 0.) if from_zero else low
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.
    return (low if from_zero and low == 0 else low - pad), high + pad


def _path(points, to_x, to_y):
    return 'M' + 'L'.join(f'{to_x(x):.1f} {to_y(y):.1f}' for x, y in points)


def grid(x_marks, y_ticks, to_y, height=HEIGHT):
    """Axes: lines and labels at y ticks, and the x axis with marks (pixel, text)."""
    right, bottom = WIDTH - RIGHT, height - BOTTOM
    parts = []
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{to_y(y):.1f}" '
                     f'y2="{to_y(y):.1f}"/><text x="{LEFT - 7}" y="{to_y(y) + 4:.1f}" '
                     f'text-anchor="end">{tick_label(y)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    for x, text in x_marks:
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" '
                     f'y2="{bottom + 4}"/><text x="{x:.1f}" y="{bottom + 17}" '
                     f'text-anchor="middle">{page.escape(text)}</text>')
    return ''.join(parts)


def figure(title, unit, drawing, legend='', height=HEIGHT):
    """A card with a heading, an SVG of WIDTH x height, and a legend."""
    return (
        f'<figure class="card"><h3>{page.escape(title)} <small>{page.escape(unit)}</small></h3>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{page.escape(title)}">'
        f'{drawing}</svg>{legend}</figure>')


def _curve(line, to_x, to_y):
    faint = ' faint' if line.faint else ''
    shown = '' if len(line.points) == 1 else (
        f'<path class="curve {line.style}{faint}" d="{_path(line.points, to_x, to_y)}"/>')
    if line.dots and len(line.points) <= 40 or len(line.points) == 1:
        shown += ''.join(f'<circle class="dot {line.style}" cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" '
                         f'r="3.5"><title>{x:,}: {y:.4g}</title></circle>'
                         for x, y in line.points)
    return shown


def _marks(marks, to_x):
    bottom = HEIGHT - BOTTOM
    marks = marks[::math.ceil(len(marks) / MARKS_DRAWN)] if marks else ()
    return ''.join(
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
        f'<path class="mark-head" d="M{x - 4.5:.1f} {TOP - 5}h9l-4.5 8z"/>'
        for x in map(to_x, marks))


def _legend(lines, marks, marks_label):
    items = []
    for line in lines:
        faint = ' faint' if line.faint else ''
        last = '' if line.faint else f' <b class="num">{tick_label(line.points[-1][1])}</b>'
        items.append(f'<li><i class="{line.style}{faint}"></i>{page.escape(line.label)}{last}</li>')
    if marks:
        items.append(f'<li><i class="kw dashed"></i>{page.escape(marks_label)} '
                     f'<b class="num">{len(marks)}</b></li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if len(items) > 1 else ''


def chart(title, unit, lines, x_label='step', log_y=False, from_zero=False, marks=(),
          marks_label=''):
    """A figure with axes, ticks, a legend with last values, and perhaps marked places.

    Args:
        title, unit: text above the figure.
        lines: Lines; empty ones are left out.
        x_label: text under the axis.
        log_y: logarithmic; points <= 0 are left out.
        from_zero: the y axis starts at 0.
        marks: values of x to mark with a vertical line.
        marks_label: what they are, for the legend.

    Returns:
        HTML; '' when no line has a point.
    """
    lines = [dataclasses.replace(line, points=thin([
        (x, y) for x, y in line.points if math.isfinite(y) and (y > 0 or not log_y)]))
        for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ''
    xs = [x for line in lines for x, _ in line.points] + list(marks)
    x_low, x_high = (min(xs), max(xs)) if len(set(xs)) > 1 else (xs[0] - 1, xs[0] + 1)
    y_low, y_high = _limits(lines, log_y, from_zero)
    scale = math.log10 if log_y else float
    to_x = lambda x: LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
    to_y = lambda y: HEIGHT - BOTTOM - (scale(y) - scale(y_low)) / (
        scale(y_high) - scale(y_low)) * (HEIGHT - BOTTOM - TOP)
    x_ticks = [x for x in linear_ticks(x_low, x_high) if x == int(x)]
    y_ticks = log_ticks(y_low, y_high) if log_y else linear_ticks(y_low, y_high)
    x_marks = [(to_x(x), tick_label(x)) for x in x_ticks]
    clip = page.slug(f'clip-{title}')
    return figure(title, unit, (
        f'<clipPath id="{clip}"><rect x="{LEFT - 5}" y="{TOP - 6}" width="{WIDTH - LEFT + 5}" '
        f'height="{HEIGHT - TOP - BOTTOM + 9}"/></clipPath>'
        f'{grid(x_marks, y_ticks, to_y)}{_marks(marks, to_x)}'
        f'<g clip-path="url(#{clip})">{"".join(_curve(line, to_x, to_y) for line in lines)}</g>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">'
        f'{page.escape(x_label)}</text>'), _legend(lines, marks, marks_label))


def trend(points):
    """A noisy series as two lines: faint as it is, and its trend."""
    points = tuple(point for point in points if math.isfinite(point[1]))
    if len(points) < 60:
        return [Line('measured', points)]
    return [Line('measured', points, faint=True), Line('trend', smooth(points))]


def median(values):
    """Median of the finite values, or None."""
    values = [value for value in values if math.isfinite(value)]
    return statistics.median(values) if values else None
