"""Verifiers: what counts and what only nearly does; fuzzed."""

import itertools
import json
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.errors import InputError
from jaxllm.rl import verifiers
from jaxllm.rl.rewards import Answered
from jaxllm.rl.verifiers import numbers
from jaxllm.world import atlas, instructions

fuzzed = settings(max_examples=60, deadline=None)


def record(response, tokens=5, finished=True, **fields):
    return Answered(({'role': 'user', 'content': 'q'},), response, tokens, finished, fields)


def one(function, config, response, **fields):
    value, = function([record(response, **fields)], config)
    assert type(value) is float
    return value


# ------------------------------------------------------------------ exact match

@pytest.mark.parametrize('response, answer, config, right', [
    (' Tarn.\n', 'tarn', {}, 1), ('ＴＡＲＮ', 'Tarn', {}, 1), ('St.  Orme', 'st. orme', {}, 1),
    ('in Tarn', 'Tarn', {}, 0), ('', 'Tarn', {}, 0), ('.', '.', {}, 1), ('Tarn!', 'Tarn', {}, 0),
    ('Tarn.', 'Tarn', dict(strict=True), 0), ('\tTarn ', 'Tarn', dict(strict=True), 1),
    ('tarn', 'Tarn', dict(strict=True), 0),
    ('She lives in Tarn, I think.', 'tarn', dict(where='inside'), 1),
    ('She lives in Tarnow.', 'Tarn', dict(where='inside'), 0),
    ('C++ it is', 'c++', dict(where='inside'), 1),
    ('Orme', ['Tarn', 'Orme'], {}, 1), ('7', 7, {}, 1)])
def test_exact_match(response, answer, config, right):
    assert one(verifiers.exact_match, verifiers.ExactMatch(**config), response,
               answer=answer) == right


@fuzzed
@given(st.text(min_size=1).filter(str.strip), st.booleans())
def test_what_is_right_matches_itself(text, strict):
    for where in ('whole', 'inside'):
        config = verifiers.ExactMatch(where=where, strict=strict)
        assert one(verifiers.exact_match, config, f' {text}\n', answer=text) == 1


def test_records_without_an_answer_are_named():
    with pytest.raises(InputError, match="no field 'answer'; its fields are city"):
        one(verifiers.exact_match, verifiers.ExactMatch(), 'x', city='Tarn')
    for empty in ('', ' ', [], [''], None):
        with pytest.raises(InputError, match="'answer' of a record is empty"):
            one(verifiers.exact_match, verifiers.ExactMatch(), 'x', answer=empty)


# ------------------------------------------------------------------ numbers

@pytest.mark.parametrize('text, found', [
    ('The answer is 12.', [12]), ('1,234.5 m', ['2469/2']), ('-3', [-3]), ('x=-3', [-3]),
    ('5 - 3', [5, -3]), ('(\u22127)', [-7]), ('.5 and 0.50', ['1/2', '1/2']), ('2/3', ['2/3']),
    ('1 1/2', ['3/2']), ('-1 1/2', ['-3/2']), ('50%', ['1/2']), ('6e-3', ['3/500']),
    ('$5', [5]), ('-$5', [-5]), ('1, 2, 3', [1, 2, 3]), ('1,000,000', [1000000]), ('0042', [42]),
    (r'\frac{3}{4}', ['3/4']), (r'-\dfrac{3}{4}', ['-3/4']), (r'12\%', ['3/25']), ('12!', [12]),
    (r'1\,000', [1000]), ('3\n4', [3, 4]), ('1 / 4', ['1/4']), ('"7"', [7]), ('7/', [7]),
    # No numbers: parts of words, versions, dates, ranges, lists without spaces, 1/0, too long.
    ('v2 a3 4b', []), ('1.2.3', []), ('3/4/2020', []), ('2024-05-06', []), ('10-3', []),
    ('12,34', []), ('1,2,3', []), ('1/0', []), ('9' * 101, []), ('1e9999', []), ('', []),
    ('-', []), ('. , /', []), ('nan inf', [])])
def test_numbers_in_a_text(text, found):
    assert numbers.numbers_in(text) == [Fraction(value) for value in found]


@pytest.mark.parametrize('text, where, found', [
    ('2 + 2 = 4', 'last', 4), ('2 + 2 = 4', 'only', None), ('It is 4, yes 4.0', 'only', 4),
    (r'2 so \boxed{4} or 5', 'boxed', 4), (r'\boxed{1} \boxed{\frac{1}{2}}', 'boxed', '1/2'),
    (r'\boxed{4', 'boxed', None), (r'\boxed{1} \boxed{4', 'boxed', 1), ('4', 'boxed', None),
    (r'\boxed{3 or 4}', 'boxed', None), ('none', 'last', None)])
def test_which_number_counts(text, where, found):
    assert numbers.read_number(text, where) == (None if found is None else Fraction(found))


@pytest.mark.parametrize('response, answer, config, right', [
    ('So 1/2', '0.5', {}, 1), ('1,000', 1000, {}, 1), ('3', '4', {}, 0), ('three', '3', {}, 0),
    ('0.3333', '1/3', {}, 0), ('0.3333', '1/3', dict(absolute=1e-3), 1),
    ('102', '100', dict(relative=0.02), 1), ('103', '100', dict(relative=0.02), 0),
    ('-98', '-100', dict(relative=0.02), 1), ('5', ['4', '5'], {}, 1),
    ('0.1', 0.1, {}, 1)])
def test_number(response, answer, config, right):
    assert one(verifiers.number, verifiers.Number(**config), response, answer=answer) == right


def test_an_answer_that_is_no_number_is_named():
    with pytest.raises(InputError, match="'Tarn', which is not one number"):
        one(verifiers.number, verifiers.Number(), '5', answer='Tarn')


@fuzzed
@given(st.integers(-10 ** 12, 10 ** 12), st.integers(1, 10 ** 6), st.integers(0, 6))
def test_numbers_are_read_back(top, bottom, places):
    for text, value in ((f'{top}', Fraction(top)), (f'{top:,}', Fraction(top)),
                        (f'{top}/{bottom}', Fraction(top, bottom)),
                        (f'{top / 8:.{places}f}', Fraction(f'{top / 8:.{places}f}'))):
        assert numbers.numbers_in(f'It is {text}.') == [value], text


@fuzzed
@given(st.text(alphabet='0123456789.,/-eE% $\\{}bx\u2212\u0663', max_size=40))
def test_reading_numbers_never_fails(text):
    for where in ('last', 'only', 'boxed'):
        found = numbers.read_number(text, where)
        assert found is None or isinstance(found, Fraction)


def test_reading_numbers_is_fast():
    start = time.monotonic()
    for text in ('1' * 10 ** 5, '1,' * 10 ** 5, '1 ' * 10 ** 4, '1,111' * 10 ** 4, '-' * 10 ** 5,
                 '1/' * 10 ** 5, '1.' * 10 ** 5, '\\boxed{' * 300):
        numbers.read_number(text)
        numbers.read_number(text, 'boxed')
    assert time.monotonic() - start < 5


# ------------------------------------------------------------------ regular expressions

@pytest.mark.parametrize('config, response, found', [
    (dict(pattern='[0-9]{3}'), 'call 123 now', 1), (dict(pattern='[0-9]{3}'), 'call 12', 0),
    (dict(pattern='[0-9]+', where='fullmatch'), ' 123\n', 1),
    (dict(pattern='[0-9]+', where='fullmatch'), '123 x', 0),
    (dict(pattern='sorry', ignore_case=True, wanted=False), 'Sorry!', 0),
    (dict(pattern='sorry', wanted=False), 'Sorry!', 1),
    (dict(pattern='a.b', where='fullmatch', dot_all=True), 'a\nb', 1),
    (dict(pattern='a.b', where='fullmatch'), 'a\nb', 0),
    (dict(pattern='^b$', multi_line=True), 'a\nb', 1), (dict(pattern='^b$'), 'a\nb', 0)])
def test_regex(config, response, found):
    assert one(verifiers.regex, verifiers.Regex(**config), response) == found


# ------------------------------------------------------------------ JSON

SCHEMA = {'type': 'object', 'required': ['name', 'age'], 'additionalProperties': False,
          'properties': {'name': {'type': 'string'}, 'age': {'$ref': '#/$defs/age'},
                         'kind': {'enum': ['a', 'b']}},
          '$defs': {'age': {'type': 'integer', 'minimum': 0}}}


@pytest.mark.parametrize('response, valid', [
    ('{"name": "Mara", "age": 3}', 1), (' \n{"name": "Mara", "age": 3, "kind": "b"}\n', 1),
    ('```json\n{"name": "Mara", "age": 3}\n```', 1), ('Here:\n```\n{"name": "", "age": 0}\n```', 1),
    ('{"name": "Mara", "age": -3}', 0), ('{"name": "Mara"}', 0), ('{"name": "Mara", "age": 3', 0),
    ('{"name": "Mara", "age": 3, "kind": "c"}', 0), ('{"name": "Mara", "age": 3} yes', 0),
    ('{"name": "Mara", "age": NaN}', 0), ('{"name": "a", "name": "b", "age": 3}', 0),
    ("{'name': 'Mara', 'age': 3}", 0), ('', 0), ('[' * 10 ** 5, 0), ('9' * 10 ** 4, 0),
    ('```\n{}\n```\n```\n{}\n```', 0)])
def test_json_schema(response, valid):
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        assert one(verifiers.json_schema, verifiers.JsonSchema(schema), response) == valid
    assert one(verifiers.json_schema, verifiers.JsonSchema(field='schema'), response,
               schema=SCHEMA) == valid


@pytest.mark.parametrize('text', ['NaN', '[Infinity]', '-Infinity', '{"a": 1, "a": 1}'])
def test_what_python_reads_and_json_forbids(text):
    assert one(verifiers.json_schema, verifiers.JsonSchema('{}'), text) == 0


def test_unfenced_json_only():
    config = verifiers.JsonSchema(SCHEMA, fenced=False)
    assert one(verifiers.json_schema, config, '```json\n{"name": "Mara", "age": 3}\n```') == 0


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text()
                           | st.floats(allow_nan=False, allow_infinity=False),
                           lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                           max_leaves=8)


@fuzzed
@given(json_values, st.integers(0, 9))
def test_json_is_json(value, cut):
    anything = verifiers.JsonSchema('{}')
    text = json.dumps(value)
    assert one(verifiers.json_schema, anything, text) == 1
    assert one(verifiers.json_schema, anything, f'{text} and more') == 0
    same = verifiers.JsonSchema(json.dumps({'const': value}))
    assert one(verifiers.json_schema, same, text) == 1
    if isinstance(value, (list, dict, str)):
        assert one(verifiers.json_schema, anything, text[:-1 - cut % len(text)]) in (0, 1)


# ------------------------------------------------------------------ length and repetition

@pytest.mark.parametrize('config, response, tokens, reward', [
    (dict(maximum=3), 'a b c', 9, 1), (dict(maximum=3), 'a b c d', 1, 0),
    (dict(minimum=2, maximum=3), 'a', 1, 0), (dict(minimum=2), 'a  b\nc d e', 1, 1),
    (dict(target=4, width=4), 'a b c d', 1, 1), (dict(target=4, width=4), 'a b c', 1, 0.75),
    (dict(target=4, width=4), 'a b c d e f', 1, 0.5), (dict(target=4, width=4), 'a ' * 9, 1, 0),
    (dict(target=4, width=4, maximum=5), 'a b c d e f', 1, 0),
    (dict(target=4, width=8, unit='tokens'), 'a', 6, 0.75), (dict(maximum=0, minimum=1), '', 1, 0),
    (dict(maximum=2, unit='characters'), 'ab', 9, 1)])
def test_length(config, response, tokens, reward):
    value, = verifiers.length([record(response, tokens)], verifiers.Length(**config))
    assert value == reward and type(value) is float


@pytest.mark.parametrize('tokens, finished, reward', [
    (6, True, 0), (7, True, -0.25), (10, True, -1), (99, True, -1), (1, False, -0.5),
    (10, False, -1)])
def test_overlong(tokens, finished, reward):
    config = verifiers.Overlong(maximum=10, window=4, unfinished=0.5)
    value, = verifiers.overlong([record('x', tokens, finished)], config)
    assert value == reward and type(value) is float


@pytest.mark.parametrize('text, n, share', [
    ('', 3, 0), ('a b', 3, 0), ('a b c d', 3, 0), ('a a a a a', 1, 0.8), ('a a a a a', 3, 2 / 3),
    ('a b a b a b', 2, 0.6), ('x y z x y z', 3, 0.25)])
def test_repetition(text, n, share):
    assert verifiers.repetition_share(text.split(), n) == pytest.approx(share)
    assert one(verifiers.repetition, verifiers.Repetition(n), text) == pytest.approx(-share)
    spared = one(verifiers.repetition, verifiers.Repetition(n, allowed=0.5), text)
    assert spared == pytest.approx(-max(0, share - 0.5) / 0.5)


@fuzzed
@given(st.lists(st.integers(0, 3)), st.integers(1, 4))
def test_repetition_is_a_share(items, n):
    share = verifiers.repetition_share(items, n)
    assert 0 <= share < 1
    assert verifiers.repetition_share(items + items + items, n) >= share
    assert verifiers.repetition_share(list(range(20)), n) == 0


# ------------------------------------------------------------------ formats of the world

def test_formats_are_followed():
    config = verifiers.FollowsFormat(facts={'bullets': {'count': 3}}, sources='sources')
    cases = [('one_word', 'glazier', 1), ('one_word', 'a glazier', 0), ('bullets', '- a\n- b', 0),
             ('bullets', '- a\n- b\n- c', 1), ('sentence', 'She lives in Tarn.', 1),
             ('with_source', 'She lives in Tarn (source: The Post).', 1),
             ('with_source', 'She lives in Tarn (source: The Sun).', 0), ('refuse', 'No idea', 1)]
    got = verifiers.follows_format([record(text, format=form, sources=['The Post'])
                                    for form, text, _ in cases], config)
    assert got == [float(follows) for *_, follows in cases]


def test_the_value_can_be_asked_for_as_well():
    config = verifiers.FollowsFormat(answer='answer')
    assert one(verifiers.follows_format, config, 'She lives in Tarn.', format='sentence',
               answer='Tarn') == 1
    assert one(verifiers.follows_format, config, 'She lives in Orme.', format='sentence',
               answer='Tarn') == 0
    assert one(verifiers.follows_format, config, '- Job: baker\n- City: Tarn', format='bullets',
               answer='baker; Tarn') == 1
    assert one(verifiers.follows_format, config, '- Job: baker\n- City: Orme', format='bullets',
               answer='baker; Tarn') == 0
    assert one(verifiers.follows_format, config, 'I do not know.', format='refuse', answer='') == 1


def test_ideal_responses_of_a_world_follow_their_formats():
    """With the facts of the world, the cipher language's words among them."""
    config = verifiers.FollowsFormat(world_scale='nano', world_seed=3)
    valued = verifiers.FollowsFormat(world_scale='nano', world_seed=3, answer='answer')
    found, valuable, wrong = [], [], []
    for row in itertools.islice(instructions.rows(atlas.atlas(3, 'nano')), 2000):
        # A sentence in the cipher language has another word for the value.
        if row['quality'] == 'gold':
            found.append(record(**row))
            valuable += [found[-1]] * (row['format'] != 'translate')
        elif row['quality'] == 'misformatted':
            wrong.append(record(**row))
    assert {each.fields['format'] for each in found} == set(instructions.ASKS) | {'refuse'}
    assert set(verifiers.follows_format(found, config)) == {1.0}
    assert set(verifiers.follows_format(valuable, valued)) == {1.0}
    assert set(verifiers.follows_format(wrong, config)) == {0.0}


# ------------------------------------------------------------------ programs

TESTS = ['assert f(2) == 4', 'assert f(-3) == 9', 'assert f(0) == 0']


@pytest.mark.parametrize('program, share', [
    ('def f(x): return x * x', 1), ('So:\n```python\ndef f(x):\n    return x * x\n```\nDone.', 1),
    ('```\nold\n```\n```py\ndef f(x): return x ** 2', 1), ('def f(x): return x + 2', 1 / 3),
    ('def f(x): return x * x\nprint("noise" * 9)', 1), ('def f(x):', 0), ('', 0), ('f = 3', 0),
    ('import os; os._exit(0)', 0), ('raise SystemExit(0)', 0), ('while True: pass', 0),
    ('def f(x):\n    if x < 0: import os; os._exit(0)\n    return x * x', 1 / 3),
    ('def f(x):\n    while x < 0: pass\n    return x * x', 1 / 3)])
def test_unit_tests(program, share):
    config = verifiers.UnitTests(share=True, timeout_s=1.5)
    assert one(verifiers.unit_tests, config, program, tests=TESTS) == pytest.approx(share)


def test_all_tests_or_none_and_several_programs():
    config = verifiers.UnitTests(setup='setup')
    records = [record('def f(x): return x * k', tests=TESTS[:1], setup='k = 2'),
               record('def f(x): return x * k', tests=TESTS, setup='k = 2'),
               record('f = lambda x: x * x', tests='\n'.join(TESTS), setup='')]
    assert verifiers.unit_tests(records, config) == [1, 0, 1]
    for tests in ([], [''], [3], ''):
        with pytest.raises(InputError, match='expected one or several tests'):
            one(verifiers.unit_tests, verifiers.UnitTests(), 'f = 1', tests=tests)


# ------------------------------------------------------------------ all of them

@pytest.mark.parametrize('kind, values, said', [
    (verifiers.ExactMatch, dict(where='x'), 'where'), (verifiers.Number, dict(where='x'), 'where'),
    (verifiers.Number, dict(absolute=-1.0), 'absolute'),
    (verifiers.Regex, dict(pattern='('), 'no regular expression'),
    (verifiers.Regex, dict(pattern='a', where='match'), 'where'),
    (verifiers.JsonSchema, dict(), 'needs a schema'),
    (verifiers.JsonSchema, dict(schema={'type': 'objekt'}), 'no JSON schema'),
    (verifiers.JsonSchema, dict(schema='{'), 'no JSON schema'),
    (verifiers.JsonSchema, dict(schema={'$ref': 'https://example.org/x'}), 'nothing is fetched'),
    (verifiers.Length, dict(), 'neither'), (verifiers.Length, dict(target=3), 'width'),
    (verifiers.Length, dict(minimum=4, maximum=3), 'minimum'),
    (verifiers.Length, dict(minimum=4, unit='bytes'), 'unit'),
    (verifiers.Overlong, dict(maximum=4, window=5), 'window'),
    (verifiers.Repetition, dict(n=0), 'n >= 1'),
    (verifiers.FollowsFormat, dict(world_scale='huge'), 'nano'),
    (verifiers.FollowsFormat, dict(facts={'poem': {}}), 'poem'),
    (verifiers.FollowsFormat, dict(facts={'bullets': {'number': 3}}), 'does not take'),
    (verifiers.UnitTests, dict(timeout_s=0.0), 'timeout_s'),
    (verifiers.UnitTests, dict(parallel=0), 'parallel')])
def test_bad_settings_are_refused(kind, values, said):
    with pytest.raises(InputError, match=said):
        kind(**values)


@fuzzed
@given(st.lists(st.text(max_size=60), min_size=1, max_size=6), st.randoms())
def test_order_and_company_do_not_matter(texts, random):
    records = [record(text, tokens=len(text) + 1, answer='7', format='sentence') for text in texts]
    order = list(range(len(records)))
    random.shuffle(order)
    for function, config in (
            (verifiers.exact_match, verifiers.ExactMatch()),
            (verifiers.number, verifiers.Number()), (verifiers.regex, verifiers.Regex('[a-f]')),
            (verifiers.json_schema, verifiers.JsonSchema('{}')),
            (verifiers.length, verifiers.Length(target=5, width=3)),
            (verifiers.overlong, verifiers.Overlong(9, 4)),
            (verifiers.repetition, verifiers.Repetition(2)),
            (verifiers.follows_format, verifiers.FollowsFormat())):
        got = function(records, config)
        assert all(type(value) is float for value in got)
        assert function([records[i] for i in order], config) == [got[i] for i in order]
        assert [function([each], config)[0] for each in records] == got
