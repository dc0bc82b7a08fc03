"""What is read from free answers."""

import pytest

from jaxllm.data import tokenizer as tokenizers
from jaxllm.evals import answers


@pytest.mark.parametrize('text, value, want', [
    ('Glazier.', 'glazier', True),
    (' the  glazier, I think', 'glazier', True),
    ('a glazier', 'the Glazier', True),
    ('glaziers', 'glazier', False),
    ('She is a glazier', 'glazier', False),
    ('Vining Post reports it', 'Vining Post', True),
    ('Café Rouge!', 'cafe rouge', True),
    ('', 'glazier', False),
    ('anything', '', False),
])
def test_what_an_answer_says(text, value, want):
    assert answers.says(text, value) is want


def test_the_confidence_is_that_of_the_first_phrase():
    tokenizer = tokenizers.byte_tokenizer()
    text = ' Baker. She'
    # Half for each byte of ' Baker', nothing for what follows.
    answer = answers._answer(tokenizer, tokenizer.encode(text),
                             [-0.6931471805599453] * 6 + [-50.0] * 5, text, chat=False)
    assert (answer.text, answer.value) == ('Baker. She', 'Baker')
    assert answer.confidence == pytest.approx(2 ** -6)


def test_an_empty_answer_has_no_value():
    tokenizer = tokenizers.byte_tokenizer()
    answer = answers._answer(tokenizer, [tokenizer.eos_id], [-0.5], '', chat=False)
    assert (answer.text, answer.value) == ('', '')
