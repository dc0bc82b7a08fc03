"""What a run of reinforcement learning has gained on its held-out prompts, paired by prompt.

    python experiments/benchmarks/gain_of_rl.py runs/dapo runs/rloo

Of each run the mean reward of its answers before training and after its last evaluation, and the
difference with the interval of a bootstrap over prompts.
"""

import argparse
import json
import pathlib

import numpy as np

from jaxllm.evals import statistics


def rewards(file):
    """{prompt: reward}."""
    rows = map(json.loads, file.read_text(encoding='utf-8').splitlines())
    return {row['id']: row['reward'] for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=pathlib.Path)
    for run in parser.parse_args().runs:
        files = sorted((run / 'answers').glob('*.jsonl'))
        if len(files) < 2:
            raise SystemExit(f'{run} has {len(files)} evaluations with answers; expected the '
                             'directory of a run of experiments/grpo.py or ppo.py, with 2 or more')
        first, last = files[0], files[-1]
        before, after = rewards(first), rewards(last)
        gain = statistics.bootstrap(np.array([after[id] - before[id] for id in before]), draws=4000)
        print(f'{run.name}: {np.mean(list(before.values())):.3f} to '
              f'{np.mean(list(after.values())):.3f} at step {int(last.stem)}, {gain.value:+.3f} '
              f'[{gain.low:.3f}, {gain.high:.3f}] of {len(before)} prompts')


if __name__ == '__main__':
    main()
