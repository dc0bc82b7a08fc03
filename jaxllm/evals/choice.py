"""Multiple choice: the usual ways to turn log-probabilities of candidates into a choice."""

import numpy as np

from jaxllm.evals.scoring import score_candidates

# How candidates of different lengths are made comparable.
NORMALISATIONS = ('sum', 'token', 'char', 'pmi')


def normalised(scores, unconditional=None):
    """{normalisation: values per candidate}; the greatest is the choice.

      sum:   log p(candidate | prompt); the same order as log p of the whole sequence where tokens
             do not reach over the end of the prompt, and that is what is compared
      token: log p(candidate | prompt) / tokens
      char:  log p(candidate | prompt) / characters of the candidate (`acc_norm` of
             lm-evaluation-harness)
      pmi:   log p(candidate | prompt) - log p(candidate), only with `unconditional`

    Args:
      scores: Scores of an item.
      unconditional: log p(candidate) behind an empty prompt, per candidate.

    Ref: Holtzman et al. 2021 (arXiv 2104.08315) for pmi.
    """
    behind = scores.continuation_logprob
    values = {'sum': scores.full_logprob, 'token': behind / scores.num_tokens,
              'char': behind / scores.num_chars}
    if unconditional is not None:
        values['pmi'] = behind - unconditional
    return values


def probabilities(scores):
    """[candidates] softmax of log p of the whole sequences: belief restricted to the candidates."""
    exp = np.exp(scores.full_logprob - scores.full_logprob.max())
    return exp / exp.sum()


def choose(params, cfg, tokenizer, items, *, batch_size=1024):
    """What a model makes of items with candidates. Needs a mesh.

    Returns:
      A list of {'choice': index by log p of the whole, 'probs': [candidates], 'scores': Scores}.
    """
    scores = score_candidates(params, cfg, tokenizer, [item.prompt for item in items],
                              [item.candidates for item in items], batch_size=batch_size)
    # Ties go to the first candidate, which is what argmax does.
    return [{'choice': int(np.argmax(one.full_logprob)), 'probs': probabilities(one),
             'scores': one} for one in scores]


def unconditional(params, cfg, tokenizer, items, *, batch_size=1024):
    """[items] of log p(candidate) behind an empty prompt, per candidate. Needs a mesh."""
    texts = list(dict.fromkeys(text for item in items for text in item.candidates))
    scores = score_candidates(params, cfg, tokenizer, [''] * len(texts),
                              [[text] for text in texts], batch_size=batch_size)
    table = {text: float(one.full_logprob[0]) for text, one in zip(texts, scores, strict=True)}
    return [np.array([table[text] for text in item.candidates]) for item in items]
