"""Reinforcement learning as the sections of a page: rewards, what they cost in KL, answers."""

import json
import math
import pathlib

from jaxllm.report import files, page, plots
from jaxllm.report.page import Section
from jaxllm.report.plots import Line
from jaxllm.rl.combine import CENTRED
from jaxllm.train import metrics

_SHOWN = 8  # prompts whose answers stand side by side
_CURVES = (('kl', 'KL to the reference', 'nats per answer'),
           ('entropy', 'Entropy', 'nats per token'),
           ('length', 'Length', 'tokens per answer'), ('finished', 'Answers that end', 'share'),
           ('repetition', 'Repetition', 'share of 3-grams seen before'))


def sections(workdir):
    """Sections of the report of a run of reinforcement learning; () if the directory holds none."""
    workdir = pathlib.Path(workdir)
    if not (workdir / 'rollouts').is_dir() or not (workdir / 'metrics.jsonl').exists():
        return ()
    records = metrics.read_jsonl(workdir / 'metrics.jsonl')
    train = [record for record in records if record['kind'] == 'train']
    evals = [record for record in records if record['kind'] == 'eval']
    return (Section('Rewards', _charts(_rewards(workdir, train, evals))),
            Section('Policy', _charts(_policy(train, evals))),
            Section('Reward against KL', over_kl(evals)),
            Section('Answers before and after', before_and_after(workdir)))


def overview(workdir):
    """The heart of `sections` as HTML: rewards, the KL that they cost, and both together."""
    workdir = pathlib.Path(workdir)
    records = metrics.read_jsonl(workdir / 'metrics.jsonl')
    train = [record for record in records if record['kind'] == 'train']
    evals = [record for record in records if record['kind'] == 'eval']
    return _charts([*_rewards(workdir, train, evals),
                    _both('kl', train, evals, *_CURVES[0][1:])]) + over_kl(evals)


def _rule(workdir):
    config = files.read_json(workdir / 'config.json', {})
    return config['combine']['rule'] if 'combine' in config else ''


def reward_names(workdir):
    """Of the rewards of a run, as its rollouts name them."""
    first = next(iter(sorted((pathlib.Path(workdir) / 'rollouts').glob('*.jsonl'))), None)
    for row in _lines(first) if first else ():
        if 'scores' in row:
            return tuple(row['scores'])
    return ()


def _charts(drawn):
    drawn = ''.join(drawn)
    return f'<div class="charts">{drawn}</div>' if drawn else ''


def _both(key, train, evals, title, unit):
    """A value over rollouts, and on held-out prompts."""
    return plots.chart(title, unit, [
        Line('rollouts', files.series(train, f'rollout/{key}'), 0, dots=True),
        Line('held out', files.series(evals, f'val/{key}'), 1, dots=True)])


def _rewards(workdir, train, evals):
    names = reward_names(workdir)
    if _rule(workdir) in CENTRED:  # of rollouts there is nothing to see: 0 in each batch
        yield plots.chart('Reward, combined', 'of held-out prompts; training centres it in each '
                          'batch', [Line('held out', files.series(evals, 'val/reward'), 1,
                                         dots=True)])
    else:
        yield _both('reward', train, evals, 'Reward, combined', 'what is trained on')
    if len(names) > 1:
        for name in names:
            yield _both(name, train, evals, f'Reward: {name}', 'as this reward gives it')
    if gold := files.series(evals, 'val/gold'):
        yield plots.chart('Hidden judge', 'its mean score, held out',
                          [Line('held out', gold, 2, dots=True)])
        yield plots.chart('Wins against the reference', 'share, by the hidden judge', [
            Line('held out', files.series(evals, 'val/gold_win_rate'), 2, dots=True)])


def _policy(train, evals):
    for key, title, unit in _CURVES:
        yield _both(key, train, evals, title, unit)
    yield plots.chart('Clipped', 'share of tokens', [
        Line('batches', files.series(train, 'clip_fraction'), 0, dots=True)])


def over_kl(evals):
    """Gold and proxy reward of held-out prompts against sqrt(KL), with the greatest gold marked.

    Ref: Gao et al. 2022 (arXiv 2210.10760): in sqrt(KL) the rise of the proxy is close to straight,
    and gold rises and falls where the reward is exploited.
    """
    points = [(math.sqrt(max(record['val/kl'], 0.0)), record) for record in evals
              if _finite(record, 'val/kl') and _finite(record, 'val/reward')]
    if len(points) < 2:
        return ''
    points.sort(key=lambda point: point[0])
    best = max((point for point in points if _finite(point[1], 'val/gold')),
               key=lambda point: point[1]['val/gold'], default=None)
    text, marked = '', lambda key: ()
    if best:
        last = max((record for _, record in points), key=lambda record: record['step'])
        marked = lambda key: (Line('where gold is greatest', ((best[0], best[1][key]),), 3),)
        text = (f'<p>The hidden judge is most content at step {best[1]["step"]:,}: '
                f'{best[1]["val/gold"]:.3f} at {best[1]["val/kl"]:.2f} nats; the last evaluation '
                f'has {last["val/gold"]:.3f} at {last["val/kl"]:.2f} nats. Where the reward goes '
                'on rising to the right of that dot, it is exploited.</p>'
                if _finite(last, 'val/gold') else '')
    drawn = [plots.chart(title, 'mean score', [Line('held out', tuple(
        (x, record[key]) for x, record in points if _finite(record, key)), colour, dots=True),
        *(marked(key))], x_label='√KL, nats')
        for key, title, colour in (
            ('val/reward', 'Proxy: the reward that is trained on', 1),
            ('val/gold', 'Gold: the hidden judge', 2))]
    return text + _charts(drawn)


def _finite(record, key):
    return key in record and isinstance(record[key], (int, float)) and math.isfinite(record[key])


def before_and_after(workdir):
    """The same prompts with the answers and rewards of the first and the last evaluation; or, where
    these were not kept, of the first and the last rollouts that asked them."""
    folder = pathlib.Path(workdir)
    found = sorted((folder / 'answers').glob('*.jsonl'))
    if len(found) > 1:
        first, last = ({row['id']: row for row in _lines(path)} for path in (found[0], found[-1]))
        head = f'Held-out prompts at steps {int(found[0].stem):,} and {int(found[-1].stem):,}.'
        return _pairs(first, last, head)
    first, last, number = {}, {}, {}
    for path in sorted((folder / 'rollouts').glob('*.jsonl')):
        for row in _lines(path):
            if 'response' not in row:
                continue
            if row['id'] not in first:
                first[row['id']], number[row['id']] = row, path
            elif number[row['id']] != path:
                last[row['id']] = row
    if last:
        return _pairs(first, last, 'Prompts of the first rollouts, and when they were asked last.')
    return _apart(sorted((folder / 'rollouts').glob('*.jsonl')))


def _pairs(first, last, head):
    shared = [id for id in first if id in last]
    shown = [shared[i * len(shared) // min(_SHOWN, len(shared))]
             for i in range(min(_SHOWN, len(shared)))]
    rows = [{'prompt': first[id]['prompt'], 'before': first[id]['response'],
             'reward_before': first[id]['reward'], 'after': last[id]['response'],
             'reward_after': last[id]['reward'], 'scores_after': last[id].get('scores', {}),
             'KL_after': last[id]['kl']} for id in shown]
    return f'<p>{head}</p>' + page.table(rows) if rows else ''


def _apart(paths):
    """No prompt was asked twice: some of the first rollout, some of the last."""
    if len(paths) < 2:
        return ''
    rows = []
    for name, path in (('first', paths[0]), ('last', paths[-1])):
        found = list({row['id']: row for row in _lines(path) if 'response' in row}.values())
        rows += [{'rollout': name, 'prompt': row['prompt'], 'answer': row['response'],
                  'reward': row['reward'], 'scores': row.get('scores', {}), 'KL': row['kl']}
                 for row in found[:_SHOWN // 2]]
    return '<p>No prompt was asked twice.</p>' + page.table(rows) if rows else ''


def _lines(path):
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
