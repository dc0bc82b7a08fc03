"""JSON lines that survive a kill and a resume byte for byte, and their TensorBoard twin."""

import io
import json
import math
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from jaxllm.errors import InputError
from jaxllm.train import metrics
from jaxllm.train.progress import Progress


def run(workdir, first, last, offsets=None, save_at=None):
    """Evaluate, save, step, as the loop does; returns the offsets saved at step `save_at`."""
    writer = metrics.Metrics(workdir, offsets, is_writer=True)
    saved = None
    for step in range(first, last):
        resumed_here = offsets is not None and step == first
        if step % 2 == 0 and not resumed_here:
            writer.eval(step, {'val/loss': 10. - step})
            writer.sample(step, {'prompt': 'p', 'completion': f'c{step}'})
        if step == save_at:
            saved = writer.offsets()
        writer.train(step, {'loss': jnp.float32(1) / (step + 3), 'skipped': 0})
        if step % 3 == 0:
            writer.perf(step, {'mfu': .25})
    writer.close()
    return saved


def test_resumed_files_equal_uninterrupted_ones(tmp_path):
    run(tmp_path / 'whole', 0, 9)
    saved = run(tmp_path / 'killed', 0, 7, save_at=4)
    with open(tmp_path / 'killed/metrics.jsonl', 'ab') as file:
        file.write(b'{"step": 7, "ki')
    run(tmp_path / 'killed', 4, 9, offsets=saved)
    for name in ('metrics.jsonl', 'samples.jsonl'):
        whole = (tmp_path / 'whole' / name).read_bytes()
        assert whole and (tmp_path / 'killed' / name).read_bytes() == whole
    steps = [record['step'] for record in metrics.read_jsonl(tmp_path / 'killed/perf.jsonl')]
    assert steps == [0, 3, 6]


def shown_by_tensorboard(folder):
    """{(tag, step): values} of all event files, with TensorBoard's rule for restarts."""
    shown = {}
    for path in sorted(folder.iterdir()):
        stream = io.BytesIO(path.read_bytes())
        while header := stream.read(12):
            event = event_pb2.Event.FromString(stream.read(struct.unpack('<Q', header[:8])[0]))
            stream.read(4)
            if event.HasField('session_log') and event.session_log.status == 1:
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                key = value.tag, event.step
                shown.setdefault(key, []).append(round(value.simple_value, 5))
    return shown


@pytest.mark.parametrize('save_at', [3, 4])
def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path, save_at):
    run(tmp_path / 'whole', 0, 9)
    saved = run(tmp_path / 'killed', 0, 7, save_at=save_at)
    run(tmp_path / 'killed', save_at, 9, offsets=saved)
    drop_wall = lambda shown: {key: value for key, value in shown.items() if 'wall' not in key[0]}
    whole = drop_wall(shown_by_tensorboard(tmp_path / 'whole/tensorboard'))
    assert whole['train/loss', 7] == [.1] and whole['val/loss', 4] == [6.]
    assert drop_wall(shown_by_tensorboard(tmp_path / 'killed/tensorboard')) == whole


def test_a_start_without_checkpoint_drops_the_lines_of_an_earlier_attempt(tmp_path):
    run(tmp_path, 0, 5)
    first = (tmp_path / 'metrics.jsonl').read_bytes()
    run(tmp_path, 0, 5)
    assert (tmp_path / 'metrics.jsonl').read_bytes() == first
    shown = shown_by_tensorboard(tmp_path / 'tensorboard')
    assert shown['val/loss', 0] == [10.] and shown['val/loss', 2] == [8.]


def test_encoding_is_valid_stable_json():
    line = metrics.encode({'b': np.inf, 'step': 3, 'a': jnp.bfloat16(1.5), 'kind': 'train',
                           'c': -math.inf, 'd': np.float32('nan'), 'e': np.float32(.1),
                           'f': np.arange(2), 'g': 'é\ud83d\n', 'h': np.bool_(True)})
    assert line.decode() == (
        '{"step": 3, "kind": "train", "a": 1.5, "b": "inf", "c": "-inf", "d": "nan", '
        '"e": 0.10000000149011612, "f": [0, 1], "g": "é?\\n", "h": true}\n')
    assert [metrics.as_number(json.loads(line)[key]) for key in 'abc'] == [1.5, np.inf, -np.inf]
    assert math.isnan(metrics.as_number('nan')) and metrics.as_number('text') is None


def test_lost_or_edited_lines_are_input_errors(tmp_path):
    path = tmp_path / 'a.jsonl'
    writer = metrics.JsonlWriter(path)
    writer.write({'step': 1})
    offset = writer.offset
    writer.close()
    assert offset == len('{"step": 1}\n')
    with pytest.raises(InputError, match='12 bytes.* had 20: lines have been lost'):
        metrics.JsonlWriter(path, 20)
    with pytest.raises(InputError, match='inside a line'):
        metrics.JsonlWriter(path, 5)
    assert path.read_text() == '{"step": 1}\n'


def test_reading_leaves_out_a_torn_last_line_only(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_text('{"step": 1}\n{"st')
    assert metrics.read_jsonl(path) == [{'step': 1}]
    path.write_text('{"st\n{"step": 1}\n')
    with pytest.raises(InputError, match='a.jsonl:1 is not JSON'):
        metrics.read_jsonl(path)


def test_only_the_writer_writes(tmp_path):
    silent = metrics.Metrics(tmp_path / 'run', None, is_writer=False, wandb_project='p')
    for record in (silent.train, silent.eval, silent.perf, silent.sample):
        record(1, {'loss': 1.})
    silent.note(1, 'x')
    assert set(silent.offsets().values()) == {0}
    silent.close()
    assert not (tmp_path / 'run').exists()


def test_wall_time_goes_on_after_a_resume(tmp_path):
    (tmp_path / 'perf.jsonl').write_text('{"step": 1, "kind": "perf", "wall_s": 5000.0}\n')
    offsets = {'metrics': 0, 'perf': (tmp_path / 'perf.jsonl').stat().st_size, 'samples': 0}
    writer = metrics.Metrics(tmp_path, offsets, is_writer=True, tensorboard=False)
    writer.perf(2, {'mfu': .5})
    writer.close()
    assert 5000 < metrics.read_jsonl(tmp_path / 'perf.jsonl')[1]['wall_s'] < 5060
    assert not (tmp_path / 'tensorboard').exists()


def test_wandb_missing_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(InputError, match='pip install wandb'):
        metrics.Metrics(tmp_path / 'run', None, is_writer=True, wandb_project='p')
    assert not (tmp_path / 'run').exists()


def test_wandb_gets_finite_scalars(tmp_path, monkeypatch):
    logged = []
    session = types.SimpleNamespace(log=logged.append, define_metric=lambda *_, **__: None,
                                    finish=lambda: logged.append('finished'))
    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=lambda **_: session))
    writer = metrics.Metrics(tmp_path, None, True, tensorboard=False, wandb_project='p')
    writer.train(3, {'loss': 2., 'grad_norm': math.inf})
    writer.eval(4, {'val/loss': 1.})
    writer.close()
    assert logged == [{'train/loss': 2., 'step': 3}, {'val/loss': 1., 'step': 4}, 'finished']


def test_progress_without_a_terminal_prints_lines_now_and_then():
    file = io.StringIO()
    with Progress(total=1200, start=200, file=file) as progress:
        for step in range(201, 1201):
            progress.update(step, loss=2.5, tokens_per_s=12345.6)
    lines = file.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith('train 201/1,200  loss 2.5  tokens_per_s 12,346  ETA ')
    assert lines[1].startswith('train 1,200/1,200')
