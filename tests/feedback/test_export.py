"""What is exported is what was said, and every reader of comparisons can read it."""

import collections

import pytest
import tensorflow_datasets as tfds
from label_dirs import labelled, rate

from jaxllm.data.preferences import Comparison, ComparisonSpec, read_comparisons
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError
from jaxllm.feedback import export, items
from jaxllm.feedback.labels import Labels


def write(folder, found, **options):
    return export.write(folder, found, title='T', origin='O', license='CC0-1.0', **options)


def read(path, splits):
    rejects, found = Rejects(), []
    for split in splits:
        found += read_comparisons(ComparisonSpec('x', path, split=split), rejects)
    assert not rejects.count('x')
    return found


def test_rankings_pairs_and_consensus(tmp_path):
    labels = labelled(tmp_path / 'labels', {
        ('Ann', 'item0'): [1, 2, 2], ('Bob', 'item0'): [1, 2, 3], ('Ann', 'item1'): [2, 1],
        ('Bob', 'item2'): [1, 1]})
    rate(labels, 'Cem', 'item1', [1, 2], criterion='safe', all_bad=True, comment='both "wrong"\n')
    found, empty = export.comparisons(labels)
    counts = write(tmp_path / 'out', found, consensus=True)
    totals = {name: sum(rows.values()) for name, rows in counts.items()}
    assert empty == 0 and totals == {'rankings': 5, 'pairs': 2 + 3 + 1 + 0 + 1, 'consensus': 4}
    rankings = read(f'tfds:{tmp_path}/out/tfds/rankings/1.0.0', counts['rankings'])
    by_id = {c.id: c for c in rankings}
    bad = by_id['item1/safe/Cem']
    assert bad.prompt == ({'role': 'user', 'content': 'question 1'},)
    assert (bad.responses, bad.ranks, bad.rater, bad.criterion) == (
        ('1-0', '1-1'), (1, 2), 'Cem', 'safe')
    assert bad.fields['all_bad'] and bad.fields['comment'] == 'both "wrong"\n'
    assert bad.fields['sources'] == ['m0', 'm1'] and bad.fields['item'] == 'item1'
    assert {c.rater for c in rankings if c.fields['item'] == 'item0'} == {'Ann', 'Bob'}
    pairs = read(f'tfds:{tmp_path}/out/tfds/pairs/1.0.0', counts['pairs'])
    assert collections.Counter((c.responses, c.rater) for c in pairs) == collections.Counter(
        [(('0-0', '0-1'), 'Ann'), (('0-0', '0-2'), 'Ann'), (('0-0', '0-1'), 'Bob'),
         (('0-0', '0-2'), 'Bob'), (('0-1', '0-2'), 'Bob'), (('1-1', '1-0'), 'Ann'),
         (('1-0', '1-1'), 'Cem')])
    assert len({c.id for c in pairs}) == 7
    together = read(f'tfds:{tmp_path}/out/tfds/consensus/1.0.0', counts['consensus'])
    assert {(c.id, c.ranks, c.fields['raters']) for c in together} == {
        ('item0/helpful', (1, 2, 3), 2), ('item1/helpful', (2, 1), 1),
        ('item1/safe', (1, 2), 1), ('item2/helpful', (1, 1), 1)}
    lines = [read(str(path), ['train']) for path in (tmp_path / 'out/jsonl/rankings').iterdir()]
    assert {c.id: c for c in sum(lines, [])} == by_id
    card = (tmp_path / 'out/README.md').read_text()
    assert 'CC0-1.0' in card and '2 pairs of responses were tied' in card and '`all_bad`' in card


def test_without_a_single_pair(tmp_path):
    labels = labelled(tmp_path / 'labels', {('Ann', 'item1'): [1, 1]})
    counts = write(tmp_path / 'out', export.comparisons(labels)[0])
    assert counts['pairs'] == {} and sum(counts['rankings'].values()) == 1
    assert not (tmp_path / 'out/tfds/pairs').exists()


def test_responses_without_text_are_left_out(tmp_path):
    (tmp_path / 'label.json').write_text('{"criteria": ["helpful"], "models": []}')
    asked = ({'role': 'user', 'content': 'q'},)
    items.write_items(tmp_path, [items.Item('x', asked, ('a', '', 'b'), (('m',),) * 3),
                                 items.Item('y', asked, ('a', ''), (('m',),) * 2)])
    labels = Labels(tmp_path)
    rate(labels, 'Ann', 'x', [3, 2, 1])
    rate(labels, 'Ann', 'y', [1, 2])
    found, empty = export.comparisons(labels)
    assert empty == 1 and [(c.responses, c.ranks) for c in found] == [(('a', 'b'), (2, 1))]


def test_imported_pairs_keep_their_ids_and_margins(tmp_path):
    asked = ({'role': 'user', 'content': 'q'},)
    write(tmp_path / 'out', [Comparison(asked, ('g', 'b'), (1, 2), 1.5, 'r', 'c', 'first')])
    split, = tfds.builder_from_directory(f'{tmp_path}/out/tfds/pairs/1.0.0').info.splits
    assert split == export.split_of(list(asked))
    pair, = read(f'tfds:{tmp_path}/out/tfds/pairs/1.0.0', [split])
    assert (pair.id, pair.margin, pair.responses) == ('first', 1.5, ('g', 'b'))


def test_splits_are_by_prompt():
    names = [export.split_of([{'role': 'user', 'content': f'question {i}'}]) for i in range(400)]
    shares = collections.Counter(names)
    assert 280 < shares['train'] < 360
    assert 20 < shares['validation'] < 60 and 20 < shares['test'] < 60


def test_what_cannot_be_exported(tmp_path):
    labels = labelled(tmp_path / 'labels', {})
    with pytest.raises(InputError, match='no answer yet'):
        write(tmp_path / 'out', export.comparisons(labels)[0])
    with pytest.raises(InputError, match='exists already'):
        write(tmp_path / 'labels', [])
