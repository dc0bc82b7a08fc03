"""A model of this package as a model of EleutherAI's lm-evaluation-harness (extra `eval`).

Import this module only where `lm_eval` is installed; `harness.evaluate` is the way in.
"""

import json

from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.evals.token_scores import score_ends

# Settings of a request that SamplingConfig has under the same name.
_SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty')
# Without a maximum of its own, a request generates at most so many tokens.
_MAX_GEN_TOKENS = 256


class HarnessModel(LM):
    """Answers the harness's three kinds of request. Needs a mesh: run under `jax.set_mesh`.

    Every text starts with one BOS, as in training; none is added where one stands already, since
    text never becomes a special token. Where a context ends and its continuation begins is decided
    as the harness's own adapter for Transformers does it: white space at the end of a context moves
    to the continuation, and the continuation is what the tokens of the whole have behind as many
    tokens as the context has alone.
    """

    def __init__(self, params, cfg, tokenizer, *, max_length, batch_size=32, seed=0):
        """Args:
          params, cfg, tokenizer: a model, its ModelConfig and its Tokenizer.
          max_length: tokens that the model sees at once; longer texts lose their beginning.
          batch_size: rows at once.
          seed: of generation at a temperature above 0.
        """
        super().__init__()
        if max_length < 2:
            raise InputError(f'max_length={max_length} must be at least 2')
        if cfg.positions == 'learned' and max_length > cfg.max_seq_len:
            raise InputError(f'max_length={max_length} is more than the {cfg.max_seq_len} learned '
                             f'positions of the model; use at most {cfg.max_seq_len}')
        if batch_size < 1:
            raise InputError(f'batch_size={batch_size} must be at least 1')
        self._params, self._cfg, self._tokens = params, cfg, tokenizer
        self.max_length, self._batch_size, self._seed = max_length, batch_size, seed

    def get_model_info(self):
        """What the harness writes beside its results."""
        return {'max_length': self.max_length, 'vocab_size': self._cfg.vocab_size,
                'tokenizer': self._tokens.name}

    def loglikelihood(self, requests, disable_tqdm=False):
        """[(log p(continuation | context), greedy decoding writes it)]; an empty context is BOS."""
        pairs = [self.encode_pair(*request.args) for request in requests]
        return self._score(pairs, [request.args[1] for request in requests])

    def encode_pair(self, context, continuation):
        """(ids of BOS and the context, ids of the continuation)."""
        bare = context.rstrip()
        continuation = context[len(bare):] + continuation
        head = [self._tokens.bos_id, *self._tokens.encode(bare)]
        tail = [self._tokens.bos_id, *self._tokens.encode(bare + continuation)][len(head):]
        # A token over the boundary can leave nothing behind it: then each part is cut alone.
        return head, tail or self._tokens.encode(continuation)

    def _score(self, pairs, texts):
        sequences, starts = [], []
        for (head, tail), text in zip(pairs, texts, strict=True):
            if len(tail) > self.max_length:
                raise InputError(f'the continuation {text[:60]!r} has {len(tail)} tokens, and the '
                                 f'model sees {self.max_length} at once; use a larger max_length '
                                 'or shorter choices')
            # The last token is only predicted, so that one more fits.
            ids = (head + tail)[-(self.max_length + 1):]
            sequences.append(ids)
            starts.append(len(ids) - len(tail))
        totals, greedy = score_ends(self._params, self._cfg, sequences, starts,
                                    batch_size=self._batch_size)
        return list(zip(totals.tolist(), greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """[log p(text | BOS)]; long texts in windows of `max_length`, every token counted once."""
        pairs, owners = [], []
        for i, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self._tokens.encode(request.args[0]), self._tokens.bos_id, self.max_length, 1)
            for window in map(make_disjoint_window, windows):
                pairs.append(window)
                owners.append(i)
        totals = [0.0] * len(requests)
        scores = self._score(pairs, [requests[i].args[0] for i in owners])
        for i, (logprob, _) in zip(owners, scores, strict=True):
            totals[i] += logprob
        return totals

    def generate_until(self, requests, disable_tqdm=False):
        """The text behind each context, up to a stop string, EOS or the maximum of tokens."""
        texts, groups = [''] * len(requests), {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        for members in groups.values():
            sampling, until = self._settings(requests[members[0]].args[1])
            room = self.max_length - sampling.max_new_tokens
            contexts = [[self._tokens.bos_id, *self._tokens.encode(requests[i].args[0])][-room:]
                        for i in members]
            # Requests are told apart by their place, so that repeated ones differ.
            out = decode.generate(
                self._params, self._cfg, contexts, sampling, stop_ids=(self._tokens.eos_id,),
                pad_id=self._tokens.pad_id, seed=self._seed, stop_strings=until,
                tokenizer=self._tokens, batch_size=self._batch_size, row_ids=members)
            for i, text in zip(members, out.texts, strict=True):
                texts[i] = text
        return texts

    def _settings(self, settings):
        """(SamplingConfig, stop strings) of a request's generation settings."""
        default = min(_MAX_GEN_TOKENS, self.max_length // 2)
        settings = normalize_gen_kwargs(settings, default)
        until = tuple(text for text in settings.pop('until') if text)
        length = settings.pop('max_gen_toks')
        sample = settings.pop('do_sample')
        if unknown := settings.keys() - set(_SAMPLING):
            raise InputError(f'generation_kwargs of a task has {sorted(unknown)}; expected until, '
                             f'max_gen_toks, do_sample and {", ".join(_SAMPLING)}; remove them')
        if length >= self.max_length:
            raise InputError(f'a task generates max_gen_toks={length} tokens, and the model sees '
                             f'{self.max_length} at once; use a smaller max_gen_toks in the task, '
                             'or a larger max_length')
        if not sample:
            settings['temperature'] = 0.0
        sampling = decode.SamplingConfig(max_new_tokens=length, **settings)
        return sampling, until
