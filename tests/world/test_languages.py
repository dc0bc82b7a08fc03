"""Arithmetic modulo 97, the stack language, the cipher language: exact, deterministic, no leak."""

import collections
import types

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.world import cipher, languages, stack


def small_world(seed=0, scale='nano'):
    return types.SimpleNamespace(spec=types.SimpleNamespace(seed=seed, scale=scale))


@pytest.fixture(scope='module')
def rows():
    return list(languages.rows(small_world()))


@pytest.fixture(scope='module')
def other():
    return list(languages.rows(small_world(seed=1)))


# Worked by hand; the stack is written bottom first.
@pytest.mark.parametrize('program, output', [
    ('2 3 add', '5'), ('3 2 sub', '1'), ('2 3 sub', '99'), ('12 12 mul', '44'), ('99 1 add', '0'),
    ('234', '34'),
    ('5 dup', '5 5'), ('5 6 swap', '6 5'), ('5 6 over', '5 6 5'), ('5 6 drop', '5'),
    ('1 drop', 'empty'), ('', 'empty'), ('1 3 times [ 2 mul ]', '8'), ('7 0 times [ drop ]', '7'),
    ('1 2 times [ 2 times [ 2 mul ] ]', '16'), ('2 3 2 times [ swap over add ] add', '13'),
])
def test_stack_programs(program, output):
    assert stack.output(program) == output


@pytest.mark.parametrize('program, said', [
    ('add', 'add found 0 numbers'), ('1 mul', 'found 1'), ('1 two', "unknown word 'two'"),
    ('1 2 times 3', 'times has no ['), ('1 [ dup ]', 'without times'), ('2 times [ 1', 'never'),
    ('1 ]', 'has no ['), ('9 99 times [ 99 times [ dup mul ] ]', 'steps'), ('-1', 'unknown word'),
])
def test_wrong_stack_programs_are_explained(program, said):
    with pytest.raises(InputError) as error:
        stack.run(program)
    assert said in str(error.value)


@pytest.mark.parametrize('problem, value', [
    ('96 + 2', 1), ('3 - 5', 95), ('50 * 2', 3), ('(90 + 10) * 2', 6), ('(1 - 2) - (3 * 4)', 84),
])
def test_sums(problem, value):
    assert languages.arithmetic(problem)[0] == value


def test_sums_share_a_key_only_where_order_does_not_matter():
    key = lambda problem: languages.arithmetic(problem)[1]
    assert key('(3 + 5) * 2') == key('2 * (5 + 3)')
    assert key('3 - 5') != key('5 - 3')
    assert key('3 + 5') != key('3 * 5')


@pytest.mark.parametrize('problem', ['2 ** 3', '1 / 2', 'x + 1', '1 +', '1.5 + 2', 'True + 1', ''])
def test_what_is_no_sum_is_refused(problem):
    with pytest.raises(InputError, match='is not a sum'):
        languages.arithmetic(problem)


def test_cipher_maps_words_and_puts_the_verb_last():
    words = {'the': 'tsa', 'girl': 'zhu', 'finds': 'svim', 'a': 'khe', 'boat': 'vro'}
    assert cipher.translate('The girl finds a boat.', words) == 'Tsa zhu khe vro svim.'
    assert cipher.translate('Mara Venn finds the boat.', words) == 'Mara Venn tsa vro svim.'
    with pytest.raises(InputError, match="no word for 'ship'"):
        cipher.translate('The girl finds a ship.', words)
    with pytest.raises(InputError, match='got 0 verbs'):
        cipher.translate('The girl.', words)


def test_the_lexicon_is_one_to_one_and_extra_words_move_nothing():
    plain, more = cipher.lexicon(3), cipher.lexicon(3, ('glazier', 'bird watching', 'the'))
    assert len(set(more.values())) == len(more)
    assert set(more) - set(plain) == {'glazier', 'bird', 'watching'}
    assert all(more[word] == translation for word, translation in plain.items())
    assert not set(more) & set(more.values())
    assert cipher.lexicon(4) != plain


def test_fields_ids_and_texts(rows):
    kinds = {'str': str, 'int': int}
    for row in rows:
        assert row.keys() == languages.FIELDS.keys()
        assert all(type(row[name]) is kinds[kind] for name, kind in languages.FIELDS.items())
        assert row['text'] == f'{row["prompt"]} {row["answer"]}' and row['prompt'][-1] != ' '
    assert len({row['id'] for row in rows}) == len(rows)
    splits = collections.Counter((row['language'], row['level'], row['split']) for row in rows)
    for language in languages.LANGUAGES:
        for level in languages.LEVELS:      # three standard errors of a tenth of 1,200
            assert 0.074 < splits[language, level, 'test'] / 1200 < 0.126
            assert 0.074 < splits[language, level, 'validation'] / 1200 < 0.126
    assert {(row['language'], row['level']) for row in rows} == {
        (language, level) for language in languages.LANGUAGES for level in languages.LEVELS}


def test_answers_follow_from_the_prompt_alone(rows):
    """Read each prompt another way: eval of a sum, the interpreter, a dictionary."""
    words = cipher.lexicon(0)
    english = {translation: word for word, translation in words.items()}
    verbs = {words[verb] for verb in cipher.VERBS}
    for row in rows[::7]:
        if row['language'] == 'arithmetic':
            text = row['prompt'].removeprefix('Modulo 97: ').removesuffix(' =')
            assert set(text) <= set('0123456789+-*() ')
            assert int(row['answer']) == int(np.mod(eval(text), 97))  # noqa: S307
        elif row['language'] == 'stack':
            program = row['prompt'].split('\n')[0].removeprefix('Program: ')
            assert row['answer'] == ' '.join(map(str, stack.run(program)))
        else:
            source, target = row['prompt'].split('\n')[0].split(': ')[1], row['answer']
            tavic, plain = (target, source) if row['direction'] == 'to' else (source, target)
            back = [english[word] for word in tavic[:-1].lower().split()]
            assert tavic[:-1].split()[-1] in verbs
            assert sorted(back) == sorted(plain[:-1].lower().split())
            assert [word for word in plain[:-1].lower().split() if word != back[-1]] == back[:-1]


def test_no_test_problem_is_in_training_for_any_seed(rows, other):
    def keys(found, split):
        return {(row['language'], languages.arithmetic(row['problem'])[1]
                 if row['language'] == 'arithmetic' else row['problem'])
                for row in found if row['split'] == split}

    train = keys(rows, 'train') | keys(other, 'train')
    test = keys(rows, 'test') | keys(other, 'test')
    assert len(test) > 800 and not train & test
    assert not (keys(rows, 'validation') | keys(other, 'validation')) & (train | test)


def test_deterministic_and_seeds_differ(rows, other):
    again = list(languages.rows(small_world()))
    assert again == rows
    assert sum(a['prompt'] == b['prompt'] for a, b in zip(other, rows)) < len(rows) / 20


def test_the_checker_is_exact(rows):
    row = {'answer': '16 96'}
    good = ('16 96', ' 16  96 \n', '16 96.', '\n16 96\nand more')
    bad = ('16 97', '1696', '', '16 96 1', '96 16', 'It is 16 96')
    assert all(languages.check(row, text) for text in good)
    assert not any(languages.check(row, text) for text in bad)
    assert all(languages.check(row, row['answer']) for row in rows)
    a_sentence = next(row for row in rows if row['language'] == 'cipher')
    assert not languages.check(a_sentence, a_sentence['answer'].lower())


def test_unknown_language_is_refused():
    with pytest.raises(InputError, match='expected one of'):
        languages.solve('latin', 'amo')
