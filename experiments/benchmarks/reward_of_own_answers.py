"""What rewards are worth on the answers of the model that they are to improve.

    python experiments/benchmarks/reward_of_own_answers.py --run=runs/life/sft \\
        --reward=runs/life/reward_helpful --reward=runs/world_helpful

Sixteen answers to each of 256 test prompts of the run's world are sampled at temperature 1. Of each
reward it prints the win rate of the best of n by it against another answer of the same model, by
the world's hidden judge, the judge's mean score, and the share of pairs of answers to one prompt
that it orders like the judge. `expert` is the rater from whose rankings rewards learn.
"""

import argparse
import pathlib
import tempfile

import jax
import numpy as np

from jaxllm import rng
from jaxllm.config import load_file
from jaxllm.rl import rollout
from jaxllm.sharding import make_mesh
from jaxllm.stages import artifact, asked, evaluate, feedback, reward_model
from jaxllm.stages.run import start_jax
from jaxllm.world import oracle
from jaxllm.world.features import Asked, Reader

EXPERIMENTS = pathlib.Path(__file__).parents[1]
SAMPLES, PROMPTS, NUMBERS = 16, 256, (1, 2, 4, 8, 16)


def sampled(run):
    """(prompts, texts [N * SAMPLES], the run's world)."""
    section = evaluate.world_of(pathlib.Path(run))
    config = load_file(str(EXPERIMENTS / 'feedback.py'))
    config.run, config.seed = run, section['seed']
    config.world.scale = section['scale']
    for source in config.data.prompts.values():
        source.split = 'test'
    config.data.max_prompts, config.sampling.samples = PROMPTS, SAMPLES
    base, data, sources, sampling, _ = feedback.prepare(config)
    model = artifact.load_base(base)
    with tempfile.TemporaryDirectory() as folder:
        prompts = asked.read(sources, data, model.template, model.tokenizer, pathlib.Path(folder))
    with jax.set_mesh(model.mesh):
        drawn = rollout.sample(model.params, model.model, [prompt.ids for prompt in prompts],
                               sampling, model.tokenizer, model.stop_ids,
                               rng.key(5, rng.SAMPLE))  # not the answers that were ranked
    return prompts, drawn.texts, evaluate.world_from(section)


def best_of(gold_NS, scores_NS, n):
    """(mean gold of the best of the first n, its win rate against any answer to the prompt)."""
    picked = gold_NS[np.arange(len(gold_NS)), scores_NS[:, :n].argmax(axis=1)][:, None]
    wins = (picked > gold_NS + 1e-9) + 0.5 * (np.abs(picked - gold_NS) <= 1e-9)
    return picked.mean(), wins.mean()


def ordered_alike(gold_NS, scores_NS):
    """Share of the pairs of answers to one prompt, unequal to the judge, that are ordered alike;
    what scores call equal counts half."""
    differ = lambda x: x[:, :, None] - x[:, None, :]
    gold, mine = differ(gold_NS), differ(scores_NS)
    apart = np.triu(np.ones(gold.shape[1:], bool), 1) & (np.abs(gold) > 1e-9)
    alike = np.sign(mine[apart]) == np.sign(gold[apart])
    return np.mean(np.where(np.abs(mine[apart]) > 1e-9, alike, 0.5))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', required=True, help='a run of experiments/sft.py in a world')
    parser.add_argument('--reward', action='append', default=[], help='a reward run; repeatable')
    args = parser.parse_args()
    start_jax()
    prompts, texts, world = sampled(args.run)
    questions = [Asked.of(prompt.fields) for prompt in prompts for _ in range(SAMPLES)]
    phi = Reader.of(world).many(questions, texts)
    square = lambda values: np.asarray(values).reshape(len(prompts), SAMPLES)
    gold = square(oracle.hidden_utility(phi))
    scores = {'expert': square(oracle.rater('expert', 'helpful').reward(phi))}
    for path in args.reward:
        model = reward_model.open_reward(path)
        ids = [model.encode(list(prompt.messages), texts[i * SAMPLES + j])
               for i, prompt in enumerate(prompts) for j in range(SAMPLES)]
        mesh = make_mesh()
        scores[path] = square(reward_model.score(model.load(mesh), model.model, ids, mesh=mesh,
                                                 batch_size=256))
    for name, found in scores.items():
        print(f'{name}: {ordered_alike(gold, found):.3f} of pairs like the hidden judge')
        for n in NUMBERS:
            mean, rate = best_of(gold, found, n)
            print(f'  best of {n:>2}: wins {rate:.3f}, mean score {mean:.2f}')


if __name__ == '__main__':
    main()
