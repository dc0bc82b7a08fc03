"""One prompt, its text given out piece by piece as it is written."""

from jaxllm.decode.batch import Runner, push, row_result
from jaxllm.decode.generation import check_prompts, make_request, to_generation
from jaxllm.decode.text import TextTail

# Tokens after which the text is looked at first; then every _CHUNK: the first words come soon.
_FIRST = (1, 2, 4, 8)
_CHUNK = 8


def stream(params, cfg, prompt_ids, sampling, tokenizer, *, stop_ids=(), pad_id=0, seed=0,
           stop_strings=(), top_candidates=0, row_id=0, vocab_size=0):
    """Yields pieces of text; together they are `generate`'s text of the same arguments.

    No piece ends within a character, and none holds what may yet become a stop string. Arguments as
    `generate`; the generator's return value is the Generation of the one row.
    """
    request = make_request(params, cfg, sampling, stop_ids, stop_strings, tokenizer, pad_id, seed,
                           top_candidates, vocab_size)
    runner = Runner(request, check_prompts([prompt_ids], request), [row_id])
    return _pieces(request, runner)


def _pieces(request, runner):
    tail, limit = TextTail(request.stop_strings), request.sampling.max_new_tokens
    read = end = 0
    done = False
    while not done:
        end = next((size for size in _FIRST if size > end), end + _CHUNK)
        runner.advance(min(end, limit))
        step, done_B, counts_B, out = runner.read()
        read = push(request, tail, out['tokens'][0], read, counts_B[0])
        done = bool(tail.stopped or done_B[0] or end >= limit)
        if piece := tail.take(final=done):
            yield piece
    row = row_result(request, tail, {name: x[0, :read] for name, x in out.items()})
    return to_generation([row], int(step))
