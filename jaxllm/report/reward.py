"""The quality of a reward model, as the sections of a page, from quality.json and reward.json."""

import pathlib

from jaxllm.evals.calibration import Bin
from jaxllm.report import figures, page
from jaxllm.report.files import read_json
from jaxllm.report.page import Section
from jaxllm.report.plots import tick_label

_TITLES = {'rater': 'Accuracy by rater', 'criterion': 'Accuracy by criterion',
           'kind': 'Accuracy by kind of prompt', 'source': 'Accuracy by source',
           'margin': 'Accuracy by how much better'}


def sections(workdir):
    """Sections of the report of a reward run; () if the directory holds none."""
    workdir = pathlib.Path(workdir)
    found = read_json(workdir / 'quality.json', {})
    ensemble = read_json(workdir / 'ensemble.json', {})
    own = () if not found else (
        Section('Quality of the reward', _headline(found)),
        Section('Where it is right', _slices(found)),
        Section('Expected and observed win rates', _calibration(found)),
        Section('Length', _length(found)),
        Section('Who agrees with it', _judges(found)),
        Section('Scale', _scale(read_json(workdir / 'reward.json', {}))))
    return (*own, Section('Ensemble', _ensemble(ensemble)))


def _range(interval):
    if interval['low'] is None:
        return f'n = {interval["n"]:,}'
    return (f'{tick_label(interval["low"])} to {tick_label(interval["high"])}, '
            f'n = {interval["n"]:,}')


def _tile(name, interval, hint=''):
    if interval['value'] is None:
        return ''
    return page.tile(name, f'{interval["value"]:.3f}', '', _range(interval) + hint)


def _headline(found):
    ties, calibration, length = found['ties'], found['calibration'], found['length']
    tiles = [_tile('Held-out pairs ordered rightly', found['accuracy']),
             _tile('Calibration error', calibration['ece'])]
    if 'world' in found:
        tiles[1:1] = [page.tile('The rater against itself', f'{found["world"]["ceiling"]:.3f}', '',
                                'accuracy of its own utility'),
                      _tile('Pairs ordered as by that utility', found['world']['utility'])]
    if length['correlation'] is not None:
        tiles.append(page.tile('Reward and length', f'{length["correlation"]:+.2f}', '',
                               'correlation within prompts; of the person '
                               f'{_signed(length["person_correlation"])}'))
    if ties['auroc'] is not None:
        tiles.append(page.tile('Ties are told from differences', f'{ties["auroc"]:.2f}', '',
                               'area under the ROC curve; 0.5 is chance'))
    text = (f'<p>{found["comparisons"]:,} held-out comparisons of {found["prompts"]:,} prompts '
            f'that were not trained on, {found["pairs"]:,} ordered pairs. Every pair counts alike; '
            'intervals of 95% by resampling prompts.</p>')
    return text + f'<div class="tiles">{"".join(tiles)}</div>'


def _signed(value):
    return '–' if value is None else f'{value:+.2f}'


def _slices(found):
    drawn = ''.join(
        figures.points(_TITLES[name], 'share of pairs', [figures.Series('', tuple(
            _point(row['value_name'], row) for row in rows), joined=False)],
            y_range=(0, 1), reference=(0.5, 'chance'))
        for name, rows in found['slices'].items() if rows)
    return f'<div class="charts">{drawn}</div>' if drawn else ''


def _point(name, row):
    nan = float('nan')
    return figures.Point(name, row['value'], nan if row['low'] is None else row['low'],
                         nan if row['high'] is None else row['high'], row['n'])


def _calibration(found):
    calibration = found['calibration']
    bins = tuple(Bin(**row) for row in calibration['bins'])
    temperature = calibration['temperature']
    words = ('about right' if 0.8 <= temperature <= 1.25 else
             f'too {"sure" if temperature > 1 else "unsure"}: divided by {temperature:.2g} they '
             'would fit best')
    drawn = figures.reliability('How often the better rewarded one was preferred', 'share of pairs',
                                {'held-out pairs': bins}, x_label='expected win rate')
    return (f'<div class="charts">{drawn}</div><p>Expected is the sigmoid of the difference of raw '
            f'rewards. The differences are {words}. Negative log-likelihood '
            f'{calibration["nll"]:.3f} nats per pair (a coin: 0.693).</p>')


def _length(found):
    length = found['length']
    rows = [{'pairs in which the preferred response is': name, 'accuracy': side['value'],
             'low': side['low'], 'high': side['high'], 'pairs': side['n']}
            for name, side in (('longer', length['longer']), ('shorter', length['shorter']))]
    if length['reward_prefers_longer'] is None:
        return page.table(rows)
    text = (f'<p>The reward prefers the longer response in {length["reward_prefers_longer"]:.0%} '
            f'of the pairs, the person in {length["person_prefers_longer"]:.0%}.</p>')
    return page.table(rows) + text


def _judges(found):
    if 'world' not in found:
        return ''
    rows = [{'judge': row['judge'], 'asked for': row['criterion'], 'agreement': row['value'],
             'low': row['low'], 'high': row['high'], 'best possible': row['best_possible']}
            for row in found['world']['judges']]
    text = ('<p>Expected agreement with what each kind of rater would choose on the same held-out '
            'pairs, most of whom it was not trained on, and with the hidden judge. Correlation of '
            'reward and utility differences: '
            f'{_signed(found["world"]["utility_correlation"])}.</p>')
    return page.table(rows) + text


def _scale(record):
    return page.pairs(record) if record else ''


def _ensemble(found):
    if not found:
        return ''
    rows = [{'texts': row['name'], 'texts in all': row['n'], 'std over members': row['std'],
             'distance': row['distance'], 'flagged': page.interval(row['flagged']),
             'by the std': page.interval(row['by_spread']),
             'by the distance': page.interval(row['by_distance'])} for row in found['sets']]
    members = [{'member': row['run'], 'accuracy': row['value'], 'low': row['low'],
                'high': row['high']} for row in found['members']]
    limits = found['thresholds']
    text = (f'<p>{len(found["members"])} reward models from other seeds. A text is flagged where '
            f'the standard deviation of their rewards is beyond {limits["spread"]:.3g}, or the '
            'distance of its hidden states from those of training responses (Mahalanobis, about 1 '
            f'on those) beyond {limits["distance"]:.3g}: each the 97.5th percentile on ordinary '
            'responses (half of the held-out ones; the other half is the first row). Accuracy of '
            f'the mean: {found["accuracy"]["value"]:.3f} ({_range(found["accuracy"])}).</p>')
    return text + page.table(members) + page.table(rows)
