"""Pictures of the inside of a training step, with matplotlib, for notebooks.

Each function draws one figure and returns it. Numbers come from `evals/inspect.py`,
`evals/inside.py` and `evals/adam.py`.
"""

import math

import matplotlib.pyplot as plt
import numpy as np

from jaxllm.evals.inspect_text import visible
from jaxllm.report.notebook import BLUE, GREEN, GREY, INK, RED, styled
from jaxllm.report.notebook import figure as _figure

_MONO = {'family': 'monospace', 'size': 9}
_COLUMNS = 92  # characters in a line of coloured text


def _word(text):
    return visible(text) or ' '


def tokens(texts, title='Text cut into tokens'):
    """Texts as boxes, one for each token, its id below; texts are lists of (id, text)."""
    places = []
    lines = 0
    for text in texts:
        placed, count = _flow([_word(piece) for _, piece in text])
        places += [(x, y + lines, width, word, str(i))
                   for (x, y, width, word), (i, _) in zip(placed, text, strict=True)]
        lines += count
    with _figure(9.2, 0.52 * lines + 0.4) as (figure, ax):
        for number, (x, y, width, word, i) in enumerate(places):
            ax.add_patch(plt.Rectangle((x, y), width, 0.62, lw=0, alpha=0.25,
                                       color=(BLUE, RED, GREEN)[number % 3]))
            ax.text(x + width / 2, y + 0.33, word, ha='center', va='center', **_MONO)
            ax.text(x + width / 2, y + 0.78, i, ha='center', va='center', size=5.5, color=GREY)
        ax.set(xlim=(0, _COLUMNS), ylim=(lines, -0.1), title=title)
        ax.axis('off')
    return figure


def _flow(words):
    """[(x, line, width, word)] in lines of _COLUMNS characters, and the number of lines."""
    x, line, placed = 0.0, 0, []
    for word in words:
        width = max(len(word), 2) + 0.6
        if x + width > _COLUMNS and x:
            x, line = 0.0, line + 1
        placed.append((x, line, width - 0.15, word))
        x += width
    return placed, line + 1


def embeddings(plane, near, signals):
    """Three panels: tokens on their plane, nearest tokens of some words, what marks positions.

    Args:
      plane: of `inside.embedding_plane`; near: {word: inside.neighbours(...)}; signals: [L, C].
    """
    names, xy_N2, share = plane
    with _figure(11, 4.3, 1, 3, width_ratios=(2.1, 1.1, 1)) as (figure, (left, middle, right)):
        left.scatter(*xy_N2.T, s=8, color=BLUE, alpha=0.5)
        for name, (x, y) in zip(names, xy_N2, strict=True):
            left.text(x, y, _word(name), size=7.5, ha='left', va='bottom')
        left.set(title=f'Embeddings of {len(names)} common tokens', xlabel='first component',
                 ylabel=f'second component ({share:.0%} of the variance in both)')
        left.margins(x=0.12)
        labels, values, colours = [], [], []
        for number, (word, found) in enumerate(near.items()):
            labels += [f'{_word(word)} ~ {_word(name)}' for name, _ in found]
            values += [cosine for _, cosine in found]
            colours += [(BLUE, RED, GREEN)[number % 3]] * len(found)
        middle.barh(range(len(values)), values, color=colours, height=0.7)
        middle.set_yticks(range(len(values)), labels, size=8)
        middle.invert_yaxis()
        middle.set(title='Nearest tokens', xlabel='cosine')
        image = right.imshow(signals, cmap='RdBu_r', aspect='auto', vmin=-1, vmax=1,
                             interpolation='nearest')
        right.set(title='What marks a position', xlabel='pair of dimensions',
                  ylabel='position [tokens]')
        figure.colorbar(image, ax=right, label='cosine of the angle', shrink=0.8)
    return figure


def depths(seen):
    """What the model would say after each layer, and one hidden state, of an `inside.Depths`."""
    N, L = seen.prob_NL.shape
    with _figure(max(0.72 * L + 1.8, 7), 0.62 * N + 2.8, 2, 1,
                 height_ratios=(2, 1)) as (figure, (top, bottom)):
        image = top.imshow(seen.prob_NL, cmap='Blues', vmin=0, vmax=1, aspect='auto')
        for (depth, t), p in np.ndenumerate(seen.prob_NL):
            top.text(t, depth, _word(seen.likeliest[depth][t])[:9], ha='center', va='center',
                     color='white' if p > 0.6 else INK, family='monospace', size=7.5)
        top.set_xticks(range(L), [f'{_word(a)} \N{RIGHTWARDS ARROW} {_word(b)}' for a, b in
                                  zip(seen.names[:-1], seen.names[1:], strict=True)],
                       rotation=40, ha='right', rotation_mode='anchor', **_MONO)
        top.set(title='The likeliest next token, if the model ended after each layer',
                xlabel='token read \N{RIGHTWARDS ARROW} token that comes next')
        figure.colorbar(image, ax=top, label='p(token that comes)', pad=0.01)
        last_ND = seen.hidden_NLD[:, -1]
        limit = np.abs(last_ND).max()
        image = bottom.imshow(last_ND, cmap='RdBu_r', vmin=-limit, vmax=limit, aspect='auto',
                              interpolation='nearest')
        bottom.set(title=f'The hidden state behind the last of them: {last_ND.shape[1]} numbers',
                   xlabel='dimension')
        figure.colorbar(image, ax=bottom, label='value', pad=0.01)
        for ax in (top, bottom):
            ax.set_yticks(range(N), ['embedding'] + [f'layer {i}' for i in range(1, N)])
            ax.spines[:].set_visible(False)
    return figure


def attention_and_next(weights_HMM, names, head, candidates, *, layer, target):
    """Left: how one head divides its attention. Right: the likeliest next tokens at the end.

    Args:
      weights_HMM: of one layer, of M tokens called `names`.
      candidates: [(text, probability)]; target: the text that does come.
    """
    with _figure(10, 4.4, 1, 2, width_ratios=(1.25, 1)) as (figure, (left, right)):
        image = left.imshow(np.sqrt(weights_HMM[head]), cmap='Blues', vmin=0, vmax=1)
        labels = [_word(name) for name in names]
        left.set_xticks(range(len(labels)), labels, rotation=90, family='monospace', size=7)
        left.set_yticks(range(len(labels)), labels, family='monospace', size=7)
        left.set(title=f'Attention of head {head} in layer {layer}', xlabel='token looked at',
                 ylabel='token that looks')
        figure.colorbar(image, ax=left, label='root of the weight', shrink=0.8)
        words = [_word(text) for text, _ in candidates]
        right.barh(range(len(words)), [100 * p for _, p in candidates], height=0.7,
                   color=[RED if text == target else BLUE for text, _ in candidates])
        for i, (_, p) in enumerate(candidates):
            right.text(100 * p, i, f' {p:.1%}', va='center', size=8)
        right.set_yticks(range(len(words)), words, family='monospace')
        right.invert_yaxis()
        right.margins(x=0.15)
        right.set(title=f'Next token behind {labels[-1]!r}', xlabel='probability [%]\n'
                  f'the text goes on with {_word(target)!r}' + (
                      ' (red)' if target in dict(candidates) else ', which is not among these'))
    return figure


def token_losses(inspection, row, most=150):
    """The text of a row, each token shaded by its loss; up to the loss of a uniform guess."""
    text = inspection.text(row)[:most]
    placed, lines = _flow([_word(piece) for piece, _, _ in text])
    top = math.log(inspection.vocab_size)
    with _figure(9.2, 0.3 * lines + 0.7) as (figure, ax):
        scale = plt.cm.ScalarMappable(plt.Normalize(0, top), 'OrRd')
        for (x, y, width, word), (_, t, _) in zip(placed, text, strict=True):
            counted = t >= 0 and inspection.weights_BL[row, t] > 0
            nll = float(inspection.nll_BL[row, t]) if counted else 0.0
            ax.add_patch(plt.Rectangle((x, y), width, 0.84, lw=0,
                                       color=scale.to_rgba(nll) if counted else '#ececec'))
            ax.text(x + width / 2, y + 0.44, word, ha='center', va='center',
                    color=('white' if nll > 0.7 * top else INK) if counted else GREY, **_MONO)
        ax.set(xlim=(0, _COLUMNS), ylim=(lines, -0.1),
               title='Loss of each token (grey: only read, never predicted)')
        ax.axis('off')
        figure.colorbar(scale, ax=ax, label='-log p [nats]', pad=0.01, fraction=0.04)
    return figure


def gradients(inspection):
    """Per layer: the norm of the gradient, and the update relative to the weights."""
    layers = inspection.layers()
    names = [f'layer {x.layer + 1}' if x.layer >= 0 else x.name for x in layers]
    with _figure(9, 0.36 * len(names) + 1.5, 1, 2, sharey=True) as (figure, (left, right)):
        left.barh(names, [x.grad for x in layers], color=BLUE, height=0.65)
        left.set(title='Gradient', xlabel='L2 norm [nats per unit of weight]')
        left.invert_yaxis()
        right.barh(names, [x.ratio for x in layers], color=GREEN, height=0.65)
        right.axvline(1e-3, color=GREY, ls='--', lw=1)
        right.set(title='Update', xscale='log',
                  xlabel='norm of the update / norm of the weights (dashed: 0.001)')
    return figure


def adam(step, path, repeated, show=20):
    """An adam.AdamStep: a corner of one matrix on its way through the step, and losses.

    Args:
      repeated: (losses on the batch, losses on another) of `adam.repeat_steps`.
    """
    part = {name: np.asarray(x, np.float64) for name, x in step.pick(path).items()}
    corner = {name: x.reshape(-1, x.shape[-1])[:show, :show] for name, x in part.items()}
    panels = (('weights before', corner['before'], 'RdBu_r'),
              ('gradient g', corner['grad'], 'RdBu_r'),
              ('mean m of g', corner['mu'], 'RdBu_r'),
              ('root of v', np.sqrt(corner['nu']), 'Purples'),
              ('update', corner['after'] - corner['before'], 'RdBu_r'))
    with styled():
        figure = plt.figure(figsize=(11, 5.2))
        top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        top.suptitle(f'{path}, its first {show} x {show} numbers', size=10, x=0.01, ha='left')
        for ax, (name, x, colours) in zip(top.subplots(1, 5), panels, strict=True):
            limit = np.abs(x).max() or 1.0
            image = ax.imshow(x, cmap=colours, vmin=-limit if colours == 'RdBu_r' else 0,
                              vmax=limit, interpolation='nearest')
            ax.set(title=name, xticks=(), yticks=())
            top.colorbar(image, ax=ax, shrink=0.8, format='%.0e')
        left, right = bottom.subplots(1, 2, width_ratios=(1, 2.2))
        bars = left.bar(['before', 'after'], [step.loss_before, step.loss_after],
                        color=[GREY, BLUE], width=0.6)
        left.bar_label(bars, fmt='%.4f')
        left.margins(y=0.15)
        left.set(title='One step', ylabel='loss of this batch [nats]')
        for losses, colour, label in zip(repeated, (BLUE, RED),
                                         ('this batch', 'another batch'), strict=True):
            right.plot(losses, 'o-', color=colour, label=label, ms=3)
        right.xaxis.get_major_locator().set_params(integer=True)
        right.set(title='More steps on the same batch: it is learnt by heart', xlabel='step',
                  ylabel='loss [nats per token]')
        right.grid(axis='y', alpha=0.25)
        right.legend()
    return figure


def own_context(found, given):
    """Loss and accuracy along the text, behind true and behind own tokens; bands are standard
    errors over texts. Of an `inside.OwnContext`."""
    pairs = (('loss of the true token [nats]', found.nll_forced_BT, found.nll_free_BT, 1),
             ('likeliest token is the true one [%]', found.right_forced_BT, found.right_free_BT,
              100))
    with _figure(10, 3.6, 1, 2) as (figure, axes):
        for ax, (label, *values, factor) in zip(axes, pairs, strict=True):
            for x_BT, colour, name in zip(values, (BLUE, RED), (
                    'behind the true text (teacher forcing)',
                    'behind its own text (free running)'), strict=True):
                B, T = x_BT.shape
                x_BT = factor * x_BT.astype(np.float64)
                mean_T, error_T = x_BT.mean(0), x_BT.std(0) / math.sqrt(B)
                at_T = given + 1 + np.arange(T)
                ax.plot(at_T, mean_T, 'o-', color=colour, label=name, ms=3)
                ax.fill_between(at_T, mean_T - error_T, mean_T + error_T, color=colour, alpha=0.15)
            ax.set(xlabel='position [tokens]', ylabel=label)
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.grid(axis='y', alpha=0.25)
        axes[0].set_title(f'{len(found.texts)} texts, of which the first {given} tokens are given')
        axes[0].legend()
    return figure
