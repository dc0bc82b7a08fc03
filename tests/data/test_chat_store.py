"""Token stores of conversations: weights, cutting, packing, mixing with text."""

import collections

import numpy as np
import pytest

from jaxllm.data import chat, dialogues, tokenizer
from jaxllm.data.conversations import Conversation
from jaxllm.data.dialogues import DialogueSpec
from jaxllm.data.infill import InfillConfig
from jaxllm.data.loader import EvalBatches, PackedData
from jaxllm.data.rejects import Rejects
from jaxllm.data.store import TokenStore, write_store
from jaxllm.errors import InputError

SPEC = DialogueSpec('mine', 'mine.jsonl')


def talk(i, words=3):
    return Conversation(str(i), f'mine.jsonl:{i + 1}', (
        {'role': 'user', 'content': f'question {i}' + ' x' * words},
        {'role': 'assistant', 'content': f'answer {i}' + ' y' * words}))


def store(folder, talks, *, seq_len=200, template='chatml_bos', share=0.0):
    tok, rejects, counts = tokenizer.byte_tokenizer(), Rejects(), collections.Counter(cut=0)
    found = dialogues.render_all(talks, SPEC, chat.load_template(template), tok, seq_len, rejects,
                                 counts)
    write_store(found, tok, folder, holdout_share=share, source_fingerprint='x',
                encode=dialogues.encode)
    return TokenStore.open(folder), tok, rejects, counts


def test_what_stands_in_a_store_is_the_rendering(tmp_path):
    talks = [talk(i, i) for i in range(5)]
    found, tok, _, _ = store(tmp_path / 's', talks)
    template = chat.load_template('chatml_bos')
    for i, one in enumerate(talks):
        want = chat.render(template, one.messages, tok)
        start, end = found.train.offsets[i:i + 2]
        np.testing.assert_array_equal(found.train.tokens[start:end], want.ids)
        np.testing.assert_array_equal(found.train.weights[start:end], want.loss_weights)
        assert found.train.describe(i)['origin'] == one.origin


def test_packed_rows_weigh_what_each_conversation_weighs(tmp_path):
    talks = [talk(i, i % 4) for i in range(40)]
    found, tok, _, _ = store(tmp_path / 's', talks)
    batches = EvalBatches(found.train, seq_len=200, batch_size=3)
    template, got, want = chat.load_template('chatml_bos'), collections.Counter(), (
        collections.Counter())
    total = 0
    for i in range(len(batches)):
        batch = batches[i]
        for row in range(3):
            for segment in range(1, batch['segment_ids'][row].max() + 1):
                inside = batch['segment_ids'][row] == segment
                targets = batch['targets'][row][inside]
                weights = batch['loss_weights'][row][inside]
                # The last input of a conversation has no target in it.
                assert weights[-1] == 0
                got[(*targets[weights > 0],)] += 1
                total += int(weights.sum())
                assert batch['positions'][row][inside].tolist() == list(range(inside.sum()))
    for one in talks:
        out = chat.render(template, one.messages, tok)
        want[tuple(i for i, w in zip(out.ids, out.loss_weights, strict=True) if w)] += 1
    assert got == want
    assert total == batches.num_targets == int(found.train.weights.sum())


def test_what_is_cut_has_no_end_and_what_is_left_empty_is_rejected(tmp_path):
    short, long = talk(0), Conversation('1', 'mine.jsonl:2', (
        {'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'y' * 300}))
    hopeless = Conversation('2', 'mine.jsonl:3', (
        {'role': 'user', 'content': 'x' * 300}, {'role': 'assistant', 'content': 'y'}))
    found, tok, rejects, counts = store(tmp_path / 's', [short, long, hopeless], seq_len=100)
    assert found.train.num_documents == 2 and counts['cut'] == 1
    end = tok.special['<|im_end|>']
    ids, weights = (x[found.train.offsets[1]:] for x in (found.train.tokens, found.train.weights))
    assert len(ids) == 101
    learned_ends = [token for token, w in zip(ids, weights, strict=True) if w and token == end]
    assert learned_ends == [] and weights[-1] == 1
    assert rejects.describe('mine') == (
        '1 of 0 records rejected (mine.jsonl:3: prompt too long: 323 tokens, and no answer begins '
        'within seq_len=100)')


def test_equal_conversations_are_on_one_side(tmp_path):
    talks = [talk(i % 20) for i in range(60)]
    found, *_ = store(tmp_path / 's', talks, share=0.3)
    sides = [{split.describe(i)['origin'] for i in range(split.num_documents)}
             for split in (found.train, found.validation)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert sum(s.num_documents for s in (found.train, found.validation)) == 60


def test_conversations_and_text_in_one_mixture(tmp_path):
    """Replay: text beside conversations, of which every token is learned."""
    found, tok, *_ = store(tmp_path / 's', [talk(i) for i in range(30)])
    texts = [chat_free for chat_free in (f'some plain text number {i} ' * 4 for i in range(40))]

    class Doc:
        def __init__(self, text, i):
            self.text, self.id, self.source, self.license, self.origin = text, str(i), 't', '', ''
    write_store([Doc(text, i) for i, text in enumerate(texts)], tok, tmp_path / 't',
                holdout_share=0.0, source_fingerprint='t')
    text = TokenStore.open(tmp_path / 't')
    assert text.train.weights is None
    data = PackedData([('chat', found.train, 0.75), ('text', text.train, 0.25)], seq_len=200,
                      batch_size=8, seed=0)
    assert data.shares == {'chat': 0.75, 'text': 0.25}
    batch = data(0)
    share = batch['loss_weights'].sum(1) / (batch['segment_ids'] > 0).sum(1)
    assert (share > 0.9).sum() == 2 and (share < 0.6).sum() == 6


def test_conversations_cannot_be_infilled(tmp_path):
    found, *_ = store(tmp_path / 's', [talk(i) for i in range(30)])
    with pytest.raises(InputError, match='cannot be infilled'):
        PackedData([('chat', found.train, 1.0)], seq_len=200, batch_size=2, seed=0,
                   infill=InfillConfig(kind='fim', rate=0.5, spm_rate=0.5, corruption=0.15,
                                       mean_span=3.0))
