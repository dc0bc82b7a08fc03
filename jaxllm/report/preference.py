"""What direct preference training did to pairs of answers, as a section of a run's page."""

import pathlib

from jaxllm.report import page
from jaxllm.report.files import read_json, series
from jaxllm.report.page import Section
from jaxllm.report.plots import Line, chart

_ABOUT = (
    'Held-out pairs, before and after. The score of an answer is log(policy / reference) summed '
    'over its tokens, or its mean log-prob where the loss has no reference; a tie is half right. '
    'The log-prob of the better answers often falls, too, while the margin grows: the losses look '
    'at differences alone, and what both answers lose goes to others.')
_ROWS = (('pair_accuracy', 'the better answer has the greater score'),
         ('likelier', 'the better answer has the greater log-prob'),
         ('margin', 'score of the better less that of the worse'),
         ('chosen_logprob', 'log-prob of the better answers, nats'),
         ('rejected_logprob', 'log-prob of the worse answers, nats'),
         ('chosen_nll', 'nats per token of the better answers'))


def sections(run, workdir):
    """A Section of the report of a preference run; () of another one or before it evaluates."""
    points = {name: series(run.evals, f'val/{name}') for name, _ in _ROWS}
    if not (points['likelier'] and points['margin']):
        return ()
    last = points['margin'][-1][0]
    rows = [{'': words, f'step {points[name][0][0]:,}': f'{points[name][0][1]:.4f}',
             f'step {last:,} ': f'{points[name][-1][1]:.4f}'} for name, words in _ROWS]
    counts = read_json(pathlib.Path(workdir) / 'data' / 'pairs.json', {})
    pairs = ', '.join(f'{count:,} {name}' for name, count in counts.items())
    charts = [
        chart('Pairs ordered rightly', 'share of held-out pairs', [
            Line('by score', points['pair_accuracy'], dots=True),
            Line('by log-prob', points['likelier'], 1, dots=True)]),
        chart('Scores', 'held-out pairs', [
            Line('better', series(run.evals, 'val/chosen_score'), dots=True),
            Line('worse', series(run.evals, 'val/rejected_score'), 1, dots=True)]),
        chart('Log-prob of answers', 'nats, held-out pairs', [
            Line('better', points['chosen_logprob'], dots=True),
            Line('worse', points['rejected_logprob'], 1, dots=True)]),
        chart('Margin in training', 'of each batch', [Line('margin', series(run.train, 'margin'))])]
    text = f'<p>{page.escape(_ABOUT)} Pairs: {page.escape(pairs)}.</p>'
    return (Section('Pairs of answers',
                    f'{text}{page.table(rows)}<div class="charts">{"".join(charts)}</div>'),)
