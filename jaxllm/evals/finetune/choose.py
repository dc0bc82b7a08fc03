"""Which base to start from: candidates asked about held-out records before any training."""

import time

import jax
import numpy as np

from jaxllm.evals import statistics
from jaxllm.evals.finetune import metrics
from jaxllm.evals.finetune.asked import likelihood, replies
from jaxllm.models import transformer

RULE = ('The base that finds the right answers least surprising, in bits per byte of text (tokens '
        'differ between models), is recommended; of those whose intervals overlap with the best '
        'one, the smallest.')


def candidate(asked, name, held_out, measure, *, max_prompts=16, max_new_tokens=64):
    """One row of the comparison of bases.

    Returns:
      {'model', 'parameters', 'bits_per_byte', 'low', 'high', 'score', 'tokens_per_second'}.
    """
    seen = likelihood(asked, [x.messages for x in held_out])
    bits = seen.nll / np.log(2)
    interval = statistics.bootstrap(bits / np.maximum(seen.bytes, 1), draws=2000,
                                    statistic=lambda w: (w @ bits) / (w @ seen.bytes))
    some = list(held_out)[:max_prompts]
    ask = lambda: replies(asked, [x.prompt for x in some], max_new_tokens=max_new_tokens)
    given = ask()
    began = time.monotonic()
    # The second time nothing is compiled.
    words = sum(len(asked.tokenizer.encode(reply.text)) for reply in ask())
    seconds = time.monotonic() - began
    return {'model': name, 'parameters': num_params(asked.params),
            'bits_per_byte': interval.value, 'low': interval.low, 'high': interval.high,
            'score': float(np.mean([metrics.score(measure, reply.text, x.answer)
                                    for reply, x in zip(given, some, strict=True)])),
            'tokens_per_second': words / seconds, 'example': given[0].text}


def recommended(rows):
    """The name of the row that RULE recommends."""
    best = min(rows, key=lambda row: row['bits_per_byte'])
    close = [row for row in rows if not row['low'] > best['high']]
    return min(close, key=lambda row: (row['parameters'], row['bits_per_byte']))['model']


def num_params(params):
    """Parameters of a plain model."""
    return int(transformer.num_params(jax.tree.map(lambda x: x, params)))
