"""A gradient with memory in pages of 2 MiB and of 4 KiB: milliseconds and page faults of each.

    pip install -e . && python experiments/benchmarks/huge_pages.py

The gradient of the mean log-prob of 32 rows of 96 tokens, for a Llama of 3.4M random weights in
float32: about 0.6 GB of intermediate results. Processes of both kinds take turns; of each the
median of its runs, after one that does not count.

Measured on two CPU cores that others slowed down, four times by turns: 864, 980, 1,003, 1,007 ms
with 155,000 page faults, and 725, 889, 766, 809 ms with 1,300 to 1,800.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

ROWS, LENGTH, RUNS = 32, 96, 15
SETTINGS = {'4 KiB': 'glibc.malloc.hugetlb=0', '2 MiB': 'glibc.malloc.hugetlb=1'}


def work():
    import jax
    import jax.numpy as jnp
    import rl_speed

    from jaxllm.models import transformer

    model, params = rl_speed.jaxllm_model('tiny')
    tokens_BL = jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 0, model.vocab_size)

    def loss(params):
        logits_BLV = transformer.apply(params, model, tokens_BL)
        return -jnp.mean(jax.nn.log_softmax(logits_BLV)[:, :, 0])
    grad = jax.jit(jax.grad(loss))
    jax.block_until_ready(grad(params))
    times, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(RUNS):
        start = time.perf_counter()
        jax.block_until_ready(grad(params))
        times.append(time.perf_counter() - start)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(f'{1000 * statistics.median(times):>6.0f} ms {faults / RUNS:>9,.0f} page faults')


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--worker', action='store_true')
    args = parser.parse_args()
    if args.worker:
        work()
        return
    for _ in range(args.rounds):
        for pages, setting in SETTINGS.items():
            out = subprocess.run([sys.executable, __file__, '--worker'], check=True, text=True,
                                 capture_output=True, env=os.environ | {'GLIBC_TUNABLES': setting})
            print(pages, out.stdout, end='', flush=True)


if __name__ == '__main__':
    main()
