"""How long it takes to make a world and to write all its datasets, on one core.

    python experiments/benchmarks/world_speed.py --scale=nano
"""

import argparse
import pathlib
import tempfile
import time

from jaxllm.world.atlas import atlas
from jaxllm.world.datasets import DATASETS
from jaxllm.world.publish import publish
from jaxllm.world.spec import WorldSpec


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--scale', default='nano')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    spec = WorldSpec(args.seed, args.scale)
    start = time.perf_counter()
    world = atlas(spec.seed, spec.scale, spec.intervention)
    total = time.perf_counter() - start
    print(f'{"dataset":<15} {"rows":>10} {"made, s":>9} {"written, s":>11} {"rows/s":>10}')
    print(f'{"the world":<15} {"":>10} {total:>9.2f}')
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, rows) in DATASETS.items():
            start = time.perf_counter()
            count = sum(1 for _ in rows(world))
            made = time.perf_counter() - start
            start = time.perf_counter()
            publish(pathlib.Path(folder), spec, [name], make_world=lambda *spec: world)
            written = time.perf_counter() - start  # making included
            total += written
            print(f'{name:<15} {count:>10,} {made:>9.2f} {written:>11.2f} '
                  f'{count / written:>10,.0f}')
    print(f'{"in all":<15} {"":>10} {"":>9} {total:>11.2f}')


if __name__ == '__main__':
    main()
