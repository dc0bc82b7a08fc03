"""The tokenizer in a GGUF file as a tokenizer.json tree, and back."""

import json

from jaxllm.data import imported
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import InputError

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
           r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')
_QWEN2 = _LLAMA3.replace('{1,3}', '')
# By tokenizer.ggml.pre: a pattern that cuts text before the bytes, or nothing of its own.
_PRE = {'smollm': 'digits', 'gpt-2': '', 'default': '', 'llama-bpe': _LLAMA3, 'llama3': _LLAMA3,
        'llama-v3': _LLAMA3, 'qwen2': _QWEN2}


def from_fields(fields, path):
    """The Tokenizer of a GGUF file's fields.

    Raises:
      InputError: none there, or of a kind that is not known.
    """
    if 'tokenizer.ggml.tokens' not in fields:
        raise InputError(f'{path} holds no tokenizer; use a file that does')
    tokens = fields['tokenizer.ggml.tokens']
    kinds = fields.get('tokenizer.ggml.token_type', [_NORMAL] * len(tokens))
    if 'tokenizer.huggingface.json' in fields:
        spec = json.loads(fields['tokenizer.huggingface.json'])
    elif fields['tokenizer.ggml.model'] == 'gpt2':
        spec = _byte_level(fields, tokens, kinds, path)
    elif fields['tokenizer.ggml.model'] == 'llama':
        spec = _sentencepiece(fields, tokens, kinds)
    else:
        raise InputError(f'{path} has a tokenizer of the kind {fields["tokenizer.ggml.model"]!r}, '
                         'which is not supported; expected gpt2 or llama')
    spec = imported.prepare(spec, path)
    role = lambda name, other: tokens[fields.get(f'tokenizer.ggml.{name}_token_id', other)]
    end = fields.get('tokenizer.ggml.eos_token_id')
    if end is None:
        raise InputError(f'{path} names no end-of-text token (tokenizer.ggml.eos_token_id); use a '
                         'file that does')
    return Tokenizer(spec, 'file', eos=tokens[end], bos=role('bos', end),
                     pad=role('padding', end), name=path.stem)


def _added(tokens, kinds):
    return [{'id': i, 'content': token, 'single_word': False, 'lstrip': False, 'rstrip': False,
             'normalized': False, 'special': kind in (_CONTROL, _UNKNOWN)}
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (_CONTROL, _USER, _UNKNOWN)]


def _tree(model, added, **parts):
    return {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added,
            'normalizer': None, 'pre_tokenizer': None, 'post_processor': None, 'decoder': None,
            **parts, 'model': model}


def _byte_level(fields, tokens, kinds, path):
    """Byte-level BPE, as GPT-2 and its heirs have it."""
    pre = fields.get('tokenizer.ggml.pre', 'default')
    if pre not in _PRE:
        raise InputError(f'{path} cuts text in the way {pre!r}, which is not known; expected one '
                         f'of {", ".join(_PRE)}; use the Hugging Face weights instead')
    bytes_ = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True,
              'use_regex': _PRE[pre] in ('', 'digits')}
    cuts = []
    if _PRE[pre] == 'digits':
        cuts = [{'type': 'Digits', 'individual_digits': True}]
    elif _PRE[pre]:
        cuts = [{'type': 'Split', 'pattern': {'Regex': _PRE[pre]}, 'behavior': 'Isolated',
                 'invert': False}]
    model = {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
             'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False,
             'ignore_merges': pre.startswith('llama'),
             'vocab': {token: i for i, token in enumerate(tokens)},
             'merges': [merge.split(' ') for merge in fields['tokenizer.ggml.merges']]}
    normalizer = {'type': 'NFC'} if pre == 'qwen2' else None
    return _tree(model, _added(tokens, kinds), normalizer=normalizer,
                 pre_tokenizer={'type': 'Sequence', 'pretokenizers': [*cuts, bytes_]},
                 decoder={'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True,
                          'use_regex': True})


def _sentencepiece(fields, tokens, kinds):
    """BPE over characters with spaces as U+2581 and single bytes to fall back on.

    SentencePiece merges the two neighbours whose union has the best score, so that the order of
    merges is that of scores.
    """
    scores = fields.get('tokenizer.ggml.scores', [-float(i) for i in range(len(tokens))])
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = []
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind != _NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-scores[i], vocab[left], vocab[right], left, right))
    merges = [list(merge[3:]) for merge in sorted(merges)]
    unknown = next((t for t, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    model = {'type': 'BPE', 'dropout': None, 'unk_token': unknown,
             'continuing_subword_prefix': None, 'end_of_word_suffix': None, 'fuse_unk': True,
             'byte_fallback': True, 'ignore_merges': False, 'vocab': vocab, 'merges': merges}
    prefix = bool(fields.get('tokenizer.ggml.add_space_prefix', True))
    spaces = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'}
    normalizer = {'type': 'Sequence', 'normalizers': [
        *([{'type': 'Prepend', 'prepend': '\u2581'}] if prefix else []), spaces]}
    decoders = [{'type': 'Replace', 'pattern': {'String': '\u2581'}, 'content': ' '},
                {'type': 'ByteFallback'}, {'type': 'Fuse'},
                *([{'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}] if prefix else [])]
    return _tree(model, _added(tokens, kinds), normalizer=normalizer,
                 decoder={'type': 'Sequence', 'decoders': decoders})


def write_fields(writer, tokenizer, vocab_size):
    """Adds a Tokenizer to a gguf.GGUFWriter: as llama.cpp reads it, and its whole tokenizer.json.

    Ids beyond the tokenizer's, up to the model's `vocab_size`, get names of their own.
    """
    spec = tokenizer.spec
    vocab = spec['model']['vocab']
    if isinstance(vocab, list):
        raise InputError(f'tokenizer {tokenizer.name} is a Unigram model, which this export does '
                         'not write; export with --format=hf')
    by_id = {i: token for token, i in vocab.items()}
    added = {token['id']: token for token in spec['added_tokens']}
    byte_level = imported.is_byte_level(spec)
    tokens, kinds = [], []
    for i in range(vocab_size):
        if i in added:
            tokens.append(added[i]['content'])
            kinds.append(_CONTROL if added[i]['special'] else _USER)
        elif i in by_id:
            tokens.append(by_id[i])
            is_byte = not byte_level and len(by_id[i]) == 6 and by_id[i].startswith('<0x')
            kinds.append(_BYTE if is_byte else _NORMAL)
        else:
            tokens.append(f'<|unused_{i}|>')
            kinds.append(5)
    writer.add_tokenizer_model('gpt2' if byte_level else 'llama')
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if byte_level:
        writer.add_tokenizer_pre(_pre_of(spec))
        merges = spec['model']['merges'] if 'merges' in spec['model'] else []
        writer.add_token_merges([m if isinstance(m, str) else ' '.join(m) for m in merges])
    else:
        writer.add_token_scores([-float(i) for i in range(vocab_size)])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(False)
    writer.add_string('tokenizer.huggingface.json', json.dumps(spec, ensure_ascii=False))


def _pre_of(spec):
    """The name that llama.cpp has for how a tokenizer cuts text; 'default' where it has none."""
    pre = json.dumps(spec['pre_tokenizer'])
    if 'individual_digits": true' in pre:
        return 'smollm'
    for name in ('llama-bpe', 'qwen2'):
        if json.dumps(_PRE[name])[1:-1] in pre:
            return name
    return 'gpt-2' if '"use_regex": true' in pre else 'default'
