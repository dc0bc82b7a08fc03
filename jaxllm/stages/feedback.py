"""Feedback on what a model really says: its own answers to prompts, ranked by the world's raters.

Of each prompt several answers are sampled, and a simulated rater orders them, once for each
criterion, with the noise that raters have (jaxllm/world/oracle.py). A reward model that has learned
from them is asked, later, about answers of the same kind; one that has learned from answers that
others wrote is not. With people in place of raters this is `jaxllm label`.
Ref: Stiennon et al. 2020 (arXiv 2009.01325); Ouyang et al. 2022 (arXiv 2203.02155), section 3.2.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from jaxllm import decode, rng
from jaxllm.config import check_keys, section, to_json, write_atomic
from jaxllm.data.dialogues import DialogueSpec
from jaxllm.errors import InputError
from jaxllm.report.run import write_report
from jaxllm.rl import rollout
from jaxllm.stages import artifact, asked, corpus, lineage
from jaxllm.stages import base as bases
from jaxllm.stages.world import check_learned, world_spec
from jaxllm.train.progress import stage as say
from jaxllm.world import oracle
from jaxllm.world.atlas import atlas
from jaxllm.world.features import Asked, Reader
from jaxllm.world.preferences import TIE

OUTPUTS = 'feedback.json',
_SECTIONS = 'stage', 'seed', 'run', 'checkpoint', 'data', 'sampling', 'raters'


@dataclasses.dataclass(frozen=True)
class DataConfig:
    prompts: object          # {name: DialogueSpec}, of a world
    max_prompts: int         # evenly from all; 0 = all
    max_prompt_tokens: int   # rendered; longer ones are rejected
    max_reject_share: float

    def __post_init__(self):
        if self.max_prompts < 0 or self.max_prompt_tokens < 1:
            raise InputError(f'data.max_prompts={self.max_prompts}, data.max_prompt_tokens='
                             f'{self.max_prompt_tokens}: expected at least 0 (all) and at least 1')


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    samples: int             # answers to each prompt; equal ones count once
    temperature: float
    max_new_tokens: int
    batch_size: int          # rows at once; 0 = all
    refill: bool

    def __post_init__(self):
        if self.samples < 2 or not self.temperature > 0 or self.max_new_tokens < 1:
            raise InputError(f'sampling: got {self}; expected samples >= 2, which are compared, '
                             'temperature > 0, or they would be equal, max_new_tokens >= 1')

    @property
    def sampling(self):
        return decode.SamplingConfig(max_new_tokens=self.max_new_tokens,
                                     temperature=self.temperature)


@dataclasses.dataclass(frozen=True)
class RatersConfig:
    kind: str                # of oracle.RATERS
    criteria: Any            # of oracle.CRITERIA; a file for each

    def __post_init__(self):
        if not self.criteria:
            raise InputError('raters.criteria is empty; use some of ' + ', '.join(oracle.CRITERIA))
        for criterion in self.criteria:
            oracle.rater(self.kind, criterion)


def prepare(config):
    """Checks all that needs no data. Returns (Base, DataConfig, sources, SamplingConfig, raters).
    """
    check_keys(config, (*_SECTIONS, 'world') if 'world' in config else _SECTIONS)
    data = section(DataConfig, config.data, 'data')
    sampling = section(SamplingConfig, config.sampling, 'sampling')
    raters = section(RatersConfig, config.raters, 'raters')
    artifact.check_checkpoint(config.checkpoint)
    if not config.run:
        raise InputError('config.run is empty; give the run whose model answers, e.g. '
                         '--config.run=runs/sft')
    base = bases.open_base(config.run, config.checkpoint, 'config.run')
    if base.template() is None:
        raise InputError(f'config.run={config.run} has no chat template, so that it answers no '
                         'prompt; give a run of experiments/sft.py')
    if not data.prompts:
        raise InputError('config.data.prompts is empty; add a source with a path')
    world = corpus.check_world(data.prompts, config)
    sources = [section(DialogueSpec, {**spec, **corpus.own(name, spec, world)},
                       f'data.prompts.{name}') for name, spec in data.prompts.items()]
    if any(spec.world is None for spec in sources):
        raise InputError('config.data.prompts: raters know the answers to prompts of a world alone '
                         "(paths 'world:NAME'); for other prompts use `jaxllm label`")
    check_learned('config.run', base.path, world)
    return base, data, sources, sampling, raters


def describe(config):
    """What would be asked, as text (`--dry_run`)."""
    base, _, sources, sampling, raters = prepare(config)
    return '\n'.join([to_json(config), f'model             {base.path}, step {base.step:,}',
                      f'prompts           {", ".join(spec.path for spec in sources)}',
                      f'answers to each   {sampling.samples}',
                      f'criteria          {", ".join(raters.criteria)}, by {raters.kind}'])


def run(config, workdir):
    """Writes `<criterion>.jsonl` of rankings, and feedback.json with how many."""
    base, data, sources, sampling, raters = prepare(config)
    model = artifact.load_base(base)
    prompts = asked.read(sources, data, model.template, model.tokenizer, workdir)
    say(f'{len(prompts):,} prompts, {sampling.samples} answers to each ...')
    with jax.set_mesh(model.mesh):
        drawn = rollout.sample(
            model.params, model.model, [prompt.ids for prompt in prompts],
            sampling, model.tokenizer, model.stop_ids, rng.key(config.seed, rng.SAMPLE))
    if jax.process_index():
        return
    spec = world_spec(config.world)
    reader = Reader.of(atlas(spec.seed, spec.scale, spec.intervention))
    counts = {}
    for criterion in raters.criteria:
        rows = list(rankings(prompts, drawn.texts, drawn.finished, reader,
                             oracle.rater(raters.kind, criterion), criterion, config.seed))
        if not rows:
            raise InputError(f'{config.run} gave {sampling.samples} equal answers to each of '
                             f'{len(prompts)} prompts, so that there is nothing to compare; raise '
                             'config.sampling.temperature, or use more prompts')
        counts[criterion] = len(rows)
        write_atomic(workdir / f'{criterion}.jsonl', ''.join(
            json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
    lineage.write_lineage(workdir, config, world=spec.fingerprint, roles={'run': base.role})
    write_atomic(workdir / 'feedback.json', json.dumps(
        {'prompts': len(prompts), 'samples': sampling.samples, 'rankings': counts}, indent=1))
    say(f'report: {write_report(workdir)}')
    say('rankings: ' + ', '.join(f'{name} {count:,}' for name, count in counts.items()))


def rankings(prompts, texts, finished, reader, who, criterion, seed):
    """Rows of responses and ranks, one of each prompt that has two different answers or more.

    Args:
      prompts: [N]. texts, finished: [N * S], the answers to each prompt one after the other; one
        that did not come to its end is left out, since a reward is read where an answer ends.
      who: an oracle.Rater. seed: of its noise, which is that of each prompt by its place.
    """
    samples = len(texts) // len(prompts)
    noise = np.random.default_rng([seed, oracle.CRITERIA.index(criterion)])
    draws = noise.random(len(prompts)), noise.gumbel(size=(len(prompts), samples))
    for i, prompt in enumerate(prompts):
        here = range(i * samples, (i + 1) * samples)
        answers = list(dict.fromkeys(texts[j].strip() for j in here if finished[j]))
        answers = [answer for answer in answers if answer]
        if len(answers) < 2:
            continue
        phi = reader.many([Asked.of(prompt.fields)] * len(answers), answers)
        utilities = phi @ who.weights(draws[0][i] < who.q)
        ranks = oracle.rank(utilities[None], draws[1][i:i + 1, :len(answers)], tie=TIE)[0]
        yield {'id': prompt.id, 'prompt': list(prompt.messages), 'responses': answers,
               'ranks': ranks.tolist(), 'rater': who.kind, 'criterion': criterion,
               'kind': prompt.fields['kind'], 'utilities': [round(float(u), 4) for u in utilities]}
