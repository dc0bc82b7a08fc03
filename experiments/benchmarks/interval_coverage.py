"""How often nominal 95% intervals contain the truth, and what verdicts say where nothing is true.

    python experiments/benchmarks/interval_coverage.py

Simulated, with a fixed seed, in under a minute. BUILD_NOTES.md has what it printed.
"""

import argparse

import numpy as np

from jaxllm.evals import effects, statistics, verdict


def coverage(repeat, make, truth):
    """Share of intervals make(rng) that contain the truth."""
    found = [make(np.random.default_rng(seed)) for seed in range(repeat)]
    return np.mean([interval.low <= truth <= interval.high for interval in found])


def clustered(rng, num, known):
    """The interval of a mean of `num` clusters of four items that share their chance."""
    chances = np.repeat(rng.beta(1, 1, num), 4)
    clusters = np.repeat(np.arange(num), 4) if known else None
    return statistics.bootstrap((rng.random(4 * num) < chances).astype(float), clusters=clusters,
                                draws=1000)


def seeds(rng, num):
    return statistics.across_seeds(rng.normal(0.0, 1.0, num))


def no_effect(rng, num):
    """The verdict on two arms that differ by chance alone, of 128 entities with two items each."""
    rows = {}
    for seed in range(num):
        chances = np.repeat(rng.beta(1, 1, 128), 2)
        rows[seed] = {arm: {'subject': np.repeat(np.arange(128), 2),
                            'correct': (rng.random(256) < chances).astype(float)}
                      for arm in ('a', 'b')}
    rule = verdict.Rule('none', 'a is better', effects.difference('a', 'b', effects.mean()))
    return verdict.judge(rule, rows, draws=1000).verdict


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeat', type=int, default=600)
    repeat = parser.parse_args().repeat
    for share in (0.02, 0.1, 0.5):
        print(f'share {share}, 200 items: ' + format(coverage(
            repeat, lambda rng, p=share: statistics.bootstrap(
                (rng.random(200) < p).astype(float), draws=1000), share), '.3f'))
    for num in (10, 30, 256):
        found = coverage(repeat, lambda rng, n=num: clustered(rng, n, True), 0.5)
        print(f'{num} clusters of 4: {found:.3f}')
    print(f'256 clusters, ignored: {coverage(repeat, lambda r: clustered(r, 256, False), .5):.3f}')
    for num in (3, 5, 10):
        print(f'{num} seeds: {coverage(repeat, lambda rng, n=num: seeds(rng, n), 0.0):.3f}')
    for num in (3, 5):
        names = [no_effect(np.random.default_rng(seed), num) for seed in range(repeat // 2)]
        print(f'{num} seeds without an effect: ' + ', '.join(
            f'{name} {names.count(name) / len(names):.3f}' for name in sorted(set(names))))


if __name__ == '__main__':
    main()
