"""How fast batches come from a token store, in tokens per CPU-second of one core.

Command: python experiments/benchmarks/input_speed.py
Builds a store of random text (log-normal document lengths, median 545 tokens) in a temporary
folder, then reads shuffled batches of a two-component mixture. Prints one table.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np

from jaxllm.data.infill import InfillConfig
from jaxllm.data.loader import PackedData
from jaxllm.data.packing import plan_rows
from jaxllm.data.records import Document
from jaxllm.data.store import TokenStore, write_store
from jaxllm.data.tokenizer import byte_tokenizer

SHAPES = ((256, 64), (1024, 16), (2048, 16), (8192, 4))


def cpu_seconds(function):
    """CPU-seconds of this process in one call, and what it returned."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def build(folder, num_documents):
    """A store of random text in the byte vocabulary."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(6.3, 1.1, num_documents).astype(int) + 1
    text = ''.join(rng.choice(list('abcdefgh ijklmnop\n'), lengths.max()))
    documents = (Document(f'{i} {text[:n]}', str(i), 'random', 'CC0-1.0', str(i))
                 for i, n in enumerate(lengths))
    write_store(documents, byte_tokenizer(), folder, holdout_share=0.02,
                source_fingerprint='random')
    return TokenStore.open(folder).train


def read(split, seq_len, batch_size, kind, tokens):
    """Million tokens per CPU-second, and the fill of the first component."""
    data = PackedData([('a', split, 0.7), ('b', split, 0.3)], seq_len=seq_len,
                      batch_size=batch_size, seed=0, infill=InfillConfig(kind=kind))
    num_steps = max(1, tokens // (seq_len * batch_size))
    data(0)
    seconds, _ = cpu_seconds(lambda: [data(i) and None for i in range(num_steps)])
    return num_steps * seq_len * batch_size / seconds / 1e6, data.plans['a'].fill


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--documents', type=int, default=20_000)
    parser.add_argument('--tokens', type=int, default=4_000_000, help='read per line of the table')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds, split = cpu_seconds(lambda: build(pathlib.Path(folder) / 'store', args.documents))
        print(f'build: {split.num_tokens / seconds / 1e6:.1f} Mtok per CPU-second '
              f'(byte vocabulary, {split.num_tokens / 1e6:.1f} Mtok)')
        lengths = np.tile(split.lengths, 10)
        seconds, plan = cpu_seconds(lambda: plan_rows(lengths, 2048))
        print(f'packing plan: {len(lengths) / seconds / 1e3:.0f} thousand documents per '
              f'CPU-second, fill {plan.fill:.4f}, {plan.num_cut / len(lengths):.1%} cut')
        print(f'{"seq_len":>8}{"rows":>6}{"infill":>8}{"Mtok/CPU-s":>12}{"fill":>8}')
        for seq_len, batch_size in SHAPES:
            for kind in ('none', 'fim', 'span'):
                speed, fill = read(split, seq_len, batch_size, kind, args.tokens)
                print(f'{seq_len:>8}{batch_size:>6}{kind:>8}{speed:>12.1f}{fill:>8.4f}')


if __name__ == '__main__':
    main()
