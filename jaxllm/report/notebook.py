"""What notebooks show of runs: loss curves, and a table of the ladder of artefacts."""

import contextlib
import pathlib

import matplotlib.pyplot as plt

from jaxllm.report.files import lookup, read_json, read_run, series

BLUE, RED, GREEN, GREY, INK = '#2459b8', '#d9481c', '#2a8a5b', '#8a9099', '#1d1f23'
STYLE = {
    'figure.dpi': 110, 'figure.constrained_layout.use': True, 'figure.facecolor': 'white',
    'axes.facecolor': 'white', 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.edgecolor': GREY, 'axes.labelcolor': INK, 'axes.titlesize': 11,
    'axes.titlelocation': 'left', 'axes.titleweight': 'bold', 'axes.grid': False, 'font.size': 9.5,
    'text.color': INK, 'xtick.color': INK, 'ytick.color': INK, 'legend.frameon': False,
    'font.family': 'sans-serif', 'text.parse_math': False}


@contextlib.contextmanager
def styled():
    """Figures made inside are in the style of all. Unlike `plt.rc_context` it leaves the backend
    alone, which a notebook sets up, as interactive, when the first figure is made."""
    before = {name: plt.rcParams[name] for name in STYLE}
    plt.rcParams.update(STYLE)
    try:
        yield
    finally:
        plt.rcParams.update(before)


@contextlib.contextmanager
def figure(width, height, *shape, **options):
    """(figure, axes) in the style of all of them."""
    with styled():
        yield plt.subplots(*shape, figsize=(width, height), **options)


def loss_curves(runs):
    """Training and validation loss of runs, side by side. Args: runs: {name: run directory}."""
    with figure(4.6 * len(runs), 3.0, 1, len(runs), squeeze=False) as (drawn, axes):
        for ax, (name, folder) in zip(axes[0], runs.items(), strict=True):
            run = read_run(folder)
            for records, key, colour, style, label in (
                    (run.train, 'nll', GREY, '-', 'training batch'),
                    (run.evals, 'val/loss', BLUE, 'o-', 'held-out texts')):
                if points := series(records, key):
                    ax.plot(*zip(*points, strict=True), style, color=colour, label=label, ms=4)
            text = bool(series(run.train, 'nll'))  # else it is trained on rewards
            ax.set(title=name, xlabel='step',
                   ylabel='loss [nats per token]' if text else 'cost of KL minus reward')
            ax.grid(axis='y', alpha=0.25)
            ax.legend()
    return drawn


def ladder(runs):
    """One row per artefact: what it was made from, how long, and what came of it.

    Args:
      runs: {name: run directory}, in the order of their making.

    Returns:
      A list of {column: text}; what a run does not have is a dash.
    """
    rows = []
    for name, folder in runs.items():
        folder, run = pathlib.Path(folder), read_run(folder)
        parent = lookup(run.lineage, 'parents.init_from.run')
        losses = [value for _, value in series(run.evals, 'val/loss')]
        bits = [value for _, value in series(run.evals, 'val/bits_per_byte')]
        stops = read_json(folder / 'stops.json', {})
        seconds = read_json(folder / 'done.json', {}).get('seconds')
        trained = run.lineage.get('num_trained', run.lineage.get('num_params'))
        rows.append({
            'artefact': name,
            'made from': pathlib.Path(parent).name if parent else 'nothing',
            'parameters trained': f'{trained:,}' if trained else '-',
            'steps': f'{run.train[-1]["step"]:,}' if run.train else '-',
            'held-out loss': f'{losses[0]:.2f} to {losses[-1]:.2f}' if losses else '-',
            'bits per byte': f'{bits[-1]:.2f}' if bits else '-',
            'answers that end': f'{stops["stopped"]} of {stops["asked"]}' if stops else '-',
            'time [s]': f'{seconds:.0f}' if seconds is not None else '-'})
    return rows


def markdown(rows):
    """Rows of {column: text} as a Markdown table."""
    clean = lambda x: str(x).replace('|', '\\|').replace('\n', ' ')
    line = lambda cells: f'| {" | ".join(map(clean, cells))} |'
    return '\n'.join([line(rows[0]), line(['---'] * len(rows[0]))]
                     + [line(row.values()) for row in rows])
