"""A stand-in tokenizer and small stores for the tests of the data pipeline."""

import dataclasses

import numpy as np

from jaxllm.data.store import TokenStore, write_store

SPECIAL = ('<|pad|>', '<|bos|>', '<|eos|>', '<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>',
           *(f'<|mask_{i}|>' for i in range(16)))
FIRST_BYTE = len(SPECIAL)


@dataclasses.dataclass(frozen=True)
class Doc:
    text: str
    id: str = 'd'
    source: str = 'toy'
    license: str = 'MIT'
    origin: str = 'made up'


class ByteTokenizer:
    """One id per byte, after the special tokens."""

    def __init__(self, pad_id=0, offset=FIRST_BYTE, special=SPECIAL):
        self.vocab_size = offset + 256
        self.pad_id, self.bos_id, self.eos_id = pad_id, 1, 2
        self.special = {name: i for i, name in enumerate(special)}
        self.offset = offset
        self.fingerprint = f'bytes/{pad_id}/{offset}'
        self.largest_batch = 0

    def encode_batch(self, texts):
        self.largest_batch = max(self.largest_batch, len(texts))
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.offset
                for text in texts]

    def byte_lengths(self):
        lengths = np.ones(self.vocab_size, np.int32)
        lengths[:self.offset] = 0
        return lengths


def random_text(rng, length):
    return ''.join(rng.choice(list('abcdefghij klmnopqrst'), length))


def make_store(folder, lengths, *, seed=0, holdout_share=0.0, tokenizer=None):
    """A store with one document per length, in tokens with BOS and EOS."""
    rng = np.random.default_rng(seed)
    documents = [Doc(random_text(rng, length - 2), id=f'doc{i}')
                 for i, length in enumerate(lengths)]
    write_store(documents, tokenizer or ByteTokenizer(), folder, holdout_share=holdout_share,
                source_fingerprint=f'toy/{seed}')
    return TokenStore.open(folder)
