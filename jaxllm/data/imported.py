"""Reads tokenizer.json files of other projects: their bytes, special tokens and end of text."""

import copy
import json
from pathlib import Path

import tokenizers

from jaxllm.data.vocabulary import byte_alphabet
from jaxllm.errors import InputError

# First match wins. A tokenizer without a beginning or padding token uses its end of text.
EOS_NAMES = ('<|eos|>', '<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '[EOS]',
             '<|eot_id|>', '<|im_end|>', '[SEP]')
BOS_NAMES = ('<|bos|>', '<|begin_of_text|>', '<|startoftext|>', '<s>', '<bos>', '[BOS]', '[CLS]')
PAD_NAMES = ('<|pad|>', '<pad>', '[PAD]', '<|finetune_right_pad_id|>')


def read_json(file: Path) -> dict:
    """A JSON object from a file. Raises InputError if it is missing or damaged."""
    try:
        content = json.loads(file.read_text('utf-8'))
    except OSError as error:
        raise InputError(f'cannot read tokenizer file {file}: {error.strerror}; expected a '
                         'tokenizer.json or a folder that holds one') from error
    except (ValueError, RecursionError) as error:
        raise InputError(f'{file} is not valid JSON ({error}); it is damaged or not a '
                         'tokenizer.json; write it again') from error
    if not isinstance(content, dict):
        raise InputError(f'{file} holds a JSON {type(content).__name__}, expected an object; '
                         'is it a tokenizer.json?')
    return content


def prepare(spec: dict, file: Path) -> dict:
    """A copy of a foreign tree that treats control tokens as special and never cuts or pads."""
    validate(spec, file)
    added = [{**token, 'special': token['special'] or is_control(token['content'])}
             for token in spec['added_tokens']]
    return {**spec, 'added_tokens': added, 'truncation': None, 'padding': None}


def is_control(content: str) -> bool:
    """Whether a token is a control token by its shape: some files mark theirs as ordinary."""
    return content.startswith('<|') and content.endswith('|>')


def validate(spec: dict, file: Path) -> None:
    """Raises InputError unless the tree is a loadable tokenizer.json with a vocabulary."""
    missing = {'added_tokens', 'model'} - spec.keys()
    if missing:
        raise InputError(f'{file} lacks {sorted(missing)}; expected the tokenizer.json format of '
                         'the `tokenizers` package; convert the tokenizer first')
    try:
        backend(spec)
    except Exception as error:  # the Rust side raises bare Exception
        raise InputError(f'{file} does not load as a tokenizer.json: {error}; it is damaged or of '
                         'another version; write it again') from error


def backend(spec: dict) -> tokenizers.Tokenizer:
    """The `tokenizers` object of a tree; special tokens within text are not parsed."""
    result = tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
    result.encode_special_tokens = True
    return result


def guess_roles(spec: dict, file: Path, *, pad: str, bos: str, eos: str) -> dict[str, str]:
    """Names of the pad, bos and eos tokens: as given, as configured beside the file, or guessed."""
    special = {token['content'] for token in spec['added_tokens'] if token['special']}
    config_file = file.with_name('tokenizer_config.json')
    config = read_json(config_file) if config_file.exists() else {}

    def find(given, key, names):
        configured = config[key] if key in config else None
        if isinstance(configured, dict):
            configured = configured['content'] if 'content' in configured else None
        candidates = [given] if given else [configured, *names]
        return next((name for name in candidates if name in special), given)

    eos = find(eos, 'eos_token', EOS_NAMES)
    if not eos:
        raise InputError(f'{file} names no end-of-text token; its special tokens are '
                         f'{sorted(special)[:40]}; say which one with eos=NAME')
    return {'eos': eos, 'bos': find(bos, 'bos_token', BOS_NAMES) or eos,
            'pad': find(pad, 'pad_token', PAD_NAMES) or eos}


def _nodes(spec: dict) -> list[dict]:
    """The steps before the model, those within sequences too."""
    left, found = [spec[key] for key in ('normalizer', 'pre_tokenizer') if key in spec], []
    while left:
        node = left.pop()
        if node:
            found.append(node)
            left += [child for key in ('normalizers', 'pretokenizers') if key in node
                     for child in node[key]]
    return found


def space_before(spec: dict) -> str:
    """Where a space is put: 'never', 'first' (before a text), 'always' (behind specials too)."""
    found = {'never'}
    for node in _nodes(spec):
        if node['type'] == 'Prepend':
            found.add('always')
        elif node['type'] == 'Metaspace':
            found.add(node['prepend_scheme'] if 'prepend_scheme' in node else 'always')
        elif node['type'] == 'ByteLevel' and node['add_prefix_space']:
            found.add('always')
    return min(found)  # 'always' < 'first' < 'never'


def without_space(spec: dict) -> dict:
    """A copy of a tree that puts no space in front of a text."""
    spec = copy.deepcopy(spec)
    for node in _nodes(spec):
        if node['type'] == 'Prepend':
            node['prepend'] = ''
        elif node['type'] == 'Metaspace':
            node['prepend_scheme'] = 'never'
            node.pop('add_prefix_space', None)
        elif node['type'] == 'ByteLevel':
            node['add_prefix_space'] = False
    return spec


def is_byte_level(spec: dict) -> bool:
    """Whether token strings are spelt in the byte alphabet (GPT-2 and its heirs)."""
    return 'ByteLevel' in node_types(spec['decoder'] if 'decoder' in spec else None)


def node_types(node: dict | None) -> set[str]:
    """The types in a (possibly nested) decoder."""
    if not node:
        return set()
    children = node['decoders'] if 'decoders' in node else []
    return {node['type']}.union(*(node_types(child) for child in children))


def token_table(spec: dict) -> list[bytes]:
    """The bytes of text of every id; b'' for special tokens and for ids that no token has."""
    vocab = spec['model']['vocab']
    if isinstance(vocab, list):  # Unigram: [token, score] by id
        vocab = {token: i for i, (token, _) in enumerate(vocab)}
    size = 1 + max([*vocab.values(), *(token['id'] for token in spec['added_tokens'])])
    table = [b''] * size
    spell = byte_level_speller() if is_byte_level(spec) else sentencepiece_speller(spec)
    for token, i in vocab.items():
        table[i] = spell(token)
    for token in spec['added_tokens']:
        table[token['id']] = b'' if token['special'] else token['content'].encode()
    return table


def byte_level_speller():
    """token -> bytes by the byte alphabet."""
    to_byte = {char: bytes([b]) for b, char in enumerate(byte_alphabet())}
    return lambda token: b''.join(to_byte[c] if c in to_byte else c.encode() for c in token)


def sentencepiece_speller(spec: dict):
    """token -> bytes: U+2581 is a space, <0x0A> a byte where the model falls back to bytes."""
    decoder = json.dumps(spec['decoder'] if 'decoder' in spec else None)
    spaced = 'Metaspace' in decoder or '\\u2581' in decoder
    falls_back = 'ByteFallback' in decoder

    def spell(token):
        if falls_back and len(token) == 6 and token.startswith('<0x') and token.endswith('>'):
            return bytes([int(token[3:5], 16)])
        return (token.replace('\u2581', ' ') if spaced else token).encode()

    return spell
