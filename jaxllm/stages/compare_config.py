"""The config of the comparison stage; experiments and own config files fill it in."""

import ml_collections

from jaxllm.stages.evaluate_config import evaluate_config


def compare_config(artefacts, reference):
    """Every leaf of a comparison; without prompts and judges.

    Args:
      artefacts: {name: artefact(...)}. reference: the name of the one that others are held to.
    """
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.compare'
    config.seed = 0
    config.artefacts = artefacts
    config.reference = reference
    config.data = ml_collections.ConfigDict(dict(
        prompts={}, max_prompts=256, max_prompt_tokens=128, max_reject_share=0.0))
    config.sampling = ml_collections.ConfigDict(dict(
        max_new_tokens=48, batch_size=0, score_batch_size=128))
    # Judges: learned ones and functions by name, and the hidden judge of a world.
    config.rewards = ml_collections.ConfigDict()
    config.eval = ml_collections.ConfigDict(dict(judge=''))
    # Suites of jaxllm/evals/catalogue.py that every run is asked; () = none.
    config.suites = ()
    config.settings = evaluate_config().settings
    config.statistics = ml_collections.ConfigDict(dict(draws=2000, equal_kl=0.0))
    return config


def artefact(path='', checkpoint='best', temperature=1.0, best_of=1, reward='', method=''):
    """Every leaf of a model to compare.

    Args:
      path: a run, a FILE.gguf or a folder of weights. checkpoint: 'best', 'last', a step
        such as '60', or 'all': each checkpoint that the run kept is a model of its own, and they
        are of one method.
      best_of: answers sampled; the one with the highest `reward`, of config.rewards, is taken.
      method: its group in the table at equal KL; '' = its own name.
    """
    return ml_collections.ConfigDict(dict(path=path, checkpoint=checkpoint,
                                          temperature=temperature, best_of=best_of, reward=reward,
                                          method=method))
