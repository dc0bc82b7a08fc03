"""Every experiment file runs `:smoke` through `main`, and says the same thing twice."""

import json
import platform
import shutil

import jax
import numpy as np
import pytest
import runs

from jaxllm import config as configs
from jaxllm.models import stack
from jaxllm.sharding import PRESETS

# Files that only hold functions for others have no get_config.
EXPERIMENTS = sorted(path for path in (runs.ROOT / 'experiments').rglob('*.py')
                     if 'def get_config(' in path.read_text(encoding='utf-8'))
# A notebook runs the lifecycle, in tests/test_colabs.py, and with it what these do, too; finetune
# has a test of its own.
NOTEBOOK, LONG = 'lifecycle', ('ppo', 'compare', 'feedback', 'reward', 'finetune')
SHORT = dict(train__num_steps=4, train__log_every=1, train__save_every=2, train__eval_every=2,
             train__sample_every=0, sample__prompts='()')


def _run(workdir, text, **options):
    assert runs.run_here(runs.argv(workdir, text, **SHORT | options)) == 0
    return workdir


def test_there_are_experiments():
    assert {'pretrain.py', 'tokenizer.py'} <= {path.name for path in EXPERIMENTS}


@pytest.fixture(scope='module')
def made():
    """{a step of a chain and those before it, as JSON: the folder where it was run}."""
    return {}


def _steps(config):
    """{step: what makes it the same as one of another chain}, in the order of the file."""
    text = {}
    for name, step in getattr(config, 'steps', {}).items():
        own = json.dumps(configs.to_plain(step), sort_keys=True)
        text[name] = own + ''.join(before for known, before in text.items()
                                   if f'"@{known}"' in own)
    return text


@pytest.mark.parametrize('file', [
    pytest.param(path, id=path.stem, marks=[pytest.mark.long] if path.stem in LONG else [])
    for path in EXPERIMENTS])
def test_smoke(file, tmp_path, capsys, made):
    """The file as it is, on the text that every Python has. Chains begin alike: what another one
    has done is copied, and they go on from there."""
    workdir = tmp_path / 'run'
    arguments = ['run', f'--config={file}:smoke']
    assert runs.run_here([*arguments, '--dry_run']) == 0
    config = configs.load_file(f'{file}:smoke')
    assert f'"stage": "{config.stage}"' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    if file.stem == NOTEBOOK:
        return
    steps = _steps(config)
    done = [name for name, step in steps.items() if step in made]
    if done:
        workdir.mkdir()
        (workdir / 'config.json').write_text(configs.to_json(config))
    for name in done:
        shutil.copytree(made[steps[name]], workdir / name)
    assert runs.run_here([*arguments, f'--workdir={workdir}']) == 0
    assert capsys.readouterr().err.count(' is done\n') == len(done)
    made |= {step: workdir / name for name, step in steps.items()}
    assert json.loads((workdir / 'config.json').read_text())['stage']
    if not (workdir / 'metrics.jsonl').exists():
        return  # a stage that trains nothing
    lines = runs.records(workdir)
    assert all(line['python'] == platform.python_version() for line in lines)
    assert {'train', 'eval'} <= {line['kind'] for line in lines}
    assert 'Validation loss' in (workdir / 'report.html').read_text()
    assert runs.checkpoint_steps(workdir)
    assert list((workdir / 'tensorboard').iterdir())
    lineage = json.loads((workdir / 'lineage.json').read_text())
    assert lineage['python'] == platform.python_version() and lineage['packages']['jax']
    again = tmp_path / 'again'
    assert runs.run_here([*arguments, f'--workdir={again}']) == 0
    for name in ('metrics.jsonl', 'samples.jsonl'):
        assert (workdir / name).read_bytes() == (again / name).read_bytes()


def test_a_dry_run_counts_and_creates_nothing(tmp_path, text, capsys):
    workdir = tmp_path / 'run'
    before = {path: path.stat().st_mtime_ns for path in text.rglob('*')}
    assert runs.run_here([*runs.argv(workdir, text, train__num_steps=20), '--dry_run']) == 0
    out = capsys.readouterr().out
    # 288 x 48 embedding, 2 layers of q, o 48 x 48, k, v 48 x 24, three of 48 x 112 and two norms,
    # and the final norm.
    count = 288 * 48 + 2 * (2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 112 + 2 * 48) + 48
    assert f'parameters        {count:,}\n' in out
    assert 'tokens in all     10,240 in 20 steps' in out
    assert "{'fsdp': 8} of 8 cpu device(s)" in out
    assert not workdir.exists()
    assert {path: path.stat().st_mtime_ns for path in text.rglob('*')} == before


# With 8 key-value heads and 8 query heads every axis divides over 8 devices.
_HEADS = dict(model__attention__num_heads=8, model__attention__num_kv_heads=8)


@pytest.fixture(scope='module')
def on_one_device(tmp_path_factory, shared_cache, text):
    workdir = tmp_path_factory.mktemp('one') / 'run'
    runs.run(runs.argv(workdir, text, **SHORT | _HEADS), JAXLLM_CACHE=str(shared_cache))
    return workdir


@pytest.mark.parametrize('preset', [
    pytest.param(preset, marks=[] if preset in ('fsdp', 'dp_fsdp_tp') else [pytest.mark.long])
    for preset in PRESETS])
def test_eight_devices_are_as_one(preset, tmp_path, text, on_one_device, capsys, monkeypatch):
    assert jax.device_count() == 8
    if preset != 'fsdp':
        monkeypatch.setattr(stack, '_UNROLLED_LAYERS', 0)  # the scan of accelerators
    workdir = _run(tmp_path / 'run', text, sharding__preset=preset, **_HEADS)
    got, want = runs.records(workdir), runs.records(on_one_device)
    assert [(r['step'], r['kind']) for r in got] == [(r['step'], r['kind']) for r in want]
    for a, b in zip(got, want, strict=True):
        for key in b.keys() & {'loss', 'nll', 'grad_norm', 'val/loss', 'val/bits_per_byte'}:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-5, err_msg=f'{key} {a["step"]}')
    assert runs.losses(workdir).keys() == {1, 2, 3, 4}


def test_accumulation_changes_no_number(tmp_path, text, on_one_device):
    workdir = tmp_path / 'run'
    runs.run(runs.argv(workdir, text, **SHORT | _HEADS, train__accum=4))
    for step, loss in runs.losses(on_one_device).items():
        np.testing.assert_allclose(runs.losses(workdir)[step], loss, rtol=1e-5)


def test_more_training_is_better(tmp_path, text):
    """Sixty steps learn more of thirty words than a unigram of bytes knows."""
    workdir = _run(tmp_path / 'run', text, train__num_steps=60, train__eval_every=60,
                   train__save_every=0)
    first, last = (line['val/bits_per_byte'] for line in runs.records(workdir, 'eval'))
    assert first > 7 and last < 2.5


@pytest.mark.parametrize('arg, options', [
    ('infill=fim', {}),
    ('infill=span', {}),
    ('family=gemma2', {}),
    ('family=gpt2', {}),
    ('', dict(optim__name='muon')),
    ('', dict(optim__ema_decay=0.9, optim__schedule='cosine')),
    ('', dict(model__remat='full', model__dtype='bfloat16')),
    ('', dict(tokenizer__kind='char', tokenizer__vocab_size=304)),
])
def test_variants_run(arg, options, tmp_path, text):
    workdir = _run(tmp_path / 'run', text, arg=arg, **options)
    losses = runs.losses(workdir)
    assert losses.keys() == {1, 2, 3, 4} and all(np.isfinite(x) for x in losses.values())
    assert losses[4] < losses[1]
    config = json.loads((workdir / 'config.json').read_text())
    if arg.startswith('infill'):
        assert config['data']['infill']['kind'] == arg.removeprefix('infill=')
    if options:
        section, key = next(iter(options)).split('__')
        assert config[section][key] == next(iter(options.values()))


def test_infilling_changes_the_training_data_alone(tmp_path, text):
    plain, infill = (_run(tmp_path / name, text, arg=arg)
                     for name, arg in (('plain', ''), ('infill', 'infill=fim')))
    at_start = [runs.records(workdir, 'eval')[0] for workdir in (plain, infill)]
    assert at_start[0] == at_start[1]
    assert runs.losses(plain)[1] != runs.losses(infill)[1]


def test_a_run_starts_from_its_parent(tmp_path, text):
    parent = _run(tmp_path / 'parent', text)
    child = _run(tmp_path / 'child', text, init_from=parent, seed=1)
    before, after = runs.records(parent, 'eval')[-1], runs.records(child, 'eval')[0]
    assert after['val/loss'] == pytest.approx(before['val/loss'], rel=1e-6)
    lineage = json.loads((child / 'lineage.json').read_text())
    assert lineage['parents']['init_from'] == {
        'run': str(parent), 'step': before['step'],
        'fingerprint': json.loads((parent / 'lineage.json').read_text())['fingerprint']}
    assert 'init_from' in (child / 'report.html').read_text()
