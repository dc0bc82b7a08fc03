"""What a model thinks of given answers, and what it answers."""

import jax
import numpy as np
import pytest
import toy_models

from jaxllm.data import chat, tokenizer
from jaxllm.data.conversations import Conversation
from jaxllm.evals.finetune import choose, compare, metrics
from jaxllm.evals.finetune.asked import Asked, Reply, likelihood, replies
from jaxllm.models import transformer
from jaxllm.sharding import make_mesh


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        yield


@pytest.fixture
def asked():
    cfg, tok = toy_models.config('llama', vocab_size=288), tokenizer.byte_tokenizer()
    template = chat.load_template('chatml_bos')
    return Asked(toy_models.params(cfg), cfg, tok, template, chat.stop_ids(template, tok), 120)


def talk(user, answer):
    return ({'role': 'user', 'content': user}, {'role': 'assistant', 'content': answer})


def test_likelihood_is_that_of_the_learned_tokens(asked):
    talks = [talk('q', 'a'), talk('what is it', 'é then'), talk('x', 'y' * 200)]
    seen = likelihood(asked, talks)
    for i, messages in enumerate(talks):
        out = chat.render(asked.template, messages, asked.tokenizer)
        ids, weights = out.ids[:121], out.loss_weights[:121]
        logits = transformer.apply(asked.params, asked.cfg, np.array([ids[:-1]], np.int32))[0]
        logprobs = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids) - 1), ids[1:]]
        weight = np.array(weights[1:])
        np.testing.assert_allclose(seen.nll[i], -(logprobs * weight).sum(), rtol=1e-5)
        assert seen.tokens[i] == weight.sum()
    assert seen.bytes.tolist() == [1, len('é then'.encode()), seen.tokens[2]]
    alone = likelihood(asked, talks[1:2])
    np.testing.assert_allclose(alone.nll[0], seen.nll[1], rtol=1e-5)


def test_replies_end_at_the_stop_token(asked):
    """With logits of the end token alone every answer is empty and has stopped."""
    params = jax.tree.map(np.asarray, asked.params)
    found = replies(asked, [talk('q', 'a')[:1], talk('r' * 300, 'a')[:1]], max_new_tokens=5)
    assert len(found) == 2 and all(0 < x.confidence <= 1 for x in found)
    # A final norm whose output always points to the end token's embedding.
    end = asked.stop_ids[0]
    tokens = np.zeros_like(params['embed']['tokens'])
    tokens[:, 0], tokens[end, 0] = 1.0, 9.0
    stopping = asked.__class__(params | {'embed': {'tokens': tokens}}, *[
        getattr(asked, name) for name in ('cfg', 'tokenizer', 'template', 'stop_ids', 'context')])
    reply, = replies(stopping, [talk('q', 'a')[:1]], max_new_tokens=5)
    assert reply.text == '' and reply.stopped


def test_everything_that_is_asked(asked):
    records = [Conversation(str(i), f'f:{i}', talk(
        f'question {i}', f'an answer of more than six words {i}'), ('worse',) if i % 2 else ())
        for i in range(4)]
    plan = compare.Plan(max_new_tokens=4, max_prompts=3, max_probes=2, seeds=2, seed_prompts=2)
    shape = metrics.shape_of([x.answer for x in records])
    found = compare.ask(asked, records, records[:2], ['some text'], plan, 'text', shape)
    assert len(found['nll']) == 4 and len(found['train_nll']) == 2
    assert len(found['answers']) == 3 and len(found['preferred']) == 2
    assert found['memorised'] == [0.0, 0.0]
    assert {len(found[kind]) for kind in ('format', 'fact', 'unknown')} == {2}
    rows = compare.compare(found, found, draws=50)
    assert rows.keys() == compare.MEASURED.keys()
    assert all(row['difference'] == 0 for row in rows.values())
    assert np.isfinite(compare.gap(found))


def test_what_is_written_word_for_word_is_learned_by_heart(asked, monkeypatch):
    records = [Conversation(str(i), f'f:{i}', talk('q', answer)) for i, answer in enumerate((
        'One two three four five six seven.', 'Ant bee cat dog eel fox.', 'too short'))]
    said = iter([[Reply('one two three four five six', True, 1.0),
                  Reply('ant bee cat', True, 1.0)]])
    monkeypatch.setattr(compare, 'replies', lambda *args, **options: next(said))
    assert compare._memorised(asked, records, compare.Plan()) == [1.0, 0.0]


def test_a_candidate_is_measured_in_bits_per_byte(asked):
    records = [Conversation('0', 'f:1', talk('q', 'answer'))] * 3
    row = choose.candidate(asked, 'toy', records, 'text', max_new_tokens=3)
    seen = likelihood(asked, [records[0].messages])
    np.testing.assert_allclose(row['bits_per_byte'], seen.nll[0] / np.log(2) / seen.bytes[0],
                               rtol=1e-5)
    assert row['parameters'] == transformer.num_params(asked.params)
