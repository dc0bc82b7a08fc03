"""Seconds to ask a model 1,000 questions, each among 24 values and in free generation.

    python experiments/benchmarks/recall_speed.py --run=runs/world

`run` was trained in a synthetic world. Compilation counts (with --cold even where programs were
cached by earlier runs), loading the run and drawing the world do not.
"""

import argparse
import pathlib
import tempfile
import time

import jax

from jaxllm.config import load
from jaxllm.evals import answers, choice, world_items
from jaxllm.evals.items import spread
from jaxllm.stages import artifact, evaluate
from jaxllm.stages.run import start_jax

_CONFIG = pathlib.Path(__file__).parents[1] / 'evaluate.py'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--run', required=True)
    parser.add_argument('--questions', type=int, default=1000)
    parser.add_argument('--cold', action='store_true', help='compile everything anew')
    args = parser.parse_args()
    start_jax()
    if args.cold:
        jax.config.update('jax_compilation_cache_dir', tempfile.mkdtemp())
    config = load([f'--config={_CONFIG}', f'--config.run={args.run}'])
    settings, _, _, section = evaluate.prepare(config)
    run = artifact.load(args.run)
    items = [item for item in world_items.questions(evaluate.world_from(section), 'all')
             if (item.kind, item.tags['style']) == ('direct', 'qa')]
    items = spread(items, args.questions)
    model = run.params, run.model, run.tokenizer
    print(f'{len(items):,} questions, {sum(len(item.candidates) for item in items):,} candidates, '
          f'{sum(x.size for x in jax.tree.leaves(run.params)):,} parameters')
    with jax.set_mesh(run.mesh):
        for name, ask in (
                ('restricted', lambda: choice.choose(*model, items,
                                                     batch_size=settings.score_batch)),
                ('free', lambda: answers.generate(
                    *model, [item.prompt for item in items],
                    max_new_tokens=settings.max_new_tokens,
                    batch_size=settings.generate_batch))):
            for when in ('first', 'again'):
                wall, cpu = time.perf_counter(), time.process_time()
                ask()
                print(f'{name:<10} {when}: {time.perf_counter() - wall:6.1f} s, '
                      f'{time.process_time() - cpu:6.1f} CPU-seconds', flush=True)


if __name__ == '__main__':
    main()
