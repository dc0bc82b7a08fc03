"""Talking to a chain of runs: which models there are, and the table of candidates.

The talk itself is tested beside its models, in test_sft.py.
"""

import importlib
import json

import pytest

from jaxllm.data import tokenizer as tokenizers
from jaxllm.errors import InputError
from jaxllm.stages import candidates, chain_models


def chain(folder, steps, order, made):
    """A chain directory with steps of which some have made a model; nothing can be loaded."""
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(
        {'stage': 'jaxllm.stages.chain', 'steps': {name: {} for name in sorted(steps)}}))
    (folder / 'lineage.json').write_text(json.dumps({'steps': order}))
    for name in steps:
        (folder / name).mkdir()
        (folder / name / 'config.json').write_text(json.dumps(
            {'stage': f'jaxllm.stages.{steps[name]}'}))
        if name in made:
            (folder / name / 'model.json').write_text('{}')
            (folder / name / 'checkpoints' / '3').mkdir(parents=True)
            (folder / name / 'checkpoints' / '3' / '_CHECKPOINT_METADATA').write_text('{}')
    return folder


LIFE = dict(tokenizer='tokenizer', base='pretrain', sft='sft', reward_safe='reward',
            aligned='rl', later='sft', eval='evaluate')


@pytest.fixture
def has_model(monkeypatch):
    monkeypatch.setattr(chain_models, 'has_checkpoint', lambda folder: folder.exists())


@pytest.mark.parametrize('made, names, first', [
    (LIFE, ['base', 'sft', 'aligned', 'later'], 'aligned'),
    (['base', 'sft'], ['base', 'sft'], 'sft'), (['base', 'reward_safe'], ['base'], 'base')])
def test_the_models_of_a_chain(tmp_path, has_model, made, names, first):
    assert all(importlib.import_module(f'jaxllm.stages.{stage}').run for stage in LIFE.values())
    made = [name for name in made if name not in ('tokenizer', 'eval')]
    folder = chain(tmp_path / 'life', LIFE, list(LIFE), made)
    assert chain_models.models_of(folder) == ({name: folder / name for name in names}, first)


def test_a_chain_without_a_model_and_a_path_that_is_none(tmp_path):
    folder = chain(tmp_path / 'life', LIFE, list(LIFE), [])
    with pytest.raises(InputError, match='none of which has made a model yet'):
        chain_models.models_of(folder)
    assert chain_models.models_of('x/model.gguf')[1] == 'model.gguf'


def test_a_table_of_candidates():
    byte = tokenizers.byte_tokenizer()
    ids = [byte.encode(char)[0] for char in 'ab\n']
    text = candidates.table([ids[0], ids[2]], [-0.6931472, -6.0],
                            ([[ids[0], ids[1]], [ids[1], ids[0]]],
                             [[-0.6931472, -1.609438], [-0.5108256, -1.609438]]), byte)
    head, first, second = text.split('\n')
    assert head.split() == ['token', 'p', 'instead']
    assert first.split() == ["'a'", '50%', '█████·····', "'b'", '20%']
    assert second.split() == [r"'\n'", '<1%', '··········', "'b'", '60%', "'a'", '20%']
