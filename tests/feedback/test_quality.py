"""Quality of labels against numbers by hand."""

import math

import pytest
from label_dirs import labelled, rate

from jaxllm.feedback import quality


def test_two_raters_by_hand(tmp_path):
    labels = labelled(tmp_path, {('Ann', 'item0'): [1, 2, 3], ('Bob', 'item0'): [1, 3, 2],
                                 ('Ann', 'item1'): [1, 2], ('Bob', 'item1'): [1, 2],
                                 ('Ann', 'item2'): [1, 1]})
    found = quality.measure(labels.answers())
    assert {name: found[name] for name in ('answers', 'items', 'raters', 'items_rated_twice')} == {
        'answers': 5, 'items': 3, 'raters': 2, 'items_rated_twice': 2}
    # 2 * 3 + 2 * 1 + 1 pairs, of which one is tied.
    assert found['ties'] == pytest.approx(1 / 9) and found['all_bad'] == 0
    # Units: 1-1, 2-3, 3-2, 1-1, 2-2; n_1 = 4, n_2 = 4, n_3 = 2, n = 10. d2(1,2) = 4^2,
    # d2(1,3) = 7^2, d2(2,3) = 3^2. D_o = 4 * 9 / 10, D_e = 2 (16 * 16 + 8 * 49 + 8 * 9) / 90.
    assert found['alpha_ordinal'] == pytest.approx(1 - 3.6 / 16)
    # Four shared pairs, three with one verdict.
    assert found['kappa_verdicts'] == 4
    assert len(found['first_best']) == 4
    assert sorted(found['first_chance']) == [1 / 3, 1 / 3, 1 / 2, 1 / 2]


def test_raters_who_agree_and_who_do_not(tmp_path):
    sizes = (2,) * 12
    said = {(rater, f'item{i}'): [1, 2] for rater in 'AB' for i in range(12)}
    found = quality.measure(labelled(tmp_path / 'a', said, sizes=sizes).answers())
    # Which one is called better is drawn for each pair: that all are right is no chance.
    assert found['kappa'] == found['alpha_nominal'] == found['alpha_ordinal'] == 1
    against = said | {('B', f'item{i}'): [2, 1] for i in range(12)}
    found = quality.measure(labelled(tmp_path / 'b', against, sizes=sizes).answers())
    assert found['kappa'] < -0.9 and found['alpha_nominal'] < -0.9


def test_the_first_place_on_screen(tmp_path):
    labels = labelled(tmp_path, {}, sizes=(2,) * 20)
    for item in labels.items:
        first = labels.shown('Ann', item)[0]
        rate(labels, 'Ann', item, [1 + (i != first) for i in range(2)], all_bad=item == 'item3',
             comment='x' if item == 'item4' else '')
    found = quality.measure(labels.answers())
    assert found['first_best'] == [1] * 20 and found['first_chance'] == [0.5] * 20
    assert found['first_items'] == list(labels.items)
    assert found['all_bad'] == 1 / 20 and found['comments'] == 1


def test_no_answers():
    found = quality.measure([])
    assert found['answers'] == 0 and math.isnan(found['kappa']) and math.isnan(found['ties'])
