"""Where artefacts come from, going back, deleting; adapters as artefacts; exports."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import runs
import test_sft as sft

from jaxllm import main
from jaxllm.errors import InputError
from jaxllm.models import transformer
from jaxllm.stages import ancestry, artifact
from jaxllm.stages import base as bases
from jaxllm.stages import lineage

parent, data, adapted = sft.parent, sft.data, sft.adapted


@pytest.fixture(scope='module')
def other(tmp_path_factory, shared_cache, parent, data):
    """A second adapter on the same base."""
    workdir = tmp_path_factory.mktemp('other') / 'second'
    runs.run(sft.argv(workdir, parent, data, **sft.LORA, seed=1), devices=8,
             JAXLLM_CACHE=str(shared_cache))
    return workdir


@pytest.fixture
def family(tmp_path, parent, adapted):
    """Copies of the base and the adapter that may be damaged; their lineage says where they are."""
    base, child = tmp_path / 'base', tmp_path / 'child'
    shutil.copytree(parent, base)
    shutil.copytree(adapted, child)
    (base / 'descendants.jsonl').unlink(missing_ok=True)
    record = json.loads((child / 'lineage.json').read_text())
    record['parents']['init_from']['run'] = str(base)
    (child / 'lineage.json').write_text(json.dumps(record))
    return base, child


def run(capsys, *arguments, code=0):
    assert main.main([str(x) for x in arguments]) == code
    return capsys.readouterr()


def refused(capsys, *arguments, parts):
    err = run(capsys, *arguments, code=2).err
    assert len(err.strip().splitlines()) == 1 and all(part in err for part in parts), err


def logits(path):
    found = artifact.load(path)
    with jax.set_mesh(found.mesh):
        tokens = np.arange(80, dtype=np.int32).reshape(8, 10) + 40
        return np.asarray(jax.jit(lambda p, x: transformer.apply(p, found.model, x))(
            found.params, tokens))


def test_runs_that_made_files_are_parents(tmp_path, monkeypatch):
    for name in ('maker', 'other'):
        (tmp_path / name / 'inner').mkdir(parents=True)
        (tmp_path / name / 'lineage.json').write_text(json.dumps({'fingerprint': name}))
        (tmp_path / name / 'inner' / 'rows.jsonl').write_text('')
    (tmp_path / 'mine.jsonl').write_text('')
    monkeypatch.chdir(tmp_path / 'maker')
    assert lineage.makers({
        'own': str(tmp_path / 'mine.jsonl'), 'none': '', 'world': 'world:pairs', 'gone': 'gone',
        'file': 'inner/rows.jsonl', 'again': str(tmp_path / 'maker'),
        'folder': str(tmp_path / 'other' / 'inner')}) == {
        'file': lineage.Parent(tmp_path / 'maker', 0, 'maker'),
        'folder': lineage.Parent(tmp_path / 'other', 0, 'other')}


def test_a_parent_of_several_is_told_once():
    base = ancestry.Node(pathlib.Path('/base'), 'base', data=('data mine',))
    gone = ancestry.Node(pathlib.Path('/gone'), 'unknown', 'not there any more')
    parent = ancestry.Node(pathlib.Path('/sft'), 'sft', parents=(('init_from', base),))
    lines = ancestry.draw(ancestry.Node(pathlib.Path('/rl'), 'rl', parents=(
        ('policy', parent), ('ref', parent), ('value', base), ('a', gone), ('b', gone))))
    assert sum('data mine' in line for line in lines) == 1
    assert [line.strip(' │') for line in lines if 'see above' in line] == [
        'sft; see above', 'base; see above']
    assert sum('/gone   !! not there any more' in line for line in lines) == 2


def test_who_reads_may_stop(family):
    process = runs.start(['lineage', str(family[1])])
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ''
    assert process.wait(timeout=100) == 141


def test_lineage_from_the_data_to_the_artefact(family, capsys):
    base, child = family
    out = run(capsys, 'lineage', child).out
    lines = out.splitlines()
    assert lines[0] == str(child)
    assert any(f'init_from: {base}' in line for line in lines)
    assert 'sft' in lines[1] and 'parameters trained' in lines[1]
    assert 'data mine' in out and 'data text' in out and 'template' in out
    tree = json.loads(run(capsys, 'lineage', child, '--json').out)
    assert tree['parents']['init_from']['path'] == str(base)
    (base / 'lineage.json').write_text('{"stage"')
    assert 'cannot be read' in run(capsys, 'lineage', child).out
    shutil.rmtree(base)
    assert 'not there any more' in run(capsys, 'lineage', child).out


def test_revert_gives_the_parent_or_says_why_not(family, capsys):
    base, child = family
    done = run(capsys, 'revert', child, '--verify')
    assert done.out.strip() == str(base) and 'without the adapter' in done.err
    assert 'sha256' in done.err
    refused(capsys, 'revert', base, parts=['random weights'])
    refused(capsys, 'revert', base.parent, parts=['no run that has begun'])
    step = json.loads((child / 'lineage.json').read_text())['parents']['init_from']['step']
    (base / 'checkpoints' / str(step)).rename(base / 'gone')
    refused(capsys, 'revert', child, parts=[f'checkpoint of step {step} is gone', 'bring it back'])
    (base / 'gone').rename(base / 'checkpoints' / str(step))
    record = json.loads((base / 'lineage.json').read_text()) | {'fingerprint': 'another'}
    (base / 'lineage.json').write_text(json.dumps(record))
    refused(capsys, 'revert', child, parts=['is another run by now'])
    shutil.rmtree(base)
    refused(capsys, 'revert', child, parts=['not there any more', 'an adapter alone cannot'])
    config = json.loads((child / 'config.json').read_text())
    config['lora']['rank'] = 0
    (child / 'config.json').write_text(json.dumps(config))
    refused(capsys, 'revert', child, parts=['cannot be computed from the new ones'])


def test_what_others_descend_from_is_not_deleted(family, capsys):
    base, child = family
    refused(capsys, 'delete', base, '--yes', parts=[str(child), 'init_from', '--force'])
    refused(capsys, 'delete', child, parts=['needs --yes'])
    refused(capsys, 'delete', base.parent, '--yes', parts=['no run directory'])
    rack = base.parent / 'rack'
    run(capsys, 'adapters', 'add', rack, f'--run={child}')
    assert 'deleted' in run(capsys, 'delete', child, '--yes').out and not child.exists()
    refused(capsys, 'delete', base, '--yes', parts=[str(rack), 'base of a rack'])
    shutil.rmtree(rack)
    assert 'deleted' in run(capsys, 'delete', base, '--yes').out and not base.exists()


def test_force_and_descendants_elsewhere(family, tmp_path, capsys):
    base, child = family
    far = tmp_path / 'far' / 'away'
    far.parent.mkdir()
    child.rename(far)
    home = tmp_path / 'home'
    home.mkdir()
    base.rename(home / 'base')
    record = json.loads((far / 'lineage.json').read_text())
    record['parents']['init_from']['run'] = str(home / 'base')
    (far / 'lineage.json').write_text(json.dumps(record))
    refused(capsys, 'delete', home / 'base', '--yes', f'--search={far.parent}', parts=[str(far)])
    (home / 'base' / 'descendants.jsonl').write_text(json.dumps({'run': str(far)}) + '\n')
    refused(capsys, 'delete', home / 'base', '--yes', parts=[str(far)])
    run(capsys, 'delete', home / 'base', '--yes', '--force')
    assert not (home / 'base').exists()


def test_a_child_is_noted_by_its_parent(parent, adapted):
    noted = [json.loads(line)['run'] for line in
             (parent / 'descendants.jsonl').read_text().splitlines()]
    assert str(adapted) in noted


def test_a_rack_of_adapters(parent, adapted, other, tmp_path, capsys):
    rack, plain = tmp_path / 'rack', logits(parent)
    hashes = sft.hashes(parent)
    assert 'lora added' in run(capsys, 'adapters', 'add', rack, f'--run={adapted}').out
    run(capsys, 'adapters', 'add', rack, 'b', f'--run={other}')
    listed = run(capsys, 'adapters', 'list', rack).out
    assert str(parent) in listed and '* lora' in listed and 'rank 4' in listed
    first = logits(rack)
    np.testing.assert_array_equal(first, logits(adapted))
    assert 'lora -> b' in run(capsys, 'adapters', 'swap', rack, 'b').out
    np.testing.assert_array_equal(logits(rack), logits(other))
    run(capsys, 'adapters', 'activate', rack, 'lora')
    np.testing.assert_array_equal(logits(rack), first)
    assert (first != plain).any()
    out = run(capsys, 'adapters', 'remove', rack, 'lora').out
    assert 'same' in out and 'the bare base' in out
    np.testing.assert_array_equal(logits(rack), plain)
    assert sft.hashes(rack) == hashes == sft.hashes(parent)
    run(capsys, 'adapters', 'activate', rack, 'b')
    run(capsys, 'adapters', 'activate', rack, '--none')
    np.testing.assert_array_equal(logits(rack), plain)
    one = ['chat', f'--workdir={rack}', '--prompt=number 3', '--max_new_tokens=3']
    assert main.main(one) == 0


def test_an_adapter_of_another_base(adapted, other, tmp_path, data, capsys):
    """What stands on an adapter has another base than what stands on the model below it."""
    rack, second = tmp_path / 'rack', tmp_path / 'run'
    run(capsys, 'adapters', 'add', rack, f'--run={adapted}')
    assert runs.run_here(sft.argv(second, other, data, **sft.LORA, train__num_steps=2)) == 0
    capsys.readouterr()
    refused(capsys, 'adapters', 'add', rack, f'--run={second}', parts=[str(other), 'of its own'])
    refused(capsys, 'adapters', 'add', rack, f'--run={adapted}', parts=["'lora' already"])
    refused(capsys, 'adapters', 'swap', rack, 'zzz', parts=["no adapter 'zzz'", 'lora'])
    refused(capsys, 'adapters', 'add', rack, parts=['needs one adapter'])
    for name in ('..', '.', 'a/b', '../x', '.hidden'):
        refused(capsys, 'adapters', 'add', rack, name, f'--run={adapted}',
                parts=['cannot be the name of an adapter'])
    assert adapted.exists() and (rack / 'adapters.json').exists()
    with pytest.raises(InputError, match='merge one'):
        bases.open_trainable(rack)
    refused(capsys, 'adapters', 'list', tmp_path, parts=['no run directory'])
    refused(capsys, 'adapters', 'merge', rack, parts=['--out'])


def test_merged_and_exported_models_compute_the_same(adapted, parent, tmp_path, capsys):
    want = logits(adapted)
    run(capsys, 'adapters', 'merge', adapted, f'--out={tmp_path / "hf"}')
    np.testing.assert_allclose(logits(tmp_path / 'hf'), want, atol=2e-5)
    run(capsys, 'export', adapted, '--format=gguf', '--kind=f32', f'--out={tmp_path / "m.gguf"}')
    np.testing.assert_allclose(logits(tmp_path / 'm.gguf'), want, atol=2e-5)
    run(capsys, 'export', tmp_path / 'm.gguf', f'--out={tmp_path / "again"}')
    np.testing.assert_array_equal(logits(tmp_path / 'again'), logits(tmp_path / 'm.gguf'))
    talk = [{'role': 'user', 'content': 'number 3 please'}]
    for path in ('hf', 'm.gguf', 'again'):
        assert artifact.load(tmp_path / path).conversation(talk) == artifact.load(
            adapted).conversation(talk)
    refused(capsys, 'export', adapted, f'--out={tmp_path / "hf"}', parts=['exists already'])
    refused(capsys, 'export', adapted, '--format=gguf', '--out=folder', parts=['FILE.gguf'])
    refused(capsys, 'export', adapted, '--kind=int3', f'--out={tmp_path / "x"}',
            parts=["'int3' is unknown"])
    assert not (tmp_path / 'x').exists()


def test_an_adapter_goes_to_peft_and_back(adapted, parent, tmp_path, capsys):
    run(capsys, 'adapters', 'export', adapted, f'--out={tmp_path / "peft"}')
    assert (tmp_path / 'peft' / 'adapter_model.safetensors').exists()
    run(capsys, 'adapters', 'add', tmp_path / 'rack', f'--peft={tmp_path / "peft"}',
        f'--base={parent}')
    np.testing.assert_allclose(logits(tmp_path / 'rack'), logits(adapted), atol=1e-6)
    refused(capsys, 'adapters', 'add', tmp_path / 'r2', f'--peft={tmp_path / "peft"}',
            parts=['--base=PATH'])
    refused(capsys, 'adapters', 'export', parent, f'--out={tmp_path / "y"}',
            parts=['trained all weights'])


def test_a_base_that_became_another_is_noticed(family, capsys):
    base, child = family
    record = json.loads((base / 'lineage.json').read_text()) | {'fingerprint': 'another'}
    (base / 'lineage.json').write_text(json.dumps(record))
    refused(capsys, 'chat', f'--workdir={child}', '--prompt=x', parts=['another model', str(base)])
    shutil.rmtree(base)
    refused(capsys, 'chat', f'--workdir={child}', '--prompt=x', parts=['not there any more'])
