"""Figures with intervals: where things stand, what is hollow, and what they do with gaps."""

import dataclasses
import math
import re
import xml.etree.ElementTree as xml

import pytest

from jaxllm.evals import calibration
from jaxllm.report import figure_rows, figures, plots

Point, Series, Row = figures.Point, figures.Series, figure_rows.Row


@dataclasses.dataclass(frozen=True)
class Interval:
    value: float
    low: float | None
    high: float | None
    n: int


def drawing(text):
    """The parsed <figure>; every coordinate must be a number inside the picture."""
    assert not re.search(r'(?<![a-z])(nan|inf)(?![a-z])', text)
    return xml.fromstring(text)


def found(figure, tag, style=''):
    """Elements of a tag that have all the words of `style` as classes."""
    return [element for element in figure.iter(tag)
            if set(style.split()) <= set(element.get('class', '').split())]


def texts(figure):
    return [''.join(element.itertext()) for element in figure.iter('text')]


EXPOSURES = Series('base', tuple(Point(f, p, p - .1, p + .1, 128) for f, p in (
    (0, .2), (1, .25), (2, .4), (4, .55), (16, .85))))


def test_exposures_are_doublings_with_a_place_apart_for_zero():
    figure = drawing(figures.points('Recall', 'share', [EXPOSURES], scale='log2',
                                    x_label='documents', y_range=(0, 1)))
    xs = [float(dot.get('cx')) for dot in found(figure, 'circle', 'dot k0')]
    step = xs[2] - xs[1]
    assert xs[3] - xs[2] == pytest.approx(step, abs=.11)
    assert xs[4] - xs[3] == pytest.approx(2 * step, abs=.21)
    assert xs[1] - xs[0] > 1.3 * step
    assert {'0', '1', '2', '4', '8', '16', 'documents'} <= set(texts(figure))
    curve, = found(figure, 'path', 'curve')
    assert curve.get('d').startswith(f'M{xs[1]:.1f} ') and curve.get('d').count('L') == 3
    assert found(figure, 'path', 'axis-break')
    without = dataclasses.replace(EXPOSURES, points=EXPOSURES.points[1:])
    assert 'axis-break' not in figures.points('Recall', '', [without], scale='log2')


def test_whiskers_end_at_the_limits():
    figure = drawing(figures.points('Recall', '', [EXPOSURES], scale='log2', y_range=(0, 1)))
    span = plots.HEIGHT - plots.BOTTOM - plots.TOP
    whiskers = found(figure, 'line', 'whisker')
    assert len(whiskers) == 5
    for whisker, dot in zip(whiskers, found(figure, 'circle')):
        assert float(whisker.get('y1')) - float(whisker.get('y2')) == pytest.approx(
            .2 * span, abs=.11)
        assert whisker.get('x1') == whisker.get('x2') == dot.get('cx')
    assert found(figure, 'circle')[1].find('title').text == '1: 0.25 [0.15, 0.35], n = 128'


def test_bands_take_the_place_of_whiskers():
    band = dataclasses.replace(EXPOSURES, band=True)
    figure = drawing(figures.points('Recall', '', [band], scale='log2'))
    area, = found(figure, 'path', 'band')
    assert area.get('d').count('L') == 7 and area.get('d').endswith('Z')
    # Only the place apart for 0 keeps its whisker.
    assert len(found(figure, 'line', 'whisker')) == 1
    smooth = Series('x', tuple(Point(x / 10, x / 20, 0, 1) for x in range(11)), band=True,
                    dots=False)
    figure = drawing(figures.points('Risk', '', [smooth], scale='linear'))
    assert not found(figure, 'circle') and not found(figure, 'line', 'whisker')


def test_series_stand_beside_each_other_and_are_named():
    series = [Series(label, (Point('job', .5, .4, .6), Point('city', .3, .2, .4)), colour,
                     joined=False) for colour, label in enumerate(('base', '<i>tuned'))]
    figure = drawing(figures.points('Recall', '', series, reference=(.04, 'chance')))
    dots = [float(dot.get('cx')) for dot in found(figure, 'circle')]
    assert dots[2] - dots[0] == dots[3] - dots[1] == figures.DODGE
    assert [''.join(item.itertext()) for item in figure.iter('li')] == ['base', '<i>tuned']
    assert {'job', 'city', 'chance'} <= set(texts(figure))
    assert not found(figure, 'path', 'curve') and found(figure, 'path', 'reference')
    assert not list(drawing(figures.points('Recall', '', series[:1])).iter('li'))


def test_long_names_hang_at_a_slant():
    names = ('bits_per_byte/prose', 'instructions/one_word', 'safety/over_refusal')
    text = figures.points('All', '', [Series('base', tuple(Point(name, .5) for name in names))])
    assert text.count('rotate(-35)') == 3 and 'safety/over_ref…' in text
    assert '<title>safety/over_refusal</title>' in text
    figure = drawing(text)
    assert float(figure.find('svg').get('viewBox').split()[3]) > plots.HEIGHT + 40
    assert not found(figure, 'line', 'whisker')


def test_points_come_from_intervals():
    point = Point.of('job', Interval(.5, .4, .6, 7))
    assert point == Point('job', .5, .4, .6, 7) and point.bounded
    assert not Point.of('job', Interval(.5, None, None, 1)).bounded


def test_reliability_diagram():
    bins = (calibration.Bin(0., .5, .3, .2, .1, .3, 145),
            calibration.Bin(.5, 1., .75, .75, .6, .9, 1160))
    figure = drawing(figures.reliability('Reliability', 'ECE 0.05', {'base': bins}))
    (left, sure) = [(float(dot.get('cx')), float(dot.get('cy')))
                    for dot in found(figure, 'circle')]
    # The diagonal runs through the calibrated bin.
    ends = [float(x) for x in re.findall(
        r'[\d.]+', found(figure, 'path', 'reference')[0].get('d'))]
    share = (sure[0] - ends[0]) / (ends[2] - ends[0])
    assert share == pytest.approx(.75, abs=.002)
    assert sure[1] == pytest.approx(ends[1] + share * (ends[3] - ends[1]), abs=.11)
    assert left[1] > ends[1] + .3 * (ends[3] - ends[1])  # below it: too confident
    few, many = found(figure, 'rect', 'count')
    assert float(many.get('height')) / float(few.get('height')) == pytest.approx(8, rel=.05)
    assert {'145', '1,160'} <= set(texts(figure))
    assert 'base (n = 1,305)' in [''.join(item.itertext()) for item in figure.iter('li')]
    two = drawing(figures.reliability('R', '', {'base': bins, 'tuned': bins}))
    floors = [float(bar.get('y')) + float(bar.get('height')) for bar in found(two, 'rect')]
    assert floors[0] == pytest.approx(floors[1], abs=.2)
    assert floors[2] > floors[0] + 20


def test_numbers_of_an_effect_are_as_coarse_as_its_interval():
    rows = [Row('a', -.00455, -.0216, .0126), Row('b', .001, -.0602, .5),
            Row('c', 2e-5, 1e-6, 3e-5)]
    shown = texts(drawing(figure_rows.compared('Effects', '', rows)))
    assert {'-0.0046 [-0.0216, +0.0126]', '+0.001 [-0.06, +0.5]',
            '+2e-5 [+1e-6, +3e-5]'} <= set(shown)


def test_effects_that_do_not_exclude_zero_are_hollow():
    rows = [Row('deletion', .4, .3, .5, (.38, .42)), Row('skew', .05, -.02, .12),
            Row('volume', -.2, -.3, -.1), Row('one seed', .3)]
    figure = drawing(figure_rows.compared('Effects', '', rows, delta=.25))
    hollow = ['hollow' in dot.get('class') for dot in found(figure, 'circle')]
    grey = ['kn' in dot.get('class') for dot in found(figure, 'circle')]
    assert hollow == grey == [False, True, False, True]
    assert len(found(figure, 'line', 'whisker')) == 3 and len(found(figure, 'path', 'stroke')) == 2
    assert {'deletion', '+0.4 [+0.3, +0.5]', '-0.2 [-0.3, -0.1]', '+0.3 (no interval)'} <= {
        text.removesuffix(row.label) if text != row.label * 2 else row.label
        for row in rows for text in texts(figure)}
    zero = float(re.match(r'M([\d.]+) ', found(figure, 'path', 'zero')[0].get('d'))[1])
    for dot, row in zip(found(figure, 'circle'), rows):
        assert (float(dot.get('cx')) > zero) == (row.value > 0)
    legend = [''.join(item.itertext()) for item in figure.iter('li')]
    assert legend == ['excludes 0', 'does not exclude 0', 'each seed', 'fixed beforehand: 0.25']
    shifted = drawing(figure_rows.compared('Effects', '', rows, null=.35))
    assert ['hollow' in dot.get('class') for dot in found(shifted, 'circle')] == [
        True, False, False, True]


def test_bars_start_at_zero():
    series = [Series('base', (Point('prose', 1.5, 1.4, 1.6), Point('table', -.5, -.6, -.4)), 0),
              Series('tuned', (Point('prose', 1.2, 1.1, 1.3),), 1)]
    figure = drawing(figure_rows.bars('Bits per byte', '', series))
    zero = float(re.match(r'M([\d.]+) ', found(figure, 'path', 'zero')[0].get('d'))[1])
    bars = {(bar.get('class'), float(bar.get('x')) < zero - 1): float(bar.get('width'))
            for bar in found(figure, 'rect', 'bar')}
    assert bars['bar k0', False] / bars['bar k1', False] == pytest.approx(1.5 / 1.2, abs=.01)
    assert bars['bar k0', False] / bars['bar k0', True] == pytest.approx(3, abs=.01)
    assert len(found(figure, 'line', 'whisker')) == 3
    assert [''.join(item.itertext()) for item in figure.iter('li')] == ['base', 'tuned']


@pytest.mark.parametrize('scale', ['category', 'linear', 'log2'])
@pytest.mark.parametrize('points', [
    (Point(3, .5),), (Point(0, 0.),), (Point(1, 0., 0., 0.), Point(2, 0., 0., 0.)),
    (Point(3, .5, math.nan, .7), Point(5, math.nan), Point(700, 1e-5))])
def test_odd_points_are_drawn(points, scale):
    figure = drawing(figures.points('Odd', '', [Series('a', points)], scale=scale))
    assert len(found(figure, 'circle')) == sum(math.isfinite(p.value) for p in points)
    bars = drawing(figure_rows.bars('Odd', '', [Series('a', points)]))
    assert len(found(bars, 'rect')) == len(found(figure, 'circle'))


def test_nothing_is_drawn_of_nothing():
    empty = Series('a', (Point('x', math.nan),))
    assert figures.points('A', '', [empty]) == figures.points('A', '', []) == ''
    assert figures.reliability('A', '', {'base': ()}) == figure_rows.bars('A', '', [empty]) == ''
    assert figure_rows.compared('A', '', [Row('a', math.nan)]) == ''


def test_hostile_names_are_escaped():
    attack = '<script>"&'
    for text in (figures.points(attack, attack, [Series(attack, (Point(attack, 1),))] * 2,
                                x_label=attack, reference=(.5, attack)),
                 figure_rows.compared(attack, '', [Row(attack, 1., note=attack)]),
                 figure_rows.bars(attack, '', [Series(attack, (Point(attack, 1.),))])):
        assert '<script' not in text
        drawing(text)
