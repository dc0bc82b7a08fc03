"""Bad input ends with one clear line and exit code 2, and loses nothing that was there."""

import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest
import quick
import runs

SHORT = dict(train__num_steps=3, train__log_every=1, train__save_every=2, train__eval_every=0,
             train__sample_every=0, sample__prompts='()')


def _files(folder):
    """{path: content} of all that a run saved; locks and reports may change."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*'))
            if path.is_file() and not path.name.endswith('.lock') and path.suffix != '.html'}


def _refused(capsys, arguments, *parts):
    """Runs it and checks exit code 2 and the one line about it, which must have these parts."""
    capsys.readouterr()
    code = runs.run_here(arguments)
    err = capsys.readouterr().err
    assert code == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith('jaxllm: ')]
    assert err.rstrip().endswith(line) and 'Traceback' not in err
    for part in parts:
        assert part in line, line
    return line


@pytest.fixture(scope='module')
def finished(tmp_path_factory, shared_cache, text):
    """A finished run, never written to."""
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    runs.run(runs.argv(workdir, text, **SHORT), devices=8, JAXLLM_CACHE=str(shared_cache))
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it to be harmed."""
    shutil.copytree(finished, tmp_path / 'run')
    return tmp_path / 'run'


@pytest.mark.parametrize('options, parts', [
    (dict(train__nmu_steps=3), ['train.nmu_steps is unknown', 'did you mean', 'num_steps']),
    (dict(train__num_steps='many'), ['expected int', "'many'"]),
    (dict(train__num_steps=0), ['train.num_steps=0', 'at least 1']),
    (dict(train__batch_size=12), ['batch_size=12', '8 data shards', 'batch_size=16']),
    (dict(train__batch_size=8, train__accum=2), ['batch_size=8', 'accum=2', 'batch_size=16']),
    (dict(train__accum=0), ['train.accum=0']),
    (dict(model__attention__num_heads=3), ['num_heads=3', 'num_kv_heads=2']),
    (dict(model__activation='swish'), ["activation='swish'", 'swiglu']),
    (dict(model__d_model=50), ['d_model=50', 'does not divide', '8']),
    (dict(optim__name='sgdm'), ["'sgdm'", 'adamw']),
    (dict(optim__schedule='none'), ["'none'", 'wsd']),
    (dict(tokenizer__kind='words'), ["'words'", 'bpe']),
    (dict(tokenizer__kind='file'), ['tokenizer.path']),
    (dict(data__infill__kind='middle'), ["'middle'", 'fim']),
    (dict(sample__sampling__temperature=-1.0), ['temperature=-1.0']),
    (dict(sharding__preset='all'), ["preset='all'", 'fsdp']),
    (dict(sharding__tensor=3), ['does not fit 8 devices']),
    (dict(checkpoint__keep_last=0), ['keep_last=0']),
    (dict(init_from='nowhere'), ['config.init_from', 'nowhere does not exist']),
    (dict(stage='jaxllm.stages.pretian'), ['jaxllm.stages.pretian', 'no module']),
], ids=str)
def test_a_config_that_cannot_be(options, parts, tmp_path, text, capsys):
    workdir = tmp_path / 'run'
    _refused(capsys, runs.argv(workdir, text, **SHORT | options), *parts)
    assert not workdir.exists()  # nothing is written before the config is checked


@pytest.mark.parametrize('arguments, parts', [
    (['run', '--workdir=x'], ['no config']),
    (['run', '--config=nowhere.py', '--workdir=x'], ['nowhere.py does not exist']),
    (['run', f'--config={runs.PRETRAIN}:smok', '--workdir=x'], ["'smok' is unknown", 'smoke']),
    (['run', f'--config={runs.PRETRAIN}:smoke'], ['--workdir=']),
    (['run', f'--config={runs.PRETRAIN}:smoke', '--wrokdir=x'], ['--wrokdir=x']),
    (['chat', '--workdir=x', '--tempreature=1'], ['--tempreature=1', 'jaxllm chat --help']),
    (['chat', '--workdir=nowhere'], ['nowhere does not exist', 'expected a run directory']),
    (['inspect', '--workdir=nowhere'], ['nowhere']),
    (['report', 'nowhere'], ['nowhere is no directory']),
], ids=lambda value: value[1] if len(value) > 1 else value[0])
def test_arguments_that_cannot_be(arguments, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _refused(capsys, arguments, *parts)
    assert [path.name for path in tmp_path.iterdir() if path.name != 'cache'] == []


@pytest.mark.parametrize('arguments', [[], ['rnu'], ['chat'], ['report']])
def test_usage_errors_are_those_of_argparse(arguments, capsys):
    assert runs.run_here(arguments) == 2
    assert 'usage: jaxllm' in capsys.readouterr().err


def test_a_config_file_with_a_syntax_error_has_a_traceback(tmp_path):
    file = tmp_path / 'broken.py'
    file.write_text('def get_config(arg=""):\n    return (\n')
    with pytest.raises(SyntaxError, match='broken.py'):
        runs.run_here(['run', f'--config={file}', f'--workdir={tmp_path / "run"}'])


def test_data_that_is_not_there(tmp_path, capsys):
    _refused(capsys, runs.argv(tmp_path / 'run', tmp_path / 'nowhere', **SHORT),
             'no such file, folder or glob', 'nowhere')


@pytest.mark.parametrize('content, part', [
    ({}, 'none of a known kind'), ({'a.txt': b' \n'}, 'has no document'),
    ({'a.dat': b'x'}, 'none of a known kind'),
    ({'a.txt': b'one small text'}, 'validation'),
    ({f'{i}.txt': b'a b %d' % i for i in range(30)}, 'fill'),
], ids=['empty', 'blank', 'unknown', 'one', 'small'])
def test_too_little_data(content, part, tmp_path, capsys):
    folder = tmp_path / 'text'
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    _refused(capsys, runs.argv(tmp_path / 'run', folder, **SHORT), part)


def test_files_that_are_not_utf8_are_counted(tmp_path, text, capsys):
    folder = tmp_path / 'text'
    shutil.copytree(text, folder)
    (folder / '0bad.txt').write_bytes('caf\xe9 au lait\n'.encode('latin-1'))
    workdir = tmp_path / 'run'
    assert runs.run_here(runs.argv(workdir, folder, **SHORT)) == 0
    (row,) = json.loads((workdir / 'data' / 'summary.json').read_text())
    assert row['rejects']['text'] == {'read': 31, 'rejected': 1, 'reasons': {'invalid UTF-8': 1}}
    assert row['documents'] == 30 and runs.losses(workdir).keys() == {1, 2, 3}
    (reject,) = map(json.loads, (workdir / 'data' / 'rejects-text.jsonl').read_text().splitlines())
    assert reject['origin'].endswith('0bad.txt:1')
    assert 'invalid UTF-8' in (workdir / 'report.html').read_text()

    for i in range(3):
        (folder / f'{i}bad.txt').write_bytes(b'\xff\xfe')
    other = tmp_path / 'other'
    arguments = runs.argv(other, folder, **SHORT)
    _refused(capsys, arguments, '3 of 33 records rejected', '0bad.txt:1', 'at most 5.00%')
    # Once it is allowed, the same directory will do.
    assert runs.run_here([*arguments, '--config.data.max_reject_share=0.2']) == 0


def test_one_endless_line_is_rejected_in_bounded_memory(tmp_path, text):
    file = tmp_path / 'text.jsonl'
    documents = [path.read_text() for path in sorted(text.iterdir())]
    with open(file, 'w', encoding='utf-8') as lines:
        for document in documents[:15]:
            lines.write(json.dumps({'text': document}) + '\n')
        lines.write('{"text": "' + 'word ' * 10_000_000 + '"}\n')
        for document in documents[15:]:
            lines.write(json.dumps({'text': document}) + '\n')
    assert file.stat().st_size > 50_000_000
    workdir = tmp_path / 'run'
    assert runs.run_here(runs.argv(workdir, file, **SHORT)) == 0
    (row,) = json.loads((workdir / 'data' / 'summary.json').read_text())
    assert row['documents'] == 30 and row['rejects']['text']['reasons'] == {
        'longer than 10000000 bytes': 1}


def test_a_vocabulary_larger_than_the_text_supports(tmp_path, text, capsys):
    line = _refused(capsys, runs.argv(tmp_path / 'run', text, **SHORT | dict(
        tokenizer__kind='bpe', tokenizer__vocab_size=50_000)), 'vocab_size')
    size = int(line.split('at most ')[-1].split()[0].strip(';,.')) if 'at most ' in line else 0
    assert size == 0 or 256 < size < 50_000


def test_rows_longer_than_every_document_are_packed_full(tmp_path, text):
    workdir = tmp_path / 'run'
    assert runs.run_here(runs.argv(workdir, text, **SHORT | dict(
        data__seq_len=1536, sharding__preset='fsdp'))) == 0
    assert runs.losses(workdir).keys() == {1, 2, 3}


def test_a_position_table_that_is_too_short(tmp_path, text, capsys):
    _refused(capsys, runs.argv(tmp_path / 'run', text, arg='family=gpt2', **SHORT | dict(
        data__seq_len=4096)), 'seq_len=4096', 'max_seq_len=2048')


def test_a_run_of_another_config_is_left_as_it_is(finished, text, capsys):
    before = _files(finished)
    _refused(capsys, runs.argv(finished, text, **SHORT | dict(model__num_layers=3)),
             'another config', 'model.num_layers 2 -> 3')
    assert _files(finished) == before


def test_a_checkpoint_of_another_shape(copy, text, capsys):
    """The config alone was changed, by hand."""
    config = json.loads((copy / 'config.json').read_text())
    config['model']['d_ff'] = 128
    (copy / 'config.json').write_text(json.dumps(config))
    before = _files(copy)
    _refused(capsys, runs.argv(copy, text, **SHORT | dict(model__d_ff=128)),
             'does not fit this config', 'mlp', '112', '128')
    changed = {path for path, content in _files(copy).items() if before.get(path) != content}
    assert {path.name for path in changed} <= {'config.json', 'lineage.json', 'summary.json'}


def test_a_parent_of_another_shape(finished, tmp_path, text, capsys):
    _refused(capsys, runs.argv(tmp_path / 'run', text, **SHORT | dict(
        init_from=finished, model__d_ff=128)), 'is another one', 'd_ff 112', '128')


def test_a_damaged_token_store(copy, text, capsys):
    store = next((copy / 'data' / 'stores').rglob('train.tokens.bin'))
    content = bytearray(store.read_bytes())
    content[1000] ^= 1
    store.write_bytes(content)
    before = _files(copy / 'checkpoints')
    _refused(capsys, runs.argv(copy, text, **SHORT), 'train.tokens.bin is corrupt', 'delete')
    assert _files(copy / 'checkpoints') == before
    shutil.rmtree(copy / 'data' / 'stores')
    assert runs.run_here(runs.argv(copy, text, **SHORT)) == 0  # what the message said


@pytest.mark.parametrize('content', ['{"model": ', '', '{}'])
def test_a_damaged_tokenizer(content, copy, text, capsys):
    (copy / 'tokenizer' / 'tokenizer.json').write_text(content)
    before = _files(copy / 'checkpoints')
    _refused(capsys, runs.argv(copy, text, **SHORT), 'tokenizer.json')
    assert _files(copy / 'checkpoints') == before


def test_changed_data_does_not_go_on_with_a_run(copy, tmp_path, text, capsys):
    folder = tmp_path / 'text'
    shutil.copytree(text, folder)
    config = json.loads((copy / 'config.json').read_text())
    shutil.rmtree(copy / 'data')
    (folder / '000.txt').write_text('another text altogether\n')
    config['data']['sources']['text']['path'] = str(folder)
    (copy / 'config.json').write_text(json.dumps(config))
    before = _files(copy / 'checkpoints')
    _refused(capsys, runs.argv(copy, folder, **SHORT), 'was trained on other data')
    assert _files(copy / 'checkpoints') == before


def test_a_directory_in_use(copy, text, capsys):
    before = _files(copy)
    with open(copy / '.lock', 'w', encoding='utf-8') as file:
        file.write('4242\n')
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        _refused(capsys, runs.argv(copy, text, **SHORT), 'in use by process 4242')
    assert _files(copy) == before
    assert runs.run_here(runs.argv(copy, text, **SHORT)) == 0


def test_a_foreign_directory_is_left_as_it_is(tmp_path, text, capsys):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'thesis.txt').write_text('mine')
    _refused(capsys, runs.argv(tmp_path / 'run', text, **SHORT), 'not empty and holds no run')
    assert [path.name for path in (tmp_path / 'run').iterdir() if path.name != '.lock'] == [
        'thesis.txt']


def test_a_hopeless_learning_rate_stops_the_run(tmp_path, text, capsys):
    workdir = tmp_path / 'run'
    arguments = runs.argv(workdir, text, **SHORT | dict(
        train__num_steps=40, optim__lr=1e30, optim__warmup_steps=0, optim__clip_norm=0.0,
        train__guard__max_skips_in_row=3))
    for _ in range(2):  # it stops there again, and loses nothing
        assert runs.run_here(arguments) == 3
        err = capsys.readouterr().err
        assert 'jaxllm: 3 steps in a row were skipped' in err and 'Traceback' not in err
        assert 'optim.lr' in err
        assert len(runs.records(workdir, 'note')) == 3
        assert 'was skipped' in (workdir / 'report.html').read_text()


def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(tmp_path, text):
    """A limit on the size of files stands for the disk: the checkpoint is the largest of them."""
    workdir = tmp_path / 'run'
    arguments = runs.argv(workdir, text, **SHORT)
    limited = ['bash', '-c', 'ulimit -f 100; exec "$@"', 'limited', sys.executable, '-m',
               'jaxllm.main']
    env = os.environ | {'XLA_FLAGS': quick.FLAGS, 'JAX_PLATFORMS': 'cpu',
                        'PYTHONPATH': str(runs.ROOT)}
    runs.run([*arguments, '--dry_run'])
    done = subprocess.run([*limited, *arguments], env=env, cwd=runs.ROOT, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('jaxllm: ')]
    assert 'saving step 2' in line and 'run the same command again' in line
    assert 'Traceback' not in done.stderr
    runs.run(arguments)
    assert runs.losses(workdir).keys() == {1, 2, 3}
    assert runs.checkpoint_steps(workdir) == [2, 3]
