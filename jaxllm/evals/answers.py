"""Free answers: greedy or sampled text behind a prompt, and what is read from it.

An answer is the text up to the first line break. Its value is the first phrase of it, up to one of
`. , ; : ! ?`; its confidence is the probability that the model gave to the tokens of that phrase.
A chat model answers in sentences of its own: it is right if the value stands anywhere in them.
"""

import dataclasses
import math
import re
import unicodedata

from jaxllm import decode

_END_OF_VALUE = re.compile('[.,;:!?\n]')


@dataclasses.dataclass(frozen=True)
class Answer:
    """text: stripped, up to where it was stopped. value: its first phrase.

    chat: of a chat model.
    """
    text: str
    value: str
    confidence: float
    chat: bool = False


def normalise(text):
    """Words in lower case: without accents on letters, punctuation, or an article at the start."""
    text = unicodedata.normalize('NFKD', text).casefold()
    text = ''.join(c for c in text if not unicodedata.combining(c))
    words = re.findall(r'\w+', text)
    return ' '.join(words[1:] if words[:1] in (['a'], ['an'], ['the']) else words)


def says(text, value):
    """Whether a text begins with a value: the same words after `normalise`, then anything."""
    text, value = normalise(text).split(), normalise(value).split()
    return bool(value) and text[:len(value)] == value


def says_somewhere(text, value):
    """Whether the words of a value stand together in a text, after `normalise`."""
    value = normalise(value)
    return bool(value) and f' {value} ' in f' {normalise(text)} '


def generate(params, cfg, tokenizer, prompts, *, max_new_tokens=24, temperature=0.0, seed=0,
             batch_size=256, stop_strings=('\n',), encode=None, stop_ids=()):
    """Answers to prompts, greedy (temperature 0) or sampled. Needs a mesh.

    Args:
      encode: prompt -> token ids, of a chat model; default: BOS and the text.
      stop_ids: what ends an answer; default: the end of text.

    Returns:
      A list of Answers.
    """
    if not prompts:
        return []
    out = decode.generate(
        params, cfg, [encode(prompt) if encode else [tokenizer.bos_id, *tokenizer.encode(prompt)]
                      for prompt in prompts],
        decode.SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature),
        stop_ids=stop_ids or (tokenizer.eos_id,), pad_id=tokenizer.pad_id, seed=seed,
        stop_strings=stop_strings, tokenizer=tokenizer, batch_size=batch_size)
    return [_answer(tokenizer, *row, chat=encode is not None)
            for row in zip(out.tokens, out.logprobs, out.texts, strict=True)]


def _answer(tokenizer, tokens, logprobs, text, *, chat):
    text = text.strip()
    line = text.split('\n')[0]
    value = _END_OF_VALUE.split(line)[0].strip()
    # Tokens that begin before the end of the value are its tokens.
    end = len(text[:text.find(value) + len(value)].encode())
    lead, size, total = True, 0, 0.0
    for token, logprob in zip(tokens, logprobs, strict=True):
        if size >= end and value:
            break
        raw = tokenizer.token_bytes(token)
        # White space before the answer was stripped from it.
        size += len(raw.lstrip() if lead else raw)
        lead = lead and not raw.strip()
        total += float(logprob)
    return Answer(text, value, min(math.exp(total), 1.0), chat)
