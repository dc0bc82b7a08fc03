"""Pairs of answers as arrays: which pairs, where answers begin, order of batches."""

import collections

import numpy as np
import pytest

from jaxllm.data import chat, pairs, tokenizer
from jaxllm.data.preferences import Comparison
from jaxllm.errors import InputError

TOKENS = tokenizer.byte_tokenizer()
TEMPLATE = chat.load_template('chatml_bos')


def comparison(prompt, responses, ranks):
    return Comparison(({'role': 'user', 'content': prompt},), tuple(responses), tuple(ranks))


def made(count=6):
    found = [comparison(f'q{i}', ('yes ' * (i + 1), 'no'), (1, 2)) for i in range(count)]
    return pairs.encode_pairs(found, TEMPLATE, TOKENS, 'best_worst', collections.Counter())


def test_which_pairs_a_ranking_gives():
    one = comparison('q', 'abcd', (2, 1, 2, 3))
    assert pairs.pairs_of(one, 'best_worst') == [(1, 3)]
    assert sorted(pairs.pairs_of(one, 'all')) == [(0, 3), (1, 0), (1, 2), (1, 3), (2, 3)]
    assert pairs.pairs_of(comparison('q', 'ab', (1, 1)), 'best_worst') == []


def test_an_answer_is_the_text_and_what_ends_it():
    found = made()
    rows = found.rows(np.array([2]))
    count = int(rows['mask'][0, 0].sum())
    ids = rows['completions'][0, 0, :count].tolist()
    assert TOKENS.decode(ids[:-1]) == 'yes yes yes '
    assert ids[-1] in chat.stop_ids(TEMPLATE, TOKENS)
    start = rows['starts'][0, 0]
    prompt = chat.render(TEMPLATE, [{'role': 'user', 'content': 'q2'}], TOKENS,
                         add_generation_prompt=True).ids
    assert rows['tokens'][0, 0, :start + 1].tolist() == prompt
    assert start + 1 + count == rows['lengths'][0, 0]


def test_a_mismatch_is_the_prompt_with_the_answer_to_the_next():
    found = made()
    rows = found.rows(np.array([5]), mismatched=True)
    count = int(rows['mask'][0, 2].sum())
    assert TOKENS.decode(rows['completions'][0, 2, :count - 1].tolist()) == 'yes '
    assert rows['tokens'].shape[1] == 3


def test_answers_of_the_same_tokens_are_counted():
    counts = collections.Counter()
    same = comparison('q', ('same', 'same'), (1, 2))
    assert len(pairs.encode_pairs([same], TEMPLATE, TOKENS, 'all', counts)) == 0
    assert counts == {'same tokens': 1}


def test_every_pair_comes_once_an_epoch_in_another_order():
    found = made()
    columns = {'number': np.arange(6)}
    source = pairs.PairBatches(found, columns, batch_size=2, seed=3)
    epochs = [np.concatenate([source(e * 3 + i)['number'] for i in range(3)]) for e in range(3)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    np.testing.assert_array_equal(source(4)['number'], source(4)['number'])
    halves = [pairs.PairBatches(found, columns, batch_size=2, seed=3, process_index=p,
                                process_count=2)(4)['number'] for p in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), source(4)['number'])


def test_too_few_pairs():
    with pytest.raises(InputError, match='fewer than train.batch_size=8'):
        pairs.PairBatches(made(), {}, batch_size=8, seed=0)


def test_mismatches_are_of_another_prompt():
    """Also where several pairs of one prompt follow each other, and at the end."""
    found = [comparison('one', 'abc', (1, 2, 3)), comparison('two', ('yes', 'no'), (1, 2))]
    several = pairs.encode_pairs(found, TEMPLATE, TOKENS, 'all', collections.Counter())
    assert several.partners.tolist() == [3, 3, 3, 0]
    alone = pairs.encode_pairs(found[:1], TEMPLATE, TOKENS, 'all', collections.Counter())
    with pytest.raises(InputError, match='one prompt'):
        alone.longest(mismatched=True)


def test_rows_are_as_long_as_the_batch_needs():
    found = [comparison(f'q{i}', ('x' * (1 + 60 * (i % 2)), 'y'), (1, 2)) for i in range(64)]
    whole = pairs.encode_pairs(found, TEMPLATE, TOKENS, 'all', collections.Counter())
    source = pairs.PairBatches(whole, {'number': np.arange(64)}, batch_size=4, seed=0)
    for batch in map(source, range(16)):
        L = batch['tokens'].shape[-1]
        assert L / 2 < batch['lengths'].max() <= L
        full = source.batch(batch['number'])
        count = int(batch['mask'].sum())
        assert count == full['mask'].sum() and (batch['lengths'] == full['lengths']).all()
        np.testing.assert_array_equal(
            batch['completions'][batch['mask'] > 0], full['completions'][full['mask'] > 0])
    assert len({source(i)['tokens'].shape for i in range(16)}) == 2
