"""The comparison stage: answers sampled once, KL by hand, win rates, lineage, bad input."""

import dataclasses
import json

import jax
import ml_collections
import numpy as np
import pytest
import runs
import toy_models

from jaxllm.data import chat
from jaxllm.data.tokenizer import byte_tokenizer
from jaxllm.errors import InputError
from jaxllm.models import transformer
from jaxllm.models.convert import TreeWeights, export_hf
from jaxllm.sharding import make_mesh
from jaxllm.stages import artifact, compare, compare_setup
from jaxllm.stages.compare_config import artefact, compare_config
from jaxllm.stages.rl_config import function_reward, prompt_source

PROMPTS = 7


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """A random base model, never written to, and the same as a chat model."""
    folder = tmp_path_factory.mktemp('compared')
    tokenizer, template = byte_tokenizer(), chat.load_template('plain')
    model = toy_models.config('llama', vocab_size=tokenizer.vocab_size, num_layers=1,
                              max_seq_len=64)
    with jax.set_mesh(make_mesh()):
        weights = TreeWeights(toy_models.params(model))
    export_hf(folder / 'base', model, weights, tokenizer, None)
    export_hf(folder / 'chat', model, weights, tokenizer, template,
              stop_ids=chat.stop_ids(template, tokenizer))
    with open(folder / 'prompts.jsonl', 'w', encoding='utf-8') as file:
        for i in range(PROMPTS):
            file.write(json.dumps({'id': f'p{i}', 'prompt': f'number {i}', 'answerable': i > 2,
                                   'kind': 'unsafe' if i == 6 else 'fact'}) + '\n')
    return folder


def make(base, **changes):
    """A config of five models, and a judge that likes long answers."""
    chat_run, thrice = str(base / 'chat'), dict(best_of=3, reward='long', method='best_of_n')
    config = compare_config(dict(
        ref=artefact(chat_run, 'last'), again=artefact(chat_run, 'last'),
        cold=artefact(chat_run, 'last', temperature=0.5),
        plain=artefact(str(base / 'base'), 'last'),
        best=artefact(chat_run, 'last', **thrice)), 'ref')
    config.data.prompts = dict(mine=prompt_source(path=str(base / 'prompts.jsonl')))
    config.rewards = dict(long=function_reward('jaxllm.rl.verifiers.length', unit='characters',
                                               target=40, width=40))
    config.sampling.update(max_new_tokens=5, score_batch_size=4)
    config.statistics.draws = 60
    with config.unlocked():
        for key, value in changes.items():
            config.update_from_flattened_dict({key: value})
    return config


def rows_of(workdir, name):
    return runs.records(workdir, file=f'samples/{name}.jsonl')


def _chosen(logits_TV, tokens_T):
    logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    return logprobs_TV[np.arange(len(tokens_T)), tokens_T].sum()


def test_models_side_by_side(base, tmp_path, monkeypatch):
    config = make(base)
    compare.run(config, tmp_path)
    results = json.loads((tmp_path / 'results.json').read_text())
    by_name = {row['artefact']: row for row in results['rows']}
    assert list(by_name) == ['ref', 'again', 'best', 'cold', 'plain']  # the reference is first
    assert results['prompts'] == PROMPTS

    # The same model answers the same and is where the reference is.
    assert by_name['again']['kl']['value'] == pytest.approx(0, abs=1e-4)
    again = by_name['again']['judges']['long']
    assert again['win_rate']['value'] == 0.5 == again['length_controlled']['value']
    assert 'win_rate' not in by_name['ref']['judges']['long'] and by_name['ref']['kl'] is None
    # The best of three is at least as long as one answer could be by chance.
    best, mean = by_name['best'], lambda row: row['judges']['long']['mean']['value']
    assert mean(best) >= mean(by_name['ref'])
    assert best['kl'] is None and best['kl_bound'] == pytest.approx(np.log(3) - 2 / 3)
    assert by_name['plain']['kl'] is None  # it reads another prompt
    assert by_name['cold']['safety']['abstains_unanswerable']['n'] == 3
    assert [row['method'] for row in results['equal_kl']['rows']] == ['again', 'best_of_n', 'cold']

    # KL by hand: the whole distribution at either temperature, token by token.
    model = artifact.load(base / 'chat', 'last')
    total, apply = [], jax.jit(transformer.apply, static_argnums=1)
    for i, row in enumerate(rows_of(tmp_path, 'cold')):
        ids = model.conversation([{'role': 'user', 'content': f'number {i}'}])
        tokens = np.tile([*ids, *row['tokens']], (8, 1))  # a row for each device
        with jax.set_mesh(model.mesh):
            logits = np.asarray(apply(model.params, model.model, tokens)[0], float)
        logits = logits[len(ids) - 1:-1]
        total.append(_chosen(logits / 0.5, row['tokens']) - _chosen(logits, row['tokens']))
    assert by_name['cold']['kl']['value'] == pytest.approx(np.mean(total), abs=2e-3)
    assert by_name['cold']['kl']['value'] > 0.01

    parents = json.loads((tmp_path / 'lineage.json').read_text())['parents']
    assert set(parents) == {f'artefact/{name}' for name in by_name}
    report = (tmp_path / 'report.html').read_text()
    for words in ('Win rates', 'At equal KL', 'upper bound', 'Answers side by side', 'number 3'):
        assert words in report
    assert 'upper bound' in (tmp_path / 'results.txt').read_text()

    # Started again: what was sampled stays, what is missing or of another state is sampled anew.
    first = (tmp_path / 'results.json').read_bytes()
    loaded = []
    load = artifact.load_base
    monkeypatch.setattr(artifact, 'load_base', lambda base: loaded.append(base) or load(base))
    (tmp_path / 'samples' / 'plain.jsonl').unlink()
    compare.run(config, tmp_path)
    assert [opened.path.name for opened in loaded] == ['base', 'chat']  # chat: log-probs
    assert (tmp_path / 'results.json').read_bytes() == first


@pytest.mark.parametrize('changes, parts', [
    ({'reference': 'nobody'}, ["'nobody'", 'again']),
    ({'reference': 'best'}, ['best of several']),
    ({'artefacts.cold.path': ''}, ['artefacts.cold.path is empty']),
    ({'artefacts.cold.path': 'nowhere'}, ['artefacts.cold', 'does not exist']),
    ({'artefacts.cold.checkpoint': 'first'}, ["'first'", 'best']),
    ({'artefacts.cold.checkpoint': '60'}, ["artefacts.cold.checkpoint='60'", 'no run']),
    ({'artefacts.cold.checkpoint': 'all'}, ["artefacts.cold.checkpoint='all'", 'no run']),
    ({'artefacts.ref.checkpoint': 'all'}, ["'ref' has checkpoint='all'", 'held to one']),
    ({'artefacts.cold.best_of': 2}, ['best_of=2', 'picked by a reward']),
    ({'artefacts.best.temperature': 0.0}, ['all answers are the same']),
    ({'artefacts.best.reward': 'short'}, ["'short'", 'long']),
    ({'eval.judge': 'world'}, ['config.world']),
    ({'statistics.draws': 0}, ['draws']), ({'data.prompts': {}}, ['data.prompts is empty'])])
def test_bad_input(base, changes, parts):
    with pytest.raises(InputError) as error:
        compare.prepare(make(base, **changes))
    assert all(part in str(error.value) for part in parts), error.value


def test_no_judge_and_no_chat_model(base):
    config = make(base)
    config.rewards, config.artefacts.best = {}, artefact(str(base / 'chat'), 'last')
    with pytest.raises(InputError, match='no judge'):
        compare.prepare(config)
    config = make(base)
    for name in config.artefacts:
        config.artefacts[name].path = str(base / 'base')
    with pytest.raises(InputError, match='chat template'):
        compare.prepare(config)


def test_a_model_of_another_world(base, monkeypatch, tmp_path):
    calm = dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')
    config = make(base, world=ml_collections.ConfigDict(dict(
        seed=0, scale='nano', intervention=calm)))
    config.data.prompts = dict(pairs=prompt_source(path='world:pairs', split='test'))
    compare.prepare(config)  # model files, which say nothing of a world

    def opened_elsewhere(*args):
        entries, opened = open_entries(*args)
        return entries, opened | {'cold': dataclasses.replace(opened['cold'], path=tmp_path)}

    open_entries = compare_setup.open_entries
    monkeypatch.setattr(compare_setup, 'open_entries', opened_elsewhere)
    (tmp_path / 'lineage.json').write_text(json.dumps({'world': 'another'}))
    with pytest.raises(InputError, match='artefacts.cold.*another'):
        compare.prepare(config)
