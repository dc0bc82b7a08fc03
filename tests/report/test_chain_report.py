"""The report of a chain: from files alone, at any moment, escaped, links only to what is there."""

import json

import pytest

from jaxllm.report import chain, ladder, lineage_plot

STEPS = {'base': {'stage': 'jaxllm.stages.pretrain', 'init_from': '',
                  'data': {'sources': {'x': {'path': 'my <text>'}}}},
         'sft': {'stage': 'jaxllm.stages.sft', 'init_from': '@base', 'fresh_weights': False},
         'eval': {'stage': 'jaxllm.stages.compare', 'a': '@sft', 'b': '@base'}}


def cell(value, n=20):
    return {'value': value, 'low': value - 0.1, 'high': value + 0.1, 'n': n, 'unit': 'share'}


RESULTS = {
    'kind': 'comparison', 'reference': 'sft', 'prompts': 2,
    'rows': [{'artefact': name, 'judges': {'world': {'mean': cell(1), **won}}} for name, won in (
        ('sft', {}), ('base', {'win_rate': cell(0.2)}))],
    'suites': {'metrics': {name: {'recall/restricted': cell(value), 'instructions': cell(value),
                                  'recall/restricted/chance': {**cell(0.1), 'low': None,
                                                               'high': None}}
                           for name, value in (('base', 0.3), ('sft', 0.6))},
               'before': {'sft': 'base', 'base': ''},
               'differences': [
                   {'metric': 'recall/restricted', 'artefact': 'sft', 'before': 'base',
                    'value': 0.3, 'low': 0.2, 'high': 0.4, 'n': 20},
                   {'metric': 'instructions', 'artefact': 'sft', 'before': 'base',
                    'value': 0.05, 'low': -0.1, 'high': 0.2, 'n': 20},
                   {'metric': 'win_rate', 'artefact': 'sft', 'before': 'base',
                    'value': 0.8, 'low': 0.7, 'high': 0.9, 'n': 20}]}}


@pytest.fixture
def workdir(tmp_path):
    """Base done, fine-tuning killed once and begun again, evaluation to come."""
    folder = tmp_path / 'life'
    for name in ('base', 'sft'):
        (folder / name).mkdir(parents=True)
        (folder / name / 'config.json').write_text(json.dumps(STEPS[name] | {'seed': 0}))
        (folder / name / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in (
            {'kind': 'train', 'step': 5, 'loss': 3.25},
            {'kind': 'eval', 'step': 5, 'val/loss': 3.5})))
    (folder / 'config.json').write_text(json.dumps({'stage': 'jaxllm.stages.chain', 'seed': 3,
                                                    'steps': STEPS}))
    (folder / 'lineage.json').write_text(json.dumps({'steps': list(STEPS)}))
    (folder / 'base' / 'report.html').write_text('')
    rows = [{'step': 'base', 'event': 'begin'},
            {'step': 'base', 'event': 'end', 'seconds': 75.0, 'peak_rss_bytes': 2 ** 30},
            {'step': 'sft', 'event': 'begin'}, {'step': 'sft', 'event': 'begin'}]
    (folder / 'steps.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return folder


def test_an_unfinished_chain(workdir, monkeypatch):
    monkeypatch.setattr(chain.marks, 'is_done', lambda folder: folder.name == 'base')
    text = chain.write_report(workdir).read_text()
    assert '1 of 3 steps done; next: sft' in text and 'seed 3' in text
    assert '1 m 15 s' in text and '1 GiB' in text and 'base model, 5 steps' in text
    assert 'my &lt;text&gt;' in text and 'my <text>' not in text
    assert text.count('href="base/report.html"') == 2 and 'href="sft/report.html"' not in text
    assert 'instruct model, 5 steps, begun' in text and 'comparison, to come' in text
    assert 'What each model can do' not in text


def test_a_finished_one(workdir, monkeypatch):
    monkeypatch.setattr(chain.marks, 'is_done', lambda folder: True)
    folder = workdir / 'eval'
    (folder / 'samples').mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(STEPS['eval']))
    (folder / 'results.json').write_text(json.dumps(RESULTS))
    for name in ('base', 'sft'):
        (folder / 'samples' / f'{name}.jsonl').write_text(''.join(json.dumps(
            {'prompt': f'ask {i}', 'response': f'{name} says <{i}>'}) + '\n' for i in range(2)))
    text = chain.write_report(workdir).read_text()
    assert 'sft against base' in text and '70 to 90' in text
    assert 'sft says &lt;1&gt;' in text and '+0.3 [+0.2, +0.4]' in text and 'chance' in text
    assert 'Wins against sft, by the hidden judge' in text
    hollow = text.split('sft against base <small>change')[1].split('</figure>')[0]
    assert hollow.count('hollow"') >= 1 and hollow.count('class="dot k0"') == 2


def test_nothing_without_suites():
    assert ladder.state({'rows': []}) == '' and ladder.changes({'rows': []}) == ''


def test_an_edge_that_follows_from_others_is_left_out():
    node = lambda name, needs=(), main='': lineage_plot.Node(name, '', '', needs, main, True)
    edges = lambda *nodes: lineage_plot.draw(nodes).count('class="edge ')
    a, b = node('a'), node('b', ('a',), 'a')
    assert edges(a, b, node('c', ('a', 'b'))) == 2
    assert edges(a, b, node('c', ('a', 'b'), 'a')) == 3, 'c goes on training a'
    assert lineage_plot.draw(()) == ''
