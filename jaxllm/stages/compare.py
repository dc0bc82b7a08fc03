"""Comparison of trained models on the same prompts: judges, win rates, KL, lengths, refusals."""

import contextlib
import json

import jax
import numpy as np

from jaxllm.config import to_json, write_atomic
from jaxllm.evals import comparison, win_rate
from jaxllm.report import compare as pages
from jaxllm.report.run import write_report
from jaxllm.rl import best_of_n, rewards, rollout
from jaxllm.sharding import make_mesh
from jaxllm.stages import artifact, asked, lineage, reward_model
from jaxllm.stages import compare_samples as samples
from jaxllm.stages import compare_suites as suites
from jaxllm.stages.compare_setup import WORLD, prepare, template_of
from jaxllm.stages.world import world_spec
from jaxllm.train.progress import stage as say

OUTPUTS = 'results.json', 'items.jsonl', 'samples', 'report.html'


def describe(config):
    """What a comparison would do, as text (`--dry_run`)."""
    setup = prepare(config)
    judges = [*([WORLD] if setup.judge else []), *setup.specs]
    return '\n'.join([to_json(config), f'judges            {", ".join(judges)}', *(
        f'{name:<17} {base.path}, step {base.step:,}' for name, base in setup.opened.items())])


def run(config, workdir):
    """Samples every model, asks every judge, writes samples/, results.json and the report."""
    setup = prepare(config)
    tokenizer, template = template_of(setup.opened, config.reference)
    prompts = asked.read(setup.sources, setup.data, template, tokenizer, workdir)
    writer = jax.process_index() == 0
    if writer:
        world = {'world': world_spec(config.world).fingerprint} if 'world' in config else {}
        lineage.write_lineage(workdir, config, **world, roles={
            **{f'artefact/{name}': base.role for name, base in setup.opened.items()},
            **{f'reward/{name}': model.base.role for name, model in setup.learned.items()}})
    with contextlib.ExitStack() as stack:
        judges = _judges(setup, stack, workdir)
        rows = {name: _sampled(setup, name, prompts, judges, config.seed, workdir)
                for name in setup.entries}
        kls = _kls(setup, config.reference, prompts, rows)
        found = {name: _answers(setup, config.reference, name, part, prompts, judges, kls[name])
                 for name, part in rows.items()}
    known = suites.run(setup.evaluations, setup.opened, workdir)
    if not writer:
        return
    results = _results(setup, config, prompts, found)
    judge = next(iter(found[config.reference].scores))
    if known:
        results['suites'] = suites.summary(
            known, {name: found[name].scores[judge] for name in known},
            suites.before(setup.opened, config.reference, known), draws=setup.statistics.draws,
            seed=config.seed)
    write_atomic(workdir / 'items.jsonl', ''.join(
        json.dumps(row, ensure_ascii=False) + '\n' for row in suites.items(
            known, _outcomes(found, config.reference, prompts),
            {name: dict(zip((p.id for p in prompts), answers.finished, strict=True))
             for name, answers in found.items()})))
    write_atomic(workdir / 'results.txt', pages.text(results))
    write_atomic(workdir / 'results.json',
                 json.dumps(results, indent=1, ensure_ascii=False) + '\n')
    print(pages.text(results), end='')
    say(f'report: {write_report(workdir)}')


def _judges(setup, stack, workdir):
    """{name: judge(Answered records) -> float [N]} of rewards; `stack` ends their processes."""
    mesh = make_mesh()
    functions = {name: spec for name, spec in setup.specs.items() if spec.kind == 'function'}
    opened = rewards.open_rewards(functions, workdir / 'rewards') if functions else {}
    stack.callback(rewards.close_rewards, opened)

    def learned(model):
        params = model.load(mesh)

        def judge(records):
            ids = [model.encode(list(record.prompt), record.response) for record in records]
            return model.normalise(reward_model.score(
                params, model.model, ids, mesh=mesh,
                batch_size=min(setup.sampling.score_batch_size, len(ids))))
        return judge
    opened |= {name: learned(model) for name, model in setup.learned.items()}
    return {name: lambda records, name=name: rewards.score_all(
        {name: opened[name]}, records)[name] for name in setup.specs}


def _sampled(setup, name, prompts, judges, seed, workdir):
    entry = setup.entries[name]
    return samples.answers(name, entry, setup.opened[name],
                           lambda: artifact.load_base(setup.opened[name]), prompts, setup.sampling,
                           judges[entry.reward] if entry.reward else None, seed,
                           workdir / 'samples')


def _kls(setup, reference, prompts, rows):
    """{name: log pi - log reference of each answer [N], or None where prompts are other tokens}."""
    base, ref = setup.opened[reference], setup.entries[reference]
    reads = lambda base: (base.tokenizer().fingerprint,
                          base.template() and base.template().fingerprint)
    comparable = [name for name, entry in setup.entries.items()
                  if name != reference and entry.best_of == 1 and entry.temperature > 0
                  and ref.temperature > 0 and reads(setup.opened[name]) == reads(base)]
    found = dict.fromkeys(rows)
    if not comparable:
        return found
    model = artifact.load_base(base)
    ids = [samples.prompt_ids(model.template, model.conversation, model.tokenizer, prompt)
           for prompt in prompts]
    for name in comparable:
        theirs = samples.sequence_logprobs(model, ids, rows[name], ref.temperature, setup.sampling)
        found[name] = np.array([row['logprob'] for row in rows[name]]) - theirs
    return found


def _answers(setup, reference, name, rows, prompts, judges, kl):
    texts, tokens = [row['response'] for row in rows], [row['tokens'] for row in rows]
    finished = np.array([row['finished'] for row in rows])
    records = samples.answered(prompts, texts, tokens, finished)
    scores = {WORLD: np.asarray(setup.judge(prompts, texts), float)} if setup.judge else {}
    scores |= {judge: np.asarray(judges[judge](records), float) for judge in judges}
    entry, bound = setup.entries[name], None
    same = (setup.opened[name].role, entry.temperature) == (
        setup.opened[reference].role, setup.entries[reference].temperature)
    if entry.best_of > 1 and same:  # of the reference's own answers; else it bounds nothing
        bound = float(best_of_n.kl_bound(entry.best_of))
    return comparison.Answers(texts, tokens, finished, scores, kl, bound)


def _results(setup, config, prompts, found):
    ids, fields = [p.id for p in prompts], [p.fields for p in prompts]
    options = dict(draws=setup.statistics.draws, seed=config.seed)
    rows = []
    for name, answers in found.items():
        entry, base = setup.entries[name], setup.opened[name]
        rows.append({
            'artefact': name, 'method': entry.method or name, 'path': str(base.path),
            'step': base.step, 'temperature': entry.temperature, 'best_of': entry.best_of,
            'picked_by': entry.reward,
            **comparison.measured(answers, ids, rollout.repetition, **options),
            'judges': comparison.judged(answers, found[config.reference], ids, **options),
            'safety': comparison.safety(answers.texts, fields)})
    others = [row for row in rows if row['artefact'] != config.reference]
    target = setup.statistics.equal_kl or comparison.shared_kl(others)
    equal = None if target is None else {
        'target': max(target, 0.0),
        'rows': [{key: row[key] for key in ('method', 'artefact', 'at_kl', 'is_bound', 'is_over',
                                            'judges')}
                 for row in comparison.at_equal_kl(others, max(target, 0.0))]}
    return {'kind': 'comparison', 'reference': config.reference, 'prompts': len(prompts),
            'rows': rows, 'equal_kl': equal, 'metrics': _metrics(rows)}


def _outcomes(found, reference, prompts):
    """(judge, model, {prompt id: who has won}) of every model but the reference."""
    return [(judge, name, dict(zip((p.id for p in prompts), map(float, win_rate.outcomes(
        scores, found[reference].scores[judge])), strict=True)))
        for name, answers in found.items() if name != reference
        for judge, scores in answers.scores.items()]


def _metrics(rows):
    """{name: interval} as of an evaluation, which a sweep puts side by side."""
    return {f'{row["artefact"]}/{judge}/{name}': {**interval, 'unit': unit}
            for row in rows for judge, found in row['judges'].items()
            for name, unit in (('mean', 'score'), ('win_rate', 'share of prompts'))
            if (interval := found.get(name))}
