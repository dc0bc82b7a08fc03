"""What a model might have written instead: a line per token of its last answer."""

import numpy as np

_WIDTH = 14  # characters of a token shown
_OTHERS = 5


def table(tokens, logprobs, candidates, tokenizer):
    """Text: each token with its probability, a bar of it, and the likeliest other tokens.

    Probabilities are those at the temperature of the answer, before top-k and the like.

    Args:
      tokens: [T] ids. logprobs: [T]. candidates: (ids [T, A], logprobs [T, A]), likeliest first.
    """
    rows = [f'{"token":<{_WIDTH}} {"p":>6}            instead']
    for token, logprob, ids, others in zip(tokens, logprobs, *candidates, strict=True):
        share = float(np.exp(logprob))
        pairs = [(i, x) for i, x in zip(ids, others, strict=True) if i != token]
        instead = '  '.join(f'{shown(tokenizer, i)} {_percent(np.exp(x))}'
                            for i, x in pairs[:_OTHERS])
        rows.append(f'{shown(tokenizer, token):<{_WIDTH}} {_percent(share):>6} '
                    f'{"█" * round(10 * share):·<10} {instead}')
    return '\n'.join(rows)


def _percent(share):
    return f'{share:.0%}' if share >= 0.005 else '<1%'


def shown(tokenizer, token):
    """A token in quotes, cut and without characters that would steer the terminal."""
    text = repr(tokenizer.decode([int(token)], skip_special=False))
    return text if len(text) <= _WIDTH else text[:_WIDTH - 2] + "…'"
