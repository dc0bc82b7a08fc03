"""Tokenizers: lossless on any bytes, portable, deaf to typed special tokens, repeatable."""

import json
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tiktoken
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from jaxllm.data import fertility, stdlib, tokenizer, vocabulary
from jaxllm.data.records import Document
from jaxllm.errors import InputError

SPECIALS = len(tokenizer.SPECIAL_TOKENS)
ODD = [
    '', ' ', '\n', '\x00', 'a\x00b', '\ufeffbom', 'e\u0301\u0301',
    '\u200d\u200b\u2028\u0085\u00a0', '\U0001f469\u200d\U0001f4bb', '\ue000\U0010ffff',
    '日本語テキスト', 'مرحبا 123٤٥٦', "I'LL it's 'ſ 'ſd", '\r\n\r\n \r x',
    '\t\tif x:\n\t\t\treturn  1234567', 'ﬁne №5 ½ Ⅷ', '<|pad|><|eos|> <|im_start|>user',
    '\u180e\u3000\u1680', "''", '-' * 200, ' ' * 300 + 'x', 'a' * 300, '�￾']


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    builder = stdlib.prepare(tmp_path_factory.mktemp('stdlib'))
    return [row['text'].decode() for split in ('docstrings[:300]', 'topics', 'source[:40]')
            for row in builder.as_data_source(split)]


@pytest.fixture(scope='module')
def bpe(texts):
    return tokenizer.train_bpe(texts, 1500)


@pytest.fixture(scope='module')
def ours(texts, bpe):
    return {'bpe': bpe, 'byte': tokenizer.byte_tokenizer(),
            'char': tokenizer.char_tokenizer(texts[:50], 350)}


def reload_portable(tok, folder):
    """The saved file in the plain `tokenizers` package."""
    tok.save(folder)
    plain = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    plain.encode_special_tokens = True
    return plain


def random_text(rng):
    kinds = (lambda: chr(rng.randrange(128)), lambda: chr(rng.randrange(0x3000)),
             lambda: rng.choice(" \n\r\t'09aA-_"), lambda: chr(rng.randrange(0xe000, 0x110000)),
             lambda: rng.choice(tokenizer.SPECIAL_TOKENS))
    return ''.join(rng.choice(kinds)() for _ in range(rng.randrange(50)))


@pytest.mark.parametrize('kind', ['bpe', 'byte', 'char'])
def test_text_and_bytes_survive_a_round_trip(ours, kind):
    tok, rng = ours[kind], random.Random(0)
    for text in [*ODD, *(random_text(rng) for _ in range(500))]:
        ids = tok.encode(text)
        assert tok.decode(ids) == text
        assert all(SPECIALS <= i < tok.vocab_size for i in ids)
        assert tok.encode_bytes(text.encode()) == ids
    for raw in [bytes(range(256)), b'\xff', b'\xed\xa0\x80', 'é'.encode()[:1],
                *(rng.randbytes(rng.randrange(60)) for _ in range(500))]:
        assert tok.decode_bytes(tok.encode_bytes(raw)) == raw


@pytest.mark.parametrize('kind', ['bpe', 'byte', 'char'])
def test_the_saved_file_gives_the_same_ids_elsewhere(ours, kind, texts, tmp_path):
    tok, rng = ours[kind], random.Random(1)
    plain = reload_portable(tok, tmp_path)
    sample = [*ODD, *texts, *(random_text(rng) for _ in range(500))]
    assert len(texts) >= 300
    if kind == 'byte':
        sample = sample[:150]
    bulk = tok.encode_batch(sample)
    for text, ids in zip(sample, bulk, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == plain.encode(text, add_special_tokens=False).ids, repr(text[:80])
        assert plain.decode(ids.tolist(), skip_special_tokens=False) == text
    assert plain.get_vocab_size() == tok.vocab_size
    assert {name: plain.token_to_id(name) for name in tok.special} == tok.special


@pytest.mark.parametrize('probe', ['a{}', '1{}', '!{}', ' {}'])
def test_both_engines_agree_on_what_is_a_letter_a_digit_and_a_space(probe):
    """A piece is one token where the whole of it has a rank: shows where tiktoken cuts."""
    points = [*range(0x80, 0x3100), *range(0x3100, 0xd800, 97), *range(0xe000, 0x110000, 97)]
    pieces = [probe.format(chr(point)) for point in points]
    ranks = {bytes([b]): b for b in range(256)}
    ranks |= {piece.encode(): 256 + i for i, piece in enumerate(pieces)}
    one = tiktoken.Encoding('probe', pat_str=vocabulary.SPLIT_PATTERN, mergeable_ranks=ranks,
                            special_tokens={})
    other = pre_tokenizers.Split(tokenizers.Regex(vocabulary.SPLIT_PATTERN), behavior='isolated')
    differ = [piece for piece in pieces if (len(one.encode_ordinary(piece)) == 1)
              != (len(other.pre_tokenize_str(piece)) == 1)]
    assert differ == []


@pytest.mark.parametrize('kind', ['bpe', 'byte', 'char'])
def test_typed_special_tokens_stay_text(ours, kind):
    tok = ours[kind]
    for name in tok.special:
        for text in (name, f'x{name}', f'{name}\n{name} y'):
            assert not set(tok.encode(text)) & set(tok.special.values())
            assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize('kind', ['bpe', 'byte', 'char'])
def test_one_layout_of_ids_in_all_kinds(ours, kind):
    tok = ours[kind]
    assert [tok.special[name] for name in tokenizer.SPECIAL_TOKENS] == list(range(SPECIALS))
    assert (tok.pad_id, tok.bos_id, tok.eos_id) == (0, 1, 2)
    assert [tok.token_bytes(SPECIALS + b) for b in range(256)] == [bytes([b]) for b in range(256)]
    assert {'<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>', '<|im_start|>', '<|im_end|>',
            '<|mask_0|>', '<|mask_15|>'} <= set(tok.special)


@pytest.mark.parametrize('kind', ['bpe', 'byte', 'char'])
def test_byte_lengths_add_up_to_the_text(ours, kind, texts):
    tok = ours[kind]
    lengths_V = tok.byte_lengths()
    assert lengths_V.shape == (tok.vocab_size,)
    assert lengths_V.dtype == np.int32
    assert not lengths_V[:SPECIALS].any() and lengths_V[SPECIALS:].all()
    for text in [*ODD, *texts[:20]]:
        assert lengths_V[np.array(tok.encode(text), int)].sum() == len(text.encode())


@pytest.mark.parametrize('kind', ['bpe', 'byte', 'char'])
def test_save_and_load_change_nothing(ours, kind, texts, tmp_path):
    tok = ours[kind]
    tok.save(tmp_path / 'new' / 'folder')
    again = tokenizer.load(tmp_path / 'new' / 'folder')
    assert (again.kind, again.name, again.special) == (kind, tok.name, tok.special)
    assert again.fingerprint == tok.fingerprint
    assert again.encode(texts[0]) == tok.encode(texts[0])
    assert tokenizer.load(tmp_path / 'new' / 'folder' / 'tokenizer.json').kind == kind


def test_decode_shows_special_tokens_only_on_demand(bpe):
    ids = [bpe.bos_id, *bpe.encode('hi'), bpe.eos_id]
    assert bpe.decode(ids) == 'hi'
    assert bpe.decode(np.array(ids, np.uint16), skip_special=False) == '<|bos|>hi<|eos|>'
    assert bpe.decode_bytes(iter(ids)) == b'hi'
    assert bpe.token_bytes(bpe.eos_id) == b''
    assert bpe.decode([SPECIALS + 0xe2, *bpe.encode('x')]) == '\ufffdx'


@pytest.mark.parametrize('bad', [-1, 1500, 10**9])
def test_ids_of_another_vocabulary_are_refused(bpe, bad):
    with pytest.raises(InputError, match=f'token id {bad} is outside.*id < 1500'):
        bpe.decode([5, bad])


@pytest.mark.parametrize('kind', ['bpe', 'byte', 'char'])
def test_a_lone_surrogate_is_named_with_its_place(ours, kind):
    for encode in (ours[kind].encode, lambda text: ours[kind].encode_batch(['x', text])):
        with pytest.raises(InputError, match=r'lone surrogate U\+D83D at character 2'):
            encode('ab\ud83d')


@pytest.mark.parametrize('unit', ['a', 'é', ' ', '\n', ' \n', '-', '1', '\u0301', "'"])
def test_a_million_of_one_thing_is_quick(bpe, unit):
    text = unit * 1_000_000
    start = time.process_time()
    ids = bpe.encode(text)
    assert time.process_time() - start < 5
    assert bpe.decode(ids) == text


def test_training_is_repeatable_in_another_process(texts, bpe, tmp_path):
    (tmp_path / 'texts.json').write_text(json.dumps(texts[::-1]))
    code = ('import json, sys; from jaxllm.data import tokenizer; '
            'print(tokenizer.train_bpe(json.load(open(sys.argv[1])), 1500).fingerprint)')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, tmp_path / 'texts.json'],
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == bpe.fingerprint
    assert tokenizer.train_bpe(texts[:200], 600).fingerprint != bpe.fingerprint


def test_merges_by_hand():
    """Of 'abab' x 5: 'ab' is the most frequent pair, then 'abab'."""
    tok = tokenizer.train_bpe(['abab abab\nabab'] * 5, vocabulary.BASE_SIZE + 2)
    first = vocabulary.BASE_SIZE
    assert [tok.token_bytes(first + i) for i in range(2)] == [b'ab', b'abab']
    assert tok.encode('ababab') == [first + 1, first]
    assert tok.name == f'bpe-{first + 2}'


def test_a_vocabulary_larger_than_the_data_names_the_largest():
    text = ['abab abab\nabab'] * 5
    with pytest.raises(InputError, match=r'needs 712 merges.*give only \d+; set') as info:
        tokenizer.train_bpe(text, 1000)
    largest = int(str(info.value).split('at most ')[1].split()[0])
    assert tokenizer.train_bpe(text, largest).vocab_size == largest
    with pytest.raises(InputError, match='give only'):
        tokenizer.train_bpe(text, largest + 1)
    with pytest.raises(InputError, match=f'expected at least {vocabulary.BASE_SIZE}'):
        tokenizer.train_bpe(text, 287)
    with pytest.raises(InputError, match='leaves no room'):
        tokenizer.char_tokenizer(text, 288)


def test_sampling_is_bounded_even_and_blind_to_order():
    texts = [f'text {i} ' + 'x' * (i % 50) for i in range(3000)]
    total = sum(map(len, texts))
    kept = vocabulary.sample(iter(texts), total // 5)
    assert total // 12 < sum(map(len, kept)) <= total // 5
    assert sorted(kept) == sorted(vocabulary.sample(texts[::-1], total // 5))
    early = sum(int(text.split()[1]) < 1500 for text in kept) / len(kept)
    assert 0.4 < early < 0.6
    assert vocabulary.sample(texts, total) == texts
    assert vocabulary.sample(['é' * 100], 9) == ['é' * 4]
    assert vocabulary.sample(['same'] * 100, 9) == ['same']


def test_rare_characters_fall_back_to_bytes():
    tok = tokenizer.char_tokenizer(['aaab', 'bé'], vocabulary.BASE_SIZE + 2)
    first = vocabulary.BASE_SIZE
    assert tok.encode('abé') == [first, first + 1, SPECIALS + 0xc3, SPECIALS + 0xa9]
    assert tokenizer.char_tokenizer(['ab'], 1000).vocab_size == first + 2


def imported_bpe(texts, **added):
    """A byte-level file as other projects write it: special tokens last."""
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=500, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    for name, special in added.items():
        (tok.add_special_tokens if special else tok.add_tokens)([AddedToken(name, special=special)])
    return tok


def test_an_imported_byte_level_file(texts, tmp_path):
    plain = imported_bpe(texts[:100], **{'<|endoftext|>': True, '<|fim_prefix|>': False,
                                         '<tool>': False})
    plain.enable_truncation(5)
    plain.enable_padding(length=9)
    plain.save(str(tmp_path / 'tokenizer.json'))
    tok = tokenizer.load(tmp_path / 'tokenizer.json')
    assert (tok.kind, tok.vocab_size) == ('file', plain.get_vocab_size())
    assert tok.special == {'<|endoftext|>': 500, '<|fim_prefix|>': 501}
    assert tok.pad_id == tok.bos_id == tok.eos_id == 500
    plain.no_truncation()
    plain.no_padding()
    for text in [*ODD, *texts[:30]]:
        ids = tok.encode(text)
        assert tok.decode(ids) == text
        assert tok.byte_lengths()[np.array(ids, int)].sum() == len(text.encode())
        if '<|' not in text:
            assert ids == plain.encode(text).ids
    assert not set(tok.encode('<|endoftext|> <|fim_prefix|>')) & set(tok.special.values())
    assert tok.encode('<tool>') == [502]
    assert [ids.tolist() for ids in tok.encode_batch(texts[:9])] == [*map(tok.encode, texts[:9])]
    raw = random.Random(2).randbytes(300)
    assert tok.decode_bytes(tok.encode_bytes(raw)) == raw
    tok.save(tmp_path / 'saved')
    assert tokenizer.load(tmp_path / 'saved').fingerprint == tok.fingerprint


def test_an_imported_sentencepiece_file_with_byte_fallback(tmp_path):
    vocab = {'<unk>': 0, '<s>': 1, '</s>': 2, **{f'<0x{b:02X}>': 3 + b for b in range(256)}}
    for piece in ('▁', 'a', 'b', '▁a', 'ab', '▁ab'):
        vocab[piece] = len(vocab)
    plain = tokenizers.Tokenizer(models.BPE(
        vocab, [('▁', 'a'), ('a', 'b'), ('▁a', 'b')], unk_token='<unk>', fuse_unk=True,
        byte_fallback=True))
    plain.normalizer = normalizers.Sequence([normalizers.Prepend('▁'),
                                             normalizers.Replace(' ', '▁')])
    plain.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(),
                                       decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    plain.add_special_tokens(['<unk>', '<s>', '</s>'])
    plain.save(str(tmp_path / 'tokenizer.json'))
    tok = tokenizer.load(tmp_path)
    assert (tok.bos, tok.eos, tok.pad) == ('<s>', '</s>', '</s>')
    assert tok.encode('ab a</s>é')[:2] == [vocab['▁ab'], vocab['▁a']]
    assert tok.decode(tok.encode('ab a</s>é')) == 'ab a</s>é'
    assert not {0, 1, 2} & set(tok.encode('<s></s><unk>'))
    assert tok.token_bytes(vocab['▁ab']) == b' ab'
    assert tok.token_bytes(3 + 0xe9) == b'\xe9'
    assert tok.encode_bytes(b'\xff') == [3 + 0xff]
    assert tok.byte_lengths()[:5].tolist() == [0, 0, 0, 1, 1]


def test_roles_are_given_configured_or_guessed(texts, tmp_path):
    names = ('<|im_end|>', '<|endoftext|>', '<pad>', '<other>')
    imported_bpe(texts[:50], **dict.fromkeys(names, True)).save(str(tmp_path / 'tokenizer.json'))
    guessed = tokenizer.load(tmp_path)
    assert (guessed.eos, guessed.bos, guessed.pad) == ('<|endoftext|>', '<|endoftext|>', '<pad>')
    config = {'eos_token': {'content': '<|im_end|>'}, 'bos_token': None, 'pad_token': '<other>'}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    configured = tokenizer.load(tmp_path)
    assert (configured.eos, configured.bos, configured.pad) == (
        '<|im_end|>', '<|im_end|>', '<other>')
    assert tokenizer.load(tmp_path, eos='<other>').eos == '<other>'
    with pytest.raises(InputError, match="eos='<none>' is not a special token.*<other>"):
        tokenizer.load(tmp_path, eos='<none>')


def test_a_file_without_end_of_text_asks_for_it(texts, tmp_path):
    imported_bpe(texts[:50], **{'<strange>': True}).save(str(tmp_path / 'tokenizer.json'))
    with pytest.raises(InputError, match="names no end-of-text token.*<strange>.*eos=NAME"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize('content, message', [
    ('{"version": ', 'not valid JSON'), ('[1, 2]', 'holds a JSON list'), ('', 'not valid JSON'),
    ('{}', "lacks .'added_tokens', 'model'."),
    ('{"added_tokens": [], "model": 3}', 'does not load'),
    ('[' * 100_000, 'not valid JSON'), (b'\xff\xfe\x00', 'not valid JSON')])
def test_a_damaged_file_is_named(tmp_path, content, message):
    file = tmp_path / 'tokenizer.json'
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f'tokenizer.json.*{message}'):
        tokenizer.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match='cannot read tokenizer file .*nowhere'):
        tokenizer.load(tmp_path / 'nowhere')


def test_a_changed_file_does_not_match_its_sidecar(bpe, tmp_path):
    bpe.save(tmp_path)
    other = tmp_path / 'other'
    tokenizer.byte_tokenizer().save(other)
    shutil.copy(other / 'tokenizer.json', tmp_path / 'tokenizer.json')
    with pytest.raises(InputError, match='does not match its sidecar'):
        tokenizer.load(tmp_path)
    (tmp_path / 'jaxllm_tokenizer.json').write_text('{"kind": "bpe"}')
    with pytest.raises(InputError, match='not a tokenizer sidecar'):
        tokenizer.load(tmp_path)


def document(source, text):
    return Document(text=text, id='', source=source, license='', origin='')


def test_fertility_by_hand():
    tok = tokenizer.byte_tokenizer()
    rows = fertility.fertility([document('b', 'é a'), document('a', 'xy'), document('b', ' z ')],
                               tok)
    assert [row['source'] for row in rows] == ['a', 'b', 'all']
    assert rows[1] == {'source': 'b', 'documents': 2, 'words': 3, 'bytes': 7, 'tokens': 7,
                       'tokens_per_word': 7 / 3, 'bytes_per_token': 1.0}
    assert rows[2]['bytes'] == 9 and rows[2]['words'] == 4
    assert json.loads(json.dumps(rows)) == rows
    lines = fertility.table(rows).splitlines()
    assert lines[0].split() == ['source', 'documents', 'words', 'bytes', 'tokens', 'tokens/word',
                                'bytes/token']
    assert lines[2].split() == ['b', '2', '3', '7', '7', '2.333', '1.000']
    assert len({len(line) for line in lines}) == 1


def test_fertility_of_many_and_of_none(bpe, texts):
    rows = fertility.fertility((document('x', text) for text in texts), bpe)
    assert rows[0]['documents'] == len(texts) > fertility.BATCH
    assert rows[0]['tokens'] == sum(len(bpe.encode(text)) for text in texts)
    assert 2 < rows[0]['bytes_per_token'] < 5
    assert fertility.fertility([], bpe) == [
        {'source': 'all', 'documents': 0, 'words': 0, 'bytes': 0, 'tokens': 0,
         'tokens_per_word': 0.0, 'bytes_per_token': 0.0}]
