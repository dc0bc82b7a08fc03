"""Comparisons as token ids: where an answer ends, what is held out, batches pure in the step."""

import dataclasses
import json

import numpy as np
import pytest

from jaxllm.data import chat, comparisons, tokenizer
from jaxllm.data.comparison_batches import AllComparisons, ComparisonBatches, row_length
from jaxllm.data.comparisons import Encoded, RatedSpec
from jaxllm.data.preferences import Comparison
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError
from jaxllm.world.spec import Intervention, WorldSpec

TOKENIZER = tokenizer.byte_tokenizer()
TEMPLATE = chat.load_template('chatml_bos')
SPEC = RatedSpec('mine', 'mine.jsonl')


def user(text):
    return {'role': 'user', 'content': text}


def assistant(text):
    return {'role': 'assistant', 'content': text}


def compare(number, size=2, words='ab'):
    return Comparison((user(f'question {number}'),), tuple(words * (i + 1) for i in range(size)),
                      tuple(range(1, size + 1)), margin=number % 4, id=f'c{number}')


def encode(found, seq_len=200):
    rejects = Rejects()
    return *comparisons.encode_all(found, SPEC, TEMPLATE, TOKENIZER, seq_len, rejects), rejects


def test_an_answer_ends_with_its_stop_token():
    """The same when training and when a sampled answer is scored: request, answer, stop."""
    stop = chat.stop_ids(TEMPLATE, TOKENIZER)[0]
    for messages in ([user('hi')], [user('a'), assistant('b'), user('c')],
                     [user('what is <|im_end|>?')]):
        ids = comparisons.answer_ids(TEMPLATE, [*messages, assistant('yes.')], TOKENIZER)
        prompt = chat.render(TEMPLATE, messages, TOKENIZER, add_generation_prompt=True).ids
        assert ids == [*prompt, *TOKENIZER.encode('yes.'), stop]
        assert ids.count(TOKENIZER.bos_id) == 1


def test_a_template_that_does_not_say_where_answers_end_is_refused():
    template = chat.ChatTemplate('odd', '{% for m in messages %}{% if m.role == "assistant" %}'
                                 '{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>'
                                 '{% else %}{{ m.content }}{% endif %}{% endfor %}')
    with pytest.raises(InputError, match='end token'):
        comparisons.answer_ids(template, [user('a'), assistant('b')], TOKENIZER)


def test_too_long_is_rejected_and_never_cut():
    found = [compare(0), compare(1, words='x' * 90), compare(2, 3)]
    encoded, kept, rejects = encode(found, seq_len=100)
    rejects.read('mine')
    assert [c.id for c in kept] == ['c0', 'c2'] and len(encoded) == 2
    assert rejects.summary()['mine']['reasons'] == {'too long': 1}
    batch = encoded.batch([1, 0], 4, 96)
    assert batch['tokens'].shape == (2, 4, 96)
    np.testing.assert_array_equal(batch['ranks'], [[1, 2, 3, 0], [1, 2, 0, 0]])
    np.testing.assert_array_equal(batch['margins'], [2, 0])
    stop = chat.stop_ids(TEMPLATE, TOKENIZER)[0]
    for b, row in enumerate(batch['lengths']):
        for s, length in enumerate(row):
            assert (length == 0) == (batch['ranks'][b, s] == 0)
            assert length == 0 or batch['tokens'][b, s, length - 1] == stop
            assert not batch['tokens'][b, s, length:].any()


def test_what_was_saved_is_loaded_or_refused(tmp_path):
    encoded, _, _ = encode([compare(i) for i in range(5)])
    encoded.save(tmp_path / 'a.npz', {'tokenizer': 'x', 'seq_len': 9})
    again = Encoded.load(tmp_path / 'a.npz', {'tokenizer': 'x', 'seq_len': 9})
    assert again.fingerprint == encoded.fingerprint
    with pytest.raises(InputError, match="another tokenizer"):
        Encoded.load(tmp_path / 'a.npz', {'tokenizer': 'y', 'seq_len': 9})
    (tmp_path / 'a.npz').write_bytes((tmp_path / 'a.npz').read_bytes()[:300])
    with pytest.raises(InputError, match='damaged'):
        Encoded.load(tmp_path / 'a.npz', {'tokenizer': 'x', 'seq_len': 9})


def test_texts_survive_the_file(tmp_path):
    found = [dataclasses.replace(compare(3), fields={'features': np.array([0.5, 1.0])})]
    comparisons.write_comparisons(tmp_path / 'a.jsonl', found)
    again = comparisons.load_comparisons(tmp_path / 'a.jsonl')
    assert again[0].prompt == found[0].prompt and again[0].ranks == (1, 2)
    assert again[0].fields == {'features': [0.5, 1.0]}


def test_no_prompt_is_on_both_sides():
    """Whatever the order of the records; a prompt's records stay together."""
    found = [compare(i % 20, words=w) for i in range(60) for w in ('a', 'b')]
    train, held = comparisons.hold_out(found, 0.2)
    prompts = lambda part: {c.request for c in part}
    assert len(prompts(held)) == 4 and not prompts(train) & prompts(held)
    assert len(train) + len(held) == 120
    assert prompts(comparisons.hold_out(found[::-1], 0.2)[1]) == prompts(held)
    grouped = [dataclasses.replace(c, fields={'holdout_group': i % 6})
               for i, c in enumerate(found)]
    assert len(comparisons.hold_out(grouped, 0.01)[1]) == 20
    with pytest.raises(InputError, match='1 different prompt'):
        comparisons.hold_out(found[:1], 0.5)


def sets(seed=0):
    rng = np.random.default_rng(seed)
    make = lambda count, size: encode([compare(i, size, 'ab' * rng.integers(1, 30))
                                       for i in range(count)], seq_len=400)[0]
    return [('pairs', make(41, 2), 3.0), ('rankings', make(13, 4), 1.0)]


def batches(seed=0, batch_size=4, **process):
    return ComparisonBatches(sets(), batch_size=batch_size, seed=seed, **process)


def test_each_epoch_reads_everything_once():
    source = ComparisonBatches(sets()[1:], batch_size=13, seed=0)
    encoded = sets()[1][1]
    orders = []
    for first in (0, 8):  # windows of 8 batches, here of 8 epochs
        seen = [source._sets[0].batch(first + k) for k in range(8)]
        places, counts = np.unique(np.concatenate(seen), return_counts=True)
        assert places.tolist() == list(range(len(encoded))) and set(counts) == {8}
        orders.append(np.concatenate(seen).tolist())
    assert orders[0] != orders[1]
    order = source._sets[0]._order_of
    assert order(0).tolist() != order(1).tolist() == order(1).tolist()


def test_a_batch_depends_on_the_step_alone():
    one, two = batches(), batches()
    from_start = [next(it) for it in [one.iterate()] for _ in range(9)]
    again = two.iterate(6)
    for step in (6, 7, 8):
        for key, x in next(again).items():
            np.testing.assert_array_equal(x, from_start[step][key])
    other = batches(seed=1)
    assert any(not np.array_equal(other(i)['lengths'], from_start[i]['lengths'])
               for i in range(4))
    assert one.fingerprint == two.fingerprint != other.fingerprint
    shapes = {batch['tokens'].shape for batch in from_start}
    assert {shape[1] for shape in shapes} == {2, 4}
    assert one.shares == {'pairs': 0.75, 'rankings': 0.25}


@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_one_global_batch(count):
    whole = batches()
    parts = [batches(process_index=p, process_count=count) for p in range(count)]
    for step in range(9):
        want = whole(step)
        for key, x in want.items():
            np.testing.assert_array_equal(
                np.concatenate([part(step)[key] for part in parts]), x)
    with pytest.raises(InputError, match='does not divide'):
        batches(batch_size=6, process_index=0, process_count=4)


def test_held_out_ones_count_once():
    encoded = sets()[0][1]
    held = AllComparisons(encoded, batch_size=8)
    assert len(held) == 6
    margins = np.concatenate([held[i]['margins'][held[i]['ranks'][:, 0] > 0] for i in range(6)])
    np.testing.assert_array_equal(np.sort(margins), np.sort(encoded.margins))
    assert {held[i]['ranks'].shape for i in range(6)} == {(8, 2)}
    assert len(AllComparisons(encoded, batch_size=8, most=10)) == 2
    with pytest.raises(IndexError):
        held[6]


def test_row_lengths_are_few():
    assert [row_length(x) for x in (1, 16, 17, 32, 33, 64, 65, 128, 129)] == [
        16, 16, 32, 32, 64, 64, 128, 128, 256]


def test_a_world_is_judged_by_whom_you_ask():
    """All comparisons by one rater; the published mix has a seventh of them."""
    world = WorldSpec(seed=0, scale='nano', intervention=Intervention('none'))
    spec = RatedSpec('w', 'world:rankings', split='validation', world=world, rater='expert',
                     criterion='safe', max_records=30)
    found = list(comparisons.read_rated(spec, Rejects()))
    assert len(found) == 30 and {(c.rater, c.criterion) for c in found} == {('expert', 'safe')}
    assert all(len(c.responses) == 4 and len(c.fields['features']) == 48 for c in found)
    unsafe = dataclasses.replace(spec, where={'kind': 'unsafe'}, max_records=3)
    assert {c.fields['kind'] for c in comparisons.read_rated(unsafe, Rejects())} == {'unsafe'}
    assert spec.fingerprint != dataclasses.replace(spec, criterion='helpful').fingerprint
    with pytest.raises(InputError, match='no comparison'):
        list(comparisons.read_rated(dataclasses.replace(spec, split='nowhere'), Rejects()))
    with pytest.raises(InputError, match='selected by `where`'):
        RatedSpec('mine', 'mine.jsonl', rater='expert')


def test_ratings_of_conversations_become_comparisons():
    from jaxllm.data import chitchat
    from jaxllm.data.preferences import normalise_comparison

    def talk(number, rating, size=50, people=2):
        said = [[{'text': f'{number} says {i} ' + 'x' * size, 'sender': f'p{i % people}'}]
                for i in range(20)]
        return {'prompt': 'Tea?', 'messages': said,
                'ratings': dict(zip(('witty', 'interesting', 'upbeat'), rating, strict=True))}
    talks = {f'k{i}': talk(i, (i, i, i + 3)) for i in range(1, 9)}
    talks |= {'default': talk(9, (5, 5, '5')), 'short': talk(10, (9, 9, 9), size=1),
              'alone': talk(11, (9, 9, 9), people=1)}
    rows = list(chitchat.rated(talks))
    assert len(rows) == 2 and {row['prompt'] for row in rows} == {'Tea?'}
    assert sorted(score for row in rows for score in row['scores']) == [
        float(i + 1) for i in range(1, 9)]
    for row in rows:
        found = normalise_comparison(row)
        best = row['responses'][int(np.argmax(row['scores']))]
        assert found.responses[found.ranks.index(1)] == best
        assert best.startswith('A: ') and '\nB: ' in best and 400 <= len(best) < 500
        assert json.dumps(found.fields['holdout_group'])
