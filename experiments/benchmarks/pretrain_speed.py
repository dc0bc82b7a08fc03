"""Training speed and memory against PyTorch + Transformers, same shapes, one table.

    pip install -e '.[bench]' && python experiments/benchmarks/pretrain_speed.py

Each side is a process of its own that takes turns with the other, round by round, so that both see
the same machine; a figure is the median over rounds, and the ratio is taken round by round. Both do
a whole step in float32: forward, backward, clipping to norm 1, AdamW. Random tokens; the same Llama
shape (17M parameters at a vocabulary of 8192), tied embeddings.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from jaxllm import huge_pages

# name: batch, sequence length, vocabulary
SHAPES = {'B4 T512 V8192': (4, 512, 8192),
          'B1 T2048 V8192': (1, 2048, 8192),
          'B4 T512 V32768': (4, 512, 32768)}


def jaxllm_step(batch_size, seq_len, vocab_size):
    """Returns step() that trains once and waits."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxllm.models import families, transformer
    from jaxllm.models.config import model_config
    from jaxllm.objectives.lm import lm
    from jaxllm.sharding import make_mesh
    from jaxllm.train import optim
    from jaxllm.train.state import create
    from jaxllm.train.step import GuardConfig, guard_state, make_train_step

    model = model_config(families.llama('17m') | {'vocab_size': vocab_size,
                                                  'max_seq_len': seq_len})
    config = optim.OptimConfig(
        name='adamw', lr=1e-3, schedule='constant', warmup_steps=0, decay_share=0.0,
        final_lr_share=1.0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0,
        ema_decay=0.0, muon_momentum=0.95)
    jax.set_mesh(make_mesh())
    params = jax.jit(lambda: transformer.init(jax.random.key(0), model))()
    optimizer = optim.make_optimizer(config, params)
    guard = GuardConfig(spike_factor=10.0, history=50, max_skips_in_row=10)
    state = create(params, optimizer, ema=False, aux={'guard': guard_state(guard)})
    step = jax.jit(make_train_step(lm(model), optimizer, optim.schedule(config, 10**6), seed=0,
                                   clip_norm=1.0, guard=guard), donate_argnums=0)
    tokens_BL = np.random.default_rng(0).integers(0, vocab_size, (batch_size, seq_len + 1))
    shape = batch_size, seq_len
    batch = jax.device_put({
        'tokens': tokens_BL[:, :-1].astype(np.int32), 'targets': tokens_BL[:, 1:].astype(np.int32),
        'loss_weights': np.ones(shape, np.float32), 'segment_ids': np.ones(shape, np.int32),
        'positions': np.tile(np.arange(seq_len, dtype=np.int32), (batch_size, 1)),
        'num_bytes': np.ones(batch_size, np.float32)})

    def run():
        nonlocal state
        state, metrics = step(state, {}, batch)
        return float(jnp.asarray(metrics['loss']))
    return run


def torch_step(batch_size, seq_len, vocab_size):
    """The same with Transformers' Llama and torch's fused AdamW."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab_size, hidden_size=384, intermediate_size=1024, num_hidden_layers=8,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=seq_len,
        tie_word_embeddings=True, use_cache=False, attn_implementation='sdpa'))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95),
                                  weight_decay=0.1, fused=True)
    tokens_BL = torch.randint(vocab_size, (batch_size, seq_len))

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens_BL, labels=tokens_BL).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())
    return run


SIDES = {'jaxllm': jaxllm_step, 'torch': torch_step}


def work(side, shape):
    """A worker: one warm-up step, then a step for every line on standard input."""
    if side == 'jaxllm':
        huge_pages.restart()  # as the commands do
    step = SIDES[side](*shape)
    step()
    print('ready', flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([time.perf_counter() - start, peak_kib * 1024]), flush=True)


def compare(name, rounds):
    """Alternates both sides for `rounds` rounds; returns a table row."""
    workers = {side: subprocess.Popen(
        [sys.executable, __file__, '--worker', side, '--shape', name], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE) for side in SIDES}
    for worker in workers.values():
        while worker.stdout.readline().strip() != 'ready':
            if worker.poll() is not None:
                raise SystemExit(f'a worker of {name} ended with code {worker.returncode}')
    seconds, memory = {side: [] for side in SIDES}, {}
    for _ in range(rounds):
        for side, worker in workers.items():
            print('step', file=worker.stdin, flush=True)
            took, memory[side] = json.loads(worker.stdout.readline())
            seconds[side].append(took)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    batch_size, seq_len, _ = SHAPES[name]
    rate = {side: batch_size * seq_len / statistics.median(s) for side, s in seconds.items()}
    ratio = statistics.median(t / j for t, j in zip(seconds['torch'], seconds['jaxllm'],
                                                    strict=True))
    return (f'{name:<16} {rate["jaxllm"]:>9,.0f} {rate["torch"]:>9,.0f} {ratio:>7.2f} '
            f'{memory["jaxllm"] / 2**20:>9,.0f} {memory["torch"] / 2**20:>9,.0f} '
            f'{memory["jaxllm"] / memory["torch"]:>7.2f}')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=7, help='at least 5')
    parser.add_argument('--worker', choices=SIDES)
    parser.add_argument('--shape', choices=SHAPES, action='append')
    args = parser.parse_args()
    if args.worker:
        work(args.worker, SHAPES[args.shape[0]])
        return
    print(f'{"":<16} {"tokens per second":^27} {"peak MiB":^27}')
    print(f'{"":<16} {"jaxllm":>9} {"torch":>9} {"ratio":>7} {"jaxllm":>9} {"torch":>9} '
          f'{"ratio":>7}')
    for name in args.shape or SHAPES:
        print(compare(name, max(args.rounds, 5)), flush=True)


if __name__ == '__main__':
    main()
