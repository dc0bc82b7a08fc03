"""Faults planted at known lines are found there; clean data gives no warning."""

import json

import numpy as np
import pytest

from jaxllm.data.prepare import personal, similar
from jaxllm.data.prepare.findings import PrepareConfig
from jaxllm.data.prepare.prepare import prepare, text, write
from jaxllm.errors import InputError

_NAMES = ('harbour', 'garden', 'mountain', 'teapot', 'violin', 'lantern', 'bridge', 'orchard',
          'library', 'river', 'market', 'window', 'castle', 'meadow', 'compass', 'island')
_SAYS = ('It stands where two old roads meet and people come to it in spring.',
         'Nobody remembers who built it, but children like to play beside it.',
         'A small sign tells visitors how it was mended after the great storm.',
         'In winter it is quiet, and only the keeper walks there with a dog.')
_ASKS = ('what can you tell me about the {} near the {}', 'does anybody still visit {} or {} today',
         'please compare a {} with one ordinary {}', 'why would somebody paint the {} behind my {}',
         'how old must any {} be before its {} breaks', 'who cleans {} and {} when it rains')


def clean(count=48):
    """Different questions with different answers of one kind."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        name, other = _NAMES[i % 16], _NAMES[(i * 7 + i // 16 + 3) % 16]
        words = ' '.join(rng.permutation(_SAYS[i % 4].split()).tolist())
        asked = _ASKS[i % 6].format(name, other)
        rows.append({'prompt': f'{" ".join(rng.permutation(asked.split()))}, number {i}?',
                     'response': f'The {name} of {other}: {words}'})
    return rows


def save(path, rows):
    path.write_text(''.join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False))
                            + '\n' for row in rows))
    return path


def found(path, kind, **options):
    """Line numbers that findings of a kind name."""
    prepared = prepare(path, PrepareConfig(**options))
    return sorted(int(origin.rpartition(':')[2]) for finding in prepared.findings
                  if finding.kind == kind for origin in finding.origins)


def test_clean_data_has_no_warning(tmp_path):
    prepared = prepare(save(tmp_path / 'd.jsonl', clean()))
    assert [f.text for f in prepared.findings if f.severity != 'info'] == []
    assert prepared.counts == {'read': 48, 'usable': 48, 'train': 40, 'held_out': 8, 'dropped': 0,
                               'preferences': 0}


# What is put in place of line 31, and where the finding is.
PLANTED = {
    'unreadable': ('{"prompt": "x"', 31),
    'duplicate': (clean()[4] | {'prompt': clean()[4]['prompt'].upper()}, 31),
    'near_duplicate': (clean()[4] | {'response': clean()[4]['response'] + ' Yes.'}, 31),
    'contradiction': (clean()[4] | {'response': 'Quite another story about submarines and tea.'},
                      31),
    'language': ({'prompt': 'Was weißt du über den alten Hafen dieser Stadt?',
                  'response': 'Der Hafen wurde vor vielen Jahren gebaut, und im Frühling kommen '
                              'die Leute gerne dorthin.'}, 31),
    'length': (clean()[30] | {'response': 'word and another ' * 400}, 31),
    'damaged': (clean()[30] | {'response': 'The cafÃ© is open and the naÃ¯ve cook is in.'}, 31),
    'pii': (clean()[30] | {'response': 'Write to jane.doe@example.org, she knows all about it.'},
            31),
    'format': (clean()[30] | {'response': '{"name": "harbour"}'}, 31),
    'echo': (clean()[30] | {'response': clean()[30]['prompt']}, 31),
    'refusal': (clean()[30] | {'response': 'As an AI language model, I cannot talk about places.'},
                31),
}


@pytest.mark.parametrize('kind', PLANTED)
def test_a_planted_fault_is_found_at_its_line(kind, tmp_path):
    rows = clean()
    rows[30], line = PLANTED[kind]
    assert found(save(tmp_path / 'd.jsonl', rows), kind) == [line]


def test_cut_off_answers(tmp_path):
    rows = [row | {'response': row['response'] * 4 + ' End.'} for row in clean()]
    rows[30]['response'] = rows[30]['response'][:-6] + ' and'
    assert found(save(tmp_path / 'd.jsonl', rows), 'cut_off') == [31]


def test_labels(tmp_path):
    rows = [row | {'response': 'yes' if i % 12 else 'no'} for i, row in enumerate(clean(60))]
    prepared = prepare(save(tmp_path / 'd.jsonl', rows))
    said = [f for f in prepared.findings if f.kind == 'labels']
    assert said[0].severity == 'warning' and "'yes' 92%" in said[0].text


def test_what_a_held_out_record_asks_is_not_trained_on(tmp_path):
    rows = clean()
    held = save(tmp_path / 'held.jsonl', clean(60)[52:])
    rows[30] = {'prompt': clean(60)[55]['prompt'] + '?', 'response': 'Something else entirely.'}
    prepared = prepare(save(tmp_path / 'd.jsonl', rows), held_out_path=held)
    assert [f.origins for f in prepared.findings if f.kind == 'leakage'] == [
        (f'{tmp_path}/d.jsonl:31',)]
    assert (f'{tmp_path}/d.jsonl:31', 'leakage') in prepared.dropped
    assert len(prepared.held_out) == 8 and len(prepared.train) == 47


def test_nearly_equal_prompts_stay_on_one_side(tmp_path):
    rows = clean() + [row | {'prompt': row['prompt'] + ' Please!', 'response': 'No ' + row[
        'response']} for row in clean()]
    prepared = prepare(save(tmp_path / 'd.jsonl', rows))
    numbers = [{x.request.split('number ')[1].split('?')[0] for x in side}
               for side in (prepared.train, prepared.held_out)]
    assert numbers[0] and numbers[1] and not numbers[0] & numbers[1]


def test_the_split_does_not_depend_on_order(tmp_path):
    rows = clean()
    a = prepare(save(tmp_path / 'a.jsonl', rows))
    b = prepare(save(tmp_path / 'b.jsonl', rows[::-1]))
    assert {x.request for x in a.held_out} == {x.request for x in b.held_out}


@pytest.mark.parametrize('kind', ['near_duplicate', 'contradiction', 'pii', 'refusal'])
def test_more_is_dropped_when_asked(kind, tmp_path):
    rows = clean()
    rows[30] = PLANTED[kind][0]
    path = save(tmp_path / 'd.jsonl', rows)
    assert prepare(path).dropped == ()
    prepared = prepare(path, PrepareConfig(drop=(kind,)))
    assert prepared.dropped == ((f'{path}:31', kind),)
    assert prepared.counts['train'] + prepared.counts['held_out'] == 47


def test_masking(tmp_path):
    rows = clean()
    rows[30] = PLANTED['pii'][0]
    prepared = prepare(save(tmp_path / 'd.jsonl', rows), PrepareConfig(mask_pii=True))
    answers = [x.answer for x in (*prepared.train, *prepared.held_out)]
    assert 'Write to [EMAIL], she knows all about it.' in answers


def test_preferences_and_files(tmp_path):
    rows = [{'prompt': row['prompt'], 'chosen': row['response'], 'rejected': 'Go away.'}
            for row in clean()]
    prepared = prepare(save(tmp_path / 'd.jsonl', rows))
    assert prepared.counts['preferences'] == 48
    write(tmp_path / 'out', prepared)
    lines = (tmp_path / 'out' / 'train.jsonl').read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert len(kept) == 40 and kept[0]['rejected'] == ['Go away.']
    assert kept[0]['origin'].startswith(str(tmp_path / 'd.jsonl'))
    again = prepare(tmp_path / 'out' / 'train.jsonl')
    assert again.counts['read'] == 40
    assert '48 records read, 0 dropped' in text(prepared)


def test_tokens_beyond_the_context(tmp_path):
    path = save(tmp_path / 'd.jsonl', clean())
    prepared = prepare(path, count_tokens=lambda x: 700 if x.origin.endswith(':31') else 9,
                       context=512)
    assert [f.origins for f in prepared.findings if f.kind == 'too_long'] == [(f'{path}:31',)]


@pytest.mark.parametrize('content, parts', [
    ('', ['is empty']),
    ('{"prompt": "a", "response": "b"}\n', ['1 record(s)', 'at least 4']),
    ('{"a": 1}\n' * 9, ['d.jsonl:1', 'unknown format']),
    ('{"prompt": "a", "response": "b"}\n' * 9, ['1 usable records of 9', 'different ones']),
])
def test_files_that_cannot_be_learned_from(content, parts, tmp_path):
    (tmp_path / 'd.jsonl').write_text(content)
    with pytest.raises(InputError) as error:
        prepare(tmp_path / 'd.jsonl')
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize('text_, kinds', [
    ('mail a.b@c.de now', ['EMAIL']), ('no mail @ all', []),
    ('call +49 170 123 4567 today', ['PHONE']), ('the year 1999-2000 and 12 345', []),
    ('card 4111 1111 1111 1111', ['CARD']), ('card 4111 1111 1111 1112', []),
    ('to DE89 3704 0044 0532 0130 00', ['IBAN']), ('to DE88 3704 0044 0532 0130 00', []),
    ('at 8.8.8.8', ['IP']), ('at 192.168.0.1', []), ('version 1.2.3', []),
    ('key AKIAIOSFODNN7EXAMPLE', ['KEY']), ('sk-abcdefghijklmnopqrstuvwx', ['KEY']),
    ('-----BEGIN RSA PRIVATE KEY-----', ['KEY']),
])
def test_personal_data(text_, kinds):
    assert [kind for kind, *_ in personal.find(text_)] == kinds


def test_similarity_by_hand():
    a, b = similar.shingles('abcdefg'), similar.shingles('abcdefgh')
    assert similar.jaccard(a, b) == 3 / 4  # abcde bcdef cdefg | defgh
    texts = ['the quick brown fox jumps over it', 'The quick, brown fox jumps over it!',
             'something else entirely here']
    assert similar.near_pairs(texts, 0.8) == [(0, 1)]
    assert similar.groups(5, [(3, 4), (1, 3)]) == [0, 1, 2, 1, 1]
