"""Pictures and tables for notebooks say what they were given."""

import json

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from jaxllm.evals.adam import AdamStep
from jaxllm.evals.inside import Depths, OwnContext
from jaxllm.evals.inspect import Inspection, Norms
from jaxllm.report import notebook, step_plots
from jaxllm.train.optim import OptimConfig


@pytest.fixture(autouse=True)
def headless():
    matplotlib.use('agg')
    before = dict(plt.rcParams)
    yield
    assert dict(plt.rcParams) == before, 'the style leaks'
    plt.close('all')


def texts(figure):
    """All that is written in a figure, and it can be drawn."""
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.fixture
def runs(tmp_path):
    folders = {'base': tmp_path / 'base', 'sft': tmp_path / 'sft'}
    for name, folder in folders.items():
        folder.mkdir()
        lines = [{'step': 0, 'kind': 'eval', 'val/loss': 3.5, 'val/bits_per_byte': 4.0},
                 {'step': 4, 'kind': 'train', 'nll': 2.25},
                 {'step': 8, 'kind': 'train', 'nll': 'nan'},
                 {'step': 8, 'kind': 'eval', 'val/loss': 1.25, 'val/bits_per_byte': 1.5}]
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in lines))
        (folder / 'done.json').write_text('{"seconds": 12.4}')
        parents = {'init_from': {'run': str(tmp_path / 'base')}} if name == 'sft' else {}
        (folder / 'lineage.json').write_text(json.dumps({'parents': parents, 'num_params': 1234}))
    (folders['sft'] / 'stops.json').write_text('{"asked": 4, "stopped": 3}')
    return folders


def test_loss_curves(runs):
    figure = notebook.loss_curves(runs)
    assert [ax.get_title('left') for ax in figure.axes] == ['base', 'sft']
    training, held_out = figure.axes[1].lines
    assert held_out.get_xydata().tolist() == [[0, 3.5], [8, 1.25]]
    assert training.get_xydata().tolist()[0] == [4, 2.25]
    assert 'loss [nats per token]' in texts(figure)


def test_ladder(runs, tmp_path):
    base, sft = notebook.ladder(runs)
    assert base == {'artefact': 'base', 'made from': 'nothing', 'parameters trained': '1,234',
                    'steps': '8', 'held-out loss': '3.50 to 1.25',
                    'bits per byte': '1.50', 'answers that end': '-', 'time [s]': '12'}
    assert sft['made from'] == 'base' and sft['answers that end'] == '3 of 4'
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new' / 'config.json').write_text('{}')
    new, = notebook.ladder({'new': tmp_path / 'new'})
    assert set(list(new.values())[2:]) == {'-'}


def test_markdown():
    assert notebook.markdown([{'a': 'x|y', 'b': 'two\nlines'}, {'a': 1, 'b': 2}]) == (
        '| a | b |\n| --- | --- |\n| x\\|y | two lines |\n| 1 | 2 |')


def test_tokens_wrap():
    figure = step_plots.tokens([[(7, 'wide' * 10), (8, ' b\n'), (9, 'c' * 60)], [(1, '$x$')]])
    found = texts(figure)
    assert {'7', '·b↵', '$x$', '9'} <= set(found)
    assert len(figure.axes[0].patches) == 4
    assert sorted({patch.get_y() for patch in figure.axes[0].patches}) == [0, 1, 2]


def test_embeddings():
    plane = ['a', ' b', 'c'], np.array([[0.5, -1], [0, 0], [1, 2]]), 0.25
    figure = step_plots.embeddings(plane, {'a': [('c', 0.75)], ' b': []}, np.eye(4, 3))
    found = texts(figure)
    assert 'second component (25% of the variance in both)' in found and 'a ~ c' in found
    assert figure.axes[1].patches[0].get_width() == 0.75


def test_depths():
    seen = Depths(np.ones((3, 2, 5)), (('p', 'q'), ('r', 's'), ('t', 'u')),
                  np.array([[0.1, 0.2], [0.3, 0.9], [0.5, 0.6]]), ('x', 'y', ' z'))
    found = texts(step_plots.depths(seen))
    assert {'p', 'u', 'x → y', 'y → ·z', 'layer 2'} <= set(found)


def test_attention_and_next():
    maps_HMM = np.tril(np.full((2, 3, 3), 0.25))
    draw = lambda target: step_plots.attention_and_next(
        maps_HMM, ['a', 'b', 'c'], 1, [(' d', 0.6), ('e', 0.1)], layer=2, target=target)
    figure = draw('e')
    assert [patch.get_width() for patch in figure.axes[1].patches] == pytest.approx([60, 10])
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), np.tril(np.full((3, 3), 0.5)))
    assert any('(red)' in text for text in texts(figure))
    assert any('not among these' in text for text in texts(draw('f')))


def make_inspection():
    tokens_BL = np.array([[1, 2, 3]])
    norms = [Norms(-1, 'embed/tokens', 4, 0.5, 2.0, 0.01), Norms(0, 'mlp/up', 4, 0.25, 1.0, 0.02)]
    return Inspection(
        tokens_BL, np.array([[2, 3, 4]]), np.array([[1., 0, 1]]), np.ones((1, 3), int),
        np.array([[0.5, 0.1, 9.0]]), np.zeros((1, 3)), np.zeros((1, 3, 1), int),
        np.zeros((1, 3, 1)), 11, {1: 'one', 2: ' two', 3: 'three', 4: '$'}, 1.0, {}, 1.0, 1.0, 0.1,
        tuple(norms), (), 0)


def test_token_losses():
    figure = step_plots.token_losses(make_inspection(), 0)
    colours = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert len(colours) == 4 and colours[0] == colours[2] != colours[1]  # only read, or no weight
    assert {'one', '·two', 'three', '$', '-log p [nats]'} <= set(texts(figure))


def test_gradients():
    figure = step_plots.gradients(make_inspection())
    left, right = figure.axes
    assert [patch.get_width() for patch in left.patches] == [0.5, 0.25]
    assert [patch.get_width() for patch in right.patches] == pytest.approx([0.005, 0.02])
    assert {'embed', 'layer 1'} <= set(texts(figure))


def test_adam():
    tree = lambda value: {'w': np.full((2, 3, 25), value)}
    optim = OptimConfig('adamw', 0.1, 'constant', 0, 0.0, 0.0, 0.9, 0.95, 1e-8, 0.1, 0.0, 0.0, 0.95)
    step = AdamStep(tree(1.0), tree(0.0), tree(0.0), tree(4.0), tree(1.5), tree(1.5), 3, 0.1, optim,
                    2.5, 2.0)
    figure = step_plots.adam(step, 'w', (np.array([2.5, 2.0]), np.array([2.0, 2.25])))
    images = [ax.images[0].get_array() for ax in figure.axes if ax.images and ax.get_title('left')]
    assert [x.shape for x in images] == [(6, 20)] * 5
    assert [float(x[0, 0]) for x in images] == [1, 0, 0, 2, 0.5]
    assert {'2.5000', '2.0000', 'another batch'} <= set(texts(figure))


def test_own_context():
    forced = np.array([[1., 2], [3, 4]])
    found = OwnContext(forced, forced + 1, forced > 1, forced > 2, (('a', 'b', 'c'),) * 2)
    figure = step_plots.own_context(found, 5)
    assert figure.axes[0].lines[1].get_xydata().tolist() == [[6, 3], [7, 4]]
    assert figure.axes[1].lines[0].get_ydata().tolist() == [50, 100]
