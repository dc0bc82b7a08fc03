"""Learns vocabularies: portable `tokenizer.json` trees for byte-level BPE, bytes and characters.

All three share a layout, so that an id means the same in each of them:

    0 .. 31      special tokens (`SPECIAL_TOKENS`)
    32 .. 287    the 256 bytes, in order: nothing is ever out of vocabulary
    288 ..       merges by rank (bpe), or characters by frequency (char)
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from jaxllm.errors import InputError

PAD, BOS, EOS = '<|pad|>', '<|bos|>', '<|eos|>'
FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX = '<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>'
IM_START, IM_END = '<|im_start|>', '<|im_end|>'
MASKS = tuple(f'<|mask_{i}|>' for i in range(16))
RESERVED = tuple(f'<|reserved_{i}|>' for i in range(8))
SPECIAL_TOKENS = (PAD, BOS, EOS, FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, IM_START, IM_END,
                  *MASKS, *RESERVED)
FIRST_BYTE_ID = len(SPECIAL_TOKENS)
BASE_SIZE = FIRST_BYTE_ID + 256

# Pieces that merges never cross: contractions, words with one leading character, numbers in
# groups of at most three digits, punctuation, line ends, and spaces (the last of which goes to
# the next word). Every repeat is bounded: an unbounded one overflows the stack of tiktoken's
# regex engine on a run of a million spaces, and makes the merging of one long piece quadratic.
# Case is spelt out, because engines fold Unicode case differently.
SPLIT_PATTERN = '|'.join((
    r"'(?:[sdmtSDMT]|ll|ve|re|LL|VE|RE)",
    r'[^\r\n\p{L}\p{N}]?\p{L}{1,64}',
    r'\p{N}{1,3}',
    r' ?[^\s\p{L}\p{N}]{1,64}[\r\n]{0,64}',
    r'\s{0,64}[\r\n]{1,64}',
    r'\s{1,64}(?!\S)',
    r'\s{1,64}',
))


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte 0..255 in a byte-level `tokenizer.json`.

    Ref: Radford et al. 2019 (GPT-2): printable Latin-1 bytes stand for themselves, the others are
    shifted to U+0100 and up, in order.
    """
    printable = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(shifted)) for b in range(256)]


def sample(texts: Iterable[str], max_bytes: int) -> list[str]:
    """An even sample of whole texts of at most `max_bytes` bytes, the same whatever their order.

    A text is kept while its hash is below a threshold, which halves whenever the kept texts
    outgrow `max_bytes`: memory stays bounded without knowing the corpus size beforehand.
    One text longer than `max_bytes` is cut.
    """
    threshold, kept, size = 1 << 64, [], 0
    for text in texts:
        raw = encode_utf8(text)
        if len(raw) > max_bytes:
            raw = raw[:max_bytes]
            text = raw.decode('utf-8', errors='ignore')
        key = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), 'big')
        if key >= threshold:
            continue
        kept.append((key, len(raw), text))
        size += len(raw)
        while size > max_bytes and len(kept) > 1:
            threshold //= 2
            kept = [item for item in kept if item[0] < threshold] or [min(kept)]
            size = sum(length for _, length, _ in kept)
    return [text for _, _, text in kept]


def encode_utf8(text: str) -> bytes:
    """UTF-8 bytes of a text. Raises InputError where it holds a lone surrogate."""
    try:
        return text.encode('utf-8')
    except UnicodeEncodeError as error:
        raise InputError(
            f'text cannot be encoded: lone surrogate U+{ord(text[error.start]):04X} at character '
            f'{error.start}; expected valid Unicode; repair it first, e.g. with '
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace'), or give the raw "
            'bytes to encode_bytes') from error


def bpe_spec(texts: Iterable[str], vocab_size: int, max_bytes: int) -> dict:
    """Trains byte-level BPE and returns its `tokenizer.json` tree, with exactly `vocab_size` ids.

    Raises:
        InputError: vocab_size below `BASE_SIZE`, or more merges asked for than the texts hold.
    Ref: Sennrich et al. 2016, algorithm 1, on bytes.
    """
    if vocab_size < BASE_SIZE:
        raise InputError(f'vocab_size={vocab_size} is too small; expected at least {BASE_SIZE} '
                         f'({FIRST_BYTE_ID} special tokens + 256 bytes); set vocab_size higher')
    alphabet = byte_alphabet()
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior='isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - FIRST_BYTE_ID, min_frequency=2, show_progress=False,
        initial_alphabet=alphabet, special_tokens=[])
    kept = sample(texts, max_bytes)
    learner.train_from_iterator(kept, trainer)
    merges = learner_merges(learner)
    if BASE_SIZE + len(merges) < vocab_size:
        size = sum(len(text.encode()) for text in kept)
        raise InputError(
            f'vocab_size={vocab_size} needs {vocab_size - BASE_SIZE} merges, but the {len(kept)} '
            f'training texts ({size} bytes) give only {len(merges)}; set vocab_size to at most '
            f'{BASE_SIZE + len(merges)} or train on more text')
    vocab = base_vocab(alphabet)
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    byte_level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True,
                  'use_regex': False}
    split = {'type': 'Split', 'pattern': {'Regex': SPLIT_PATTERN}, 'behavior': 'Isolated',
             'invert': False}
    # ignore_merges: a piece that is a token is that token, as in tiktoken. No piece can be a
    # special token, because the pattern cuts between punctuation and letters.
    return tree(vocab, merges, ignore_merges=True, decoder=byte_level, pre_tokenizer={
        'type': 'Sequence', 'pretokenizers': [split, byte_level]})


def learner_merges(learner: tokenizers.Tokenizer) -> list[list[str]]:
    """The merges of a trained tokenizer by rank, each making a token that is new."""
    seen, merges = set(), []
    for left, right in json.loads(learner.to_str())['model']['merges']:
        if left + right not in seen:
            seen.add(left + right)
            merges.append([left, right])
    return merges


def byte_spec() -> dict:
    """The `tokenizer.json` tree of a tokenizer whose tokens are the 256 bytes."""
    byte_level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True,
                  'use_regex': False}
    return tree(base_vocab(byte_alphabet()), [], pre_tokenizer=byte_level, decoder=byte_level)


def char_spec(texts: Iterable[str], vocab_size: int) -> dict:
    """The `tokenizer.json` tree of the most frequent characters; others fall back to bytes."""
    if vocab_size <= BASE_SIZE:
        raise InputError(f'vocab_size={vocab_size} leaves no room for characters; expected more '
                         f'than {BASE_SIZE} ({FIRST_BYTE_ID} special tokens + 256 bytes); '
                         'set vocab_size higher, or use kind=byte')
    counts = Counter()
    for text in texts:
        encode_utf8(text)
        counts.update(text)
    vocab = base_vocab([f'<0x{b:02X}>' for b in range(256)])
    by_frequency = sorted(counts, key=lambda char: (-counts[char], char))
    for char in by_frequency[:vocab_size - BASE_SIZE]:
        vocab[char] = len(vocab)
    decoder = {'type': 'Sequence', 'decoders': [{'type': 'ByteFallback'}, {'type': 'Fuse'}]}
    return tree(vocab, [], decoder=decoder, byte_fallback=True)


def base_vocab(byte_names: list[str]) -> dict[str, int]:
    """Token -> id for the special tokens and the 256 bytes."""
    return {name: i for i, name in enumerate([*SPECIAL_TOKENS, *byte_names])}


def tree(vocab, merges, *, decoder, pre_tokenizer=None, ignore_merges=False,
         byte_fallback=False) -> dict:
    """A `tokenizer.json` tree (the format of the `tokenizers` package) around a BPE model."""
    added = [{'id': i, 'content': name, 'single_word': False, 'lstrip': False, 'rstrip': False,
              'normalized': False, 'special': True} for i, name in enumerate(SPECIAL_TOKENS)]
    model = {'type': 'BPE', 'dropout': None, 'unk_token': None,
             'continuing_subword_prefix': None, 'end_of_word_suffix': None, 'fuse_unk': False,
             'byte_fallback': byte_fallback, 'ignore_merges': ignore_merges,
             'vocab': vocab, 'merges': merges}
    return {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added,
            'normalizer': None, 'pre_tokenizer': pre_tokenizer, 'post_processor': None,
            'decoder': decoder, 'model': model}
