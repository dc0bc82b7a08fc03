"""Scores of candidates against the plain forward pass, one sequence at a time."""

import jax
import numpy as np
import pytest
import toy_models

from jaxllm.data import tokenizer as tokenizers
from jaxllm.errors import InputError
from jaxllm.evals import scoring
from jaxllm.models import transformer
from jaxllm.sharding import make_mesh

PROMPTS = ['Mara Venn works as:', 'A b', 'Mara Venn works as:', '']
CANDIDATES = [['glazier', 'bäker', 'bak'], ['x'], ['a much longer answer than these'], ['y', 'yy']]


class _Merging:
    """A tokenizer of characters that merges 'b ' into one token, over the end of a prompt."""
    bos_id = 1

    def encode(self, text):
        return [2 if c == '\0' else 3 + ord(c) % 38 for c in text.replace('b ', '\0')]

    def encode_batch(self, texts):
        return [np.asarray(self.encode(text), np.int32) for text in texts]


@pytest.fixture(scope='module')
def mesh():
    return make_mesh()


@pytest.fixture(scope='module')
def model(mesh):
    cfg = toy_models.config('gemma2', vocab_size=288)
    with jax.set_mesh(mesh):
        return toy_models.params(cfg), cfg


def _by_hand(model, tokenizer, prompt, candidate):
    """(log p of the whole, of what is behind the prompt, tokens behind it) from whole logits."""
    params, cfg = model
    ids = np.array([tokenizer.bos_id, *tokenizer.encode(f'{prompt} {candidate}')])
    head = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    shared = next((i for i, (a, b) in enumerate(zip(ids, head)) if a != b), len(head))
    padded = np.zeros((8, 64), np.int32)  # a row per device, one shape for all
    padded[:, :len(ids)] = ids[None]
    logits = np.asarray(_apply(params, cfg, padded))[0].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    each = [logprobs[i, ids[i + 1]] for i in range(len(ids) - 1)]
    return sum(each), sum(each[shared - 1:]), len(ids) - shared


_apply = jax.jit(transformer.apply, static_argnums=1)


@pytest.mark.parametrize('tokenizer', [tokenizers.byte_tokenizer(), _Merging()], ids=type)
@pytest.mark.parametrize('batch_size', [3])
def test_scores_are_those_of_the_plain_forward_pass(model, mesh, tokenizer, batch_size):
    with jax.set_mesh(mesh):
        scores = scoring.score_candidates(*model, tokenizer, PROMPTS, CANDIDATES,
                                          batch_size=batch_size)
        for prompt, some, got in zip(PROMPTS, CANDIDATES, scores, strict=True):
            want = [_by_hand(model, tokenizer, prompt, text) for text in some]
            np.testing.assert_allclose(got.full_logprob, [x[0] for x in want], rtol=2e-5)
            np.testing.assert_allclose(got.continuation_logprob, [x[1] for x in want], rtol=2e-5)
            assert got.num_tokens.tolist() == [x[2] for x in want]
            assert got.num_chars.tolist() == [len(text) for text in some]


def test_candidates_of_a_prompt_share_its_tokens(mesh):
    tokenizer = tokenizers.byte_tokenizer()
    (group,) = scoring._tokenize(tokenizer, ['ab'], [['cd', 'ce', 'c']])
    # BOS, a, b and the space; 'c' must keep a token of its own.
    assert len(group.prefix) == 4 and [len(rest) for rest in group.rests] == [2, 2, 1]


def test_learned_positions_end_somewhere(mesh):
    cfg = toy_models.config('gpt2', vocab_size=288, max_seq_len=8)
    with jax.set_mesh(mesh), pytest.raises(InputError, match='8 learned positions'):
        scoring.score_candidates(None, cfg, tokenizers.byte_tokenizer(), ['a prompt'], [['x']])
