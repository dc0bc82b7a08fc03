"""Figures with intervals, as inline SVG: points over categories or exposures, and reliability."""

import dataclasses
import math

from jaxllm.report import page, plots
from jaxllm.report.plots import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH

LETTER = 7.3  # About the width of a letter of the figures' 14 px.
DODGE = 7  # Between points of two series at one x.
COUNTS = 26  # Height of the tallest bar that counts answers.


@dataclasses.dataclass(frozen=True)
class Point:
    """A value at x (a number, or the name of a category) with limits; NaN = no limits."""
    x: object
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0

    @classmethod
    def of(cls, x, interval):
        """From anything with value, low, high and n; None counts as no limit."""
        low, high = (math.nan if limit is None else limit
                     for limit in (interval.low, interval.high))
        return cls(x, interval.value, low, high, interval.n)

    @property
    def bounded(self):
        return math.isfinite(self.low) and math.isfinite(self.high)

    def title(self):
        """What hovering shows."""
        limits = (f' [{plots.tick_label(self.low)}, {plots.tick_label(self.high)}]'
                  if self.bounded else '')
        items = f', n = {self.n:,}' if self.n else ''
        return page.escape(f'{self.x}: {plots.tick_label(self.value)}{limits}{items}')


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one colour.

    joined: a line through them; band: limits as a band instead of whiskers; dots: draw them.
    """
    label: str
    points: tuple
    colour: int = 0
    joined: bool = True
    band: bool = False
    dots: bool = True

    @property
    def style(self):
        return f'k{self.colour % COLOURS}{" dashed" if self.colour >= COLOURS else ""}'


def points(title, unit, series, *, scale='category', x_label='', y_range=None, reference=None):
    """Points with whiskers or bands.

    Args:
        title, unit: text above the figure.
        series: Series; points whose value is not finite are left out.
        scale: of x: 'category' (as they come), 'linear', or 'log2' (numbers >= 1, and a place
            apart for 0: accuracy against exposures).
        x_label: text under the axis.
        y_range: (low, high) of the axis; None = what the points need, with 0.
        reference: (value, text) of a dashed line, such as chance.

    Returns:
        HTML; '' when there is no point.
    """
    series = _finite(series)
    shown = [point for line in series for point in line.points]
    if not shown:
        return ''
    place, marks, gap = _PLACES[scale]([point.x for point in shown])
    y_low, y_high = y_range or _range(shown, reference)
    to_y = lambda y: HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - TOP)
    labels, extra = _labels(marks)
    drawing = plots.grid([] if extra else marks, plots.linear_ticks(y_low, y_high), to_y)
    dodged = sum(not line.band for line in series) if scale != 'linear' else 1
    for number, line in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * DODGE if dodged > 1 and not line.band else 0
        drawing += _series(line, lambda x, shift=shift: place(x) + shift, to_y, scale == 'log2')
    drawing = _reference(reference, to_y) + drawing if reference else drawing
    drawing += labels + (_break(gap) if gap else '') + (
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT + extra - 4}" text-anchor="end">'
        f'{page.escape(x_label)}</text>')
    return plots.figure(title, unit, drawing, legend(series), HEIGHT + extra)


def reliability(title, unit, tables, *, x_label='confidence'):
    """Accuracy against confidence, with whiskers, the diagonal, and how many answers each bin has.

    Args:
        title, unit: text above the figure.
        tables: {label: bins}; a bin has lower, upper, confidence, accuracy, low, high, n.
        x_label: text under the axis.

    Returns:
        HTML; '' when there is no bin.
    """
    tables = {label: bins for label, bins in tables.items() if bins}
    if not tables:
        return ''
    strip = COUNTS + 14 if len(tables) == 1 else COUNTS  # Room for numbers over the bars.
    floor = 246
    height = floor + 12 + strip * len(tables) + BOTTOM
    to_x = lambda x: LEFT + x * (WIDTH - LEFT - RIGHT)
    to_y = lambda y: floor - y * (floor - TOP)
    ticks = [i / 5 for i in range(6)]
    most = max(b.n for bins in tables.values() for b in bins)
    drawing = plots.grid([(to_x(x), plots.tick_label(x)) for x in ticks], ticks, to_y, height)
    drawing += (f'<path class="reference" d="M{to_x(0):.1f} {to_y(0):.1f}'
                f'L{to_x(1):.1f} {to_y(1):.1f}"/>')
    series = []
    for number, (label, bins) in enumerate(tables.items()):
        drawing += _histogram(bins, number, most, to_x, floor + 12 + strip * (number + 1),
                              len(tables) == 1)
        line = Series(f'{label} (n = {sum(b.n for b in bins):,})', tuple(
            Point(b.confidence, b.accuracy, b.low, b.high, b.n) for b in bins), number)
        series.append(line)
        drawing += _series(line, to_x, to_y, False)
    drawing += (f'<text x="{WIDTH - RIGHT}" y="{height - 4}" text-anchor="end">'
                f'{page.escape(x_label)}</text>')
    keys = legend(series, always=True)
    return plots.figure(title, unit, drawing, keys, height)


def legend(series, always=False):
    """Names of the colours; of one series only if `always`."""
    items = ''.join(f'<li><i class="{line.style}"></i>{page.escape(line.label)}</li>'
                    for line in series)
    return f'<ul class="legend">{items}</ul>' if len(series) > 1 or always else ''


def _finite(series):
    lines = [dataclasses.replace(line, points=tuple(
        point for point in line.points if math.isfinite(point.value))) for line in series]
    return [line for line in lines if line.points]


def _range(shown, reference):
    """Limits of y: everything, with 0, and a little room."""
    values = [0.] + [y for point in shown for y in (point.value, point.low, point.high)
                     if math.isfinite(y)] + ([reference[0]] if reference else [])
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or 1.
    return (low - pad if low < 0 else 0.), (high + pad if high > 0 or low == high else 0.)


def _categories(names):
    """(place of a name, marks (pixel, text), no gap)."""
    names = list(dict.fromkeys(names))
    step = (WIDTH - LEFT - RIGHT) / len(names)
    place = {name: LEFT + step * (number + .5) for number, name in enumerate(names)}
    return place.__getitem__, [(x, str(name)) for name, x in place.items()], None


def _linear(xs):
    low, high = (min(xs), max(xs)) if len(set(xs)) > 1 else (xs[0] - 1, xs[0] + 1)
    place = lambda x: LEFT + 6 + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT - 12)
    return place, [(place(x), plots.tick_label(x)) for x in plots.linear_ticks(low, high)], None


def _log2(xs):
    """As _categories; the gap is where the axis breaks between 0 and the smallest other x."""
    positive = [math.log2(x) for x in xs if x > 0]
    first = math.floor(min(positive)) if positive else 0
    last = max(math.ceil(max(positive)), first + 1) if positive else 1
    zero, start = min(xs) <= 0, LEFT + 16
    slots = last - first + 1.6 * zero
    step = (WIDTH - RIGHT - 14 - start) / slots
    place = lambda x: start if x <= 0 else start + step * (math.log2(x) - first + 1.6 * zero)
    every = math.ceil((last - first + 1) / 9)
    marks = [(place(2. ** i), plots.tick_label(2. ** i)) for i in range(first, last + 1, every)]
    return place, [(start, '0')] * zero + marks, start + .8 * step if zero and positive else None


_PLACES = {'category': _categories, 'linear': _linear, 'log2': _log2}


def _labels(marks):
    """(SVG, height) of labels that do not fit side by side: they hang down at a slant."""
    spaces = [right[0] - left[0] for left, right in zip(marks[:-1], marks[1:])]
    needed = [(len(left[1]) + len(right[1]) + 2) * LETTER / 2
              for left, right in zip(marks[:-1], marks[1:])]
    if all(space >= need for space, need in zip(spaces, needed)):
        return '', 0
    shown = [(x, text if len(text) <= 16 else f'{text[:15]}…', text) for x, text in marks]
    bottom = HEIGHT - BOTTOM
    drawn = ''.join(
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        f'<text transform="translate({x + 5:.1f} {bottom + 16}) rotate(-35)" text-anchor="end">'
        f'{page.escape(text)}<title>{page.escape(whole)}</title></text>'
        for x, text, whole in shown)
    return drawn, round(max(len(text) for _, text, _ in shown) * LETTER * math.sin(.61)) - 4


def _series(line, to_x, to_y, apart):
    """A band or whiskers, a curve, dots; `apart`: nothing joins x = 0 with the rest."""
    drawn = ''
    ordered = [point for point in line.points if not (apart and point.x <= 0)]
    bounded = [point for point in ordered if point.bounded]
    if line.band and len(bounded) > 1:
        edge = [(to_x(p.x), to_y(p.high)) for p in bounded] + [
            (to_x(p.x), to_y(p.low)) for p in reversed(bounded)]
        drawn += f'<path class="band {line.style}" d="{path(edge)}Z"/>'
    if line.joined and len(ordered) > 1:
        curve = path((to_x(p.x), to_y(p.value)) for p in ordered)
        drawn += f'<path class="curve {line.style}" d="{curve}"/>'
    for point in line.points:
        x = f'{to_x(point.x):.1f}'
        if point.bounded and (not line.band or point not in ordered or len(bounded) < 2):
            drawn += (f'<line class="whisker {line.style}" x1="{x}" x2="{x}" '
                      f'y1="{to_y(point.low):.1f}" y2="{to_y(point.high):.1f}"/>')
        if line.dots or len(line.points) == 1:
            drawn += (f'<circle class="dot {line.style}" cx="{x}" cy="{to_y(point.value):.1f}" '
                      f'r="4"><title>{point.title()}</title></circle>')
    return drawn


def path(places):
    """The `d` of a line through pixels (x, y)."""
    return 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in places)


def _reference(reference, to_y):
    value, text = reference
    y = to_y(value)
    return (f'<path class="reference" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{WIDTH - RIGHT}" y="{y - 5:.1f}" text-anchor="end">'
            f'{page.escape(text)}</text>')


def _break(x):
    """Two strokes through the x axis."""
    y = HEIGHT - BOTTOM
    return (f'<path class="axis-break" d="M{x - 6:.1f} {y + 5}l5 -10l6 0l-5 10z"/>'
            f'<path class="axis" d="M{x - 6:.1f} {y + 5}l5 -10M{x:.1f} {y + 5}l5 -10"/>')


def _histogram(bins, number, most, to_x, floor, with_counts):
    """How many answers lie in each bin, as bars that stand on `floor`."""
    drawn = ''
    for b in bins:
        left, right = to_x(b.lower) + .75, to_x(b.upper) - .75
        tall = max((COUNTS - 3) * b.n / most, 1)
        drawn += (f'<rect class="count k{number % COLOURS}" x="{left:.1f}" y="{floor - tall:.1f}" '
                  f'width="{max(right - left, 1):.1f}" height="{tall:.1f}"><title>'
                  f'{b.lower:.2f} to {b.upper:.2f}: {b.n:,} answers</title></rect>')
        if with_counts and right - left >= len(f'{b.n:,}') * LETTER * .85:
            drawn += (f'<text class="small" x="{(left + right) / 2:.1f}" '
                      f'y="{floor - tall - 4:.1f}" text-anchor="middle">{b.n:,}</text>')
    return drawn
