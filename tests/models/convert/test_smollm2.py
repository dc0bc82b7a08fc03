"""A real pretrained model, SmolLM2-135M-Instruct, from the package index.

What our code says of it is computed once, in a process of its own: with one device and without the
compiler settings that make tests of tiny programs quick.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

reference = pytest.importorskip('reference')

from jaxllm.data.fetch import fetch  # noqa: E402
from jaxllm.errors import RunError  # noqa: E402

pytestmark = pytest.mark.pretrained
ROOT = pathlib.Path(__file__).parents[3]
TEXT = ('Alice was beginning to get very tired of sitting by her sister on the bank, and of having '
        'nothing to do: once or twice she had peeped into the book her sister was reading.')
TALK = [{'role': 'user', 'content': 'Name 3 fruits, please.'},
        {'role': 'assistant', 'content': 'Apple, pear, plum.'},
        {'role': 'user', 'content': 'And 12 more?'}]
_SCRIPT = '''
import json, sys
import jax, numpy as np
from jaxllm import decode
from jaxllm.models import transformer
from jaxllm.models.convert import foreign, open_model
from jaxllm.stages import artifact
from jaxllm.stages.base import params_like
path, out, text, talk = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
model = artifact.load(path)
greedy = decode.SamplingConfig(max_new_tokens=12, temperature=0.0)
ids = np.array([model.tokenizer.encode(text)], np.int32)
apply = jax.jit(lambda p, x: transformer.apply(p, model.model, x))
with jax.set_mesh(model.mesh):
    plain, said = (decode.generate(model.params, model.model, [prompt], greedy,
                                   stop_ids=model.stop_ids, tokenizer=model.tokenizer)
                   for prompt in (model.tokenizer.encode('The capital of France is'),
                                  model.prompt('What is the capital of France?')))
    logits = np.asarray(apply(model.params, ids))[0]
    foreign.unpermuted = lambda tensor, heads: tensor
    wrong = np.asarray(apply(open_model(path).load(params_like(model.model, model.mesh)), ids))[0]
np.savez(out, logits=logits, wrong=wrong, ids=ids[0], talk=model.conversation(talk))
print(json.dumps([plain.texts[0], said.texts[0], said.finish[0]]))
'''


@pytest.fixture(scope='module')
def path():
    # The cache of the user, so that a model is downloaded once and not by every test run.
    try:
        return fetch('smollm2', pathlib.Path('~/.cache/jaxllm/data').expanduser())
    except RunError as error:
        pytest.skip(f'no package index: {error}')


@pytest.fixture(scope='module')
def ours(path, tmp_path_factory):
    """(arrays, texts) of our own code."""
    out = tmp_path_factory.mktemp('smollm2') / 'ours.npz'
    done = subprocess.run(
        [sys.executable, '-c', _SCRIPT, path, out, TEXT, json.dumps(TALK)], check=False, text=True,
        capture_output=True, timeout=600, env=os.environ | {
            'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    return np.load(out), json.loads(done.stdout)


def test_it_knows_the_capital_of_france(ours):
    plain, said, finish = ours[1]
    assert plain.startswith(' Paris')
    assert (said, finish) == ('The capital of France is Paris.', 'stop')


def test_it_is_what_transformers_reads(ours, path):
    """Logits, token ids and the rendered template, against Transformers' own GGUF loader."""
    load = dict(gguf_file=path.name, dtype='float32')
    theirs = reference.transformers.AutoModelForCausalLM.from_pretrained(path.parent, **load).eval()
    tok = reference.transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = ours[0]['ids']
    assert tok(TEXT, add_special_tokens=False)['input_ids'] == ids.tolist()
    assert ours[0]['talk'].tolist() == tok.apply_chat_template(
        TALK, add_generation_prompt=True, return_dict=False)
    np.testing.assert_allclose(ours[0]['logits'], reference.logits(theirs, ids[None])[0], atol=2e-3,
                               rtol=1e-3)


def test_the_order_of_rotary_rows_matters(ours):
    """Without undoing llama.cpp's order of the rows of q and k the perplexity is threefold."""
    arrays = ours[0]

    def perplexity(logits):
        logits, targets = logits[:-1].astype(np.float64), arrays['ids'][1:]
        top = logits.max(1, keepdims=True)
        lse = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
        return np.exp(np.mean(lse - logits[np.arange(len(targets)), targets]))
    assert perplexity(arrays['logits']) < 40
    assert perplexity(arrays['wrong']) > 2.5 * perplexity(arrays['logits'])
