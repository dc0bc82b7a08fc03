"""The suites by name, and which of them suit a run."""

from jaxllm.errors import InputError
from jaxllm.evals import suites_facts, suites_recall, suites_world

SUITES = {
    'perplexity': suites_recall.perplexity_suite,
    'recall': suites_recall.recall_suite,
    'answers': suites_recall.answers_suite,
    'calibration': suites_recall.calibration_suite,
    'choice': suites_recall.choice_suite,
    'consistency': suites_facts.consistency_suite,
    'instructions': suites_world.instructions_suite,
    'safety': suites_world.safety_suite,
    'languages': suites_world.languages_suite,
    'citations': suites_facts.citations_suite,
    'skew': suites_facts.skew_suite,
    'extraction': suites_world.extraction_suite,
}
NEED_NO_WORLD = ('perplexity', 'choice', 'extraction')


def chosen(names, *, has_world, has_items, run):
    """The suites to run, in the order of SUITES; 'all' stands for all that suit the run.

    Raises:
      InputError: an unknown name, or a suite that asks about a world and there is none.
    """
    names = (names,) if isinstance(names, str) else names
    if not names:
        raise InputError("config.suites is empty; use ('all',) or some of " + ', '.join(SUITES))
    for name in names:
        if name not in (*SUITES, 'all'):
            raise InputError(f'config.suites: {name!r} is unknown; use all, {", ".join(SUITES)}')
        if not has_world and name in SUITES and name not in NEED_NO_WORLD:
            raise InputError(f'config.suites: {name!r} asks about the synthetic world, and '
                             f'config.run={run} was not trained in one (no config.world); leave '
                             f'it out, or use some of {", ".join(NEED_NO_WORLD)}')
        if name == 'choice' and not has_world and not has_items:
            raise InputError(f"config.suites: 'choice' has no items, since config.run={run} has no "
                             'world; give a JSONL file with --config.items_file=FILE')
    suits = lambda name: ((has_world or name in NEED_NO_WORLD)
                          and (name != 'choice' or has_world or has_items))
    return [name for name in SUITES if name in names or ('all' in names and suits(name))]
