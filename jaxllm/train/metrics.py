"""Where the numbers of a run go: JSON lines that resume byte for byte, TensorBoard, W&B."""

import json
import math
import os
import pathlib
import time

import numpy as np

from jaxllm.errors import InputError

FILES = {'metrics': 'metrics.jsonl', 'perf': 'perf.jsonl', 'samples': 'samples.jsonl'}
NON_FINITE = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}


def plain(value):
    """Turns numpy and JAX values into plain Python; nan, inf and -inf become those strings.

    JSON has no NaN; a string keeps which of the three it was, where null would not.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if not isinstance(value, float):
        value = np.asarray(value)
        if value.dtype.kind not in 'biuf':
            # bfloat16 has kind 'V'; float64 holds each of its values exactly.
            value = value.astype(np.float64)
        return plain(value.tolist())
    return value if math.isfinite(value) else str(value)


def encode(record):
    """One JSON line for a dict: `step` and `kind` first, then by name; floats as their repr."""
    first = [key for key in ('step', 'kind') if key in record]
    order = first + sorted(key for key in record if key not in first)
    line = json.dumps(plain({key: record[key] for key in order}), ensure_ascii=False,
                      allow_nan=False)
    # A lone surrogate (half of an emoji) cannot be written as UTF-8.
    return line.encode('utf-8', errors='replace') + b'\n'


def as_number(value):
    """The float of a value read from one of our files ('nan', 'inf' and '-inf' too), or None."""
    if isinstance(value, str):
        return NON_FINITE.get(value)
    if isinstance(value, (int, float)):
        return float(value)
    return None


def read_jsonl(path):
    """Reads the records of a file that may still be written to: a torn last line is left out.

    Args:
        path: the file; one that does not exist has no records.

    Returns:
        A list of dicts.

    Raises:
        InputError: a line before the last is not JSON.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    records = []
    *lines, _ = path.read_bytes().split(b'\n')
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise InputError(f'{path}:{number} is not JSON ({error}). Remove that line, or '
                             'restore the file from a copy.') from error
    return records


class JsonlWriter:
    """Appends records to a file, one JSON object per line.

    With an offset, the file is first cut to that many bytes: what a killed process wrote after
    its last checkpoint is written again by the process that resumes from it, so the file ends up
    as if nothing had happened.
    """

    def __init__(self, path, offset=None):
        """Opens the file for appending.

        Args:
            path: file to create or to continue.
            offset: bytes to keep, from an earlier `.offset`; None keeps everything.

        Raises:
            InputError: the file is shorter than the offset, or the offset is not a line's end.
        """
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, 'ab')
        try:
            if offset is not None:
                self._cut(offset)
        except InputError:
            self.file.close()
            raise

    def _cut(self, offset):
        size = self.path.stat().st_size
        if size < offset:
            raise InputError(
                f'{self.path} has {size} bytes, but the checkpoint was saved when it had {offset}: '
                'lines have been lost. Restore the file from a copy, or start again in a new '
                'workdir from this checkpoint with --config.init_from=<this run>.')
        if offset:
            with open(self.path, 'rb') as file:
                file.seek(offset - 1)
                if file.read(1) != b'\n':
                    raise InputError(
                        f'{self.path}: byte {offset}, where the checkpoint says a line ends, is '
                        'inside a line: the file was edited. Restore it from a copy, or start '
                        'again in a new workdir with --config.init_from=<this run>.')
        self.file.truncate(offset)

    def write(self, record):
        """Appends one dict. The line is handed to the system at once, so a report can be live."""
        self.file.write(encode(record))
        self.file.flush()

    @property
    def offset(self):
        """Bytes in the file, all of them on the disk when this returns."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.path.stat().st_size

    def close(self):
        """Closes the file. Closing twice is fine."""
        self.file.close()


class Metrics:
    """Routes what a run measures to its files; on every process but the writer it does nothing.

    metrics.jsonl holds what is deterministic (kinds 'train', 'eval', 'note'), perf.jsonl times,
    memory and repairs (kinds 'perf', 'note'), samples.jsonl generated text. Finite scalars go to
    TensorBoard and W&B too.
    """

    def __init__(self, workdir, offsets, is_writer, tensorboard=True, wandb_project='',
                 context=None):
        """Opens the files.

        Args:
            workdir: the run's directory.
            offsets: what `.offsets()` returned when the checkpoint was saved, or None to begin
                at step 0; then lines of an earlier attempt without a checkpoint are dropped.
            is_writer: True on one process, conventionally process 0.
            tensorboard: write event files to workdir/tensorboard.
            wandb_project: Weights & Biases project; '' for none.
            context: fields that stand in every line of metrics.jsonl, e.g. {'python': '3.12.1'}.

        Raises:
            InputError: W&B is asked for and not installed; a file lost lines (see JsonlWriter).
        """
        self.is_writer, self.context = is_writer, dict(context or {})
        if not is_writer:
            return
        workdir = pathlib.Path(workdir)
        offsets = dict.fromkeys(FILES, 0) if offsets is None else offsets
        self.wandb = _start_wandb(wandb_project, workdir) if wandb_project else None
        self.files = {name: JsonlWriter(workdir / file, offsets[name])
                      for name, file in FILES.items()}
        before = {name: read_jsonl(workdir / FILES[name]) for name in ('metrics', 'perf')}
        walls = [record['wall_s'] for record in before['perf'] if record['kind'] == 'perf']
        self.started = time.monotonic() - (walls[-1] if walls else 0.)
        self.events = _start_tensorboard(workdir / 'tensorboard', before) if tensorboard else None

    def train(self, step, values):
        """Records the metrics of one optimizer step."""
        self._scalars('metrics', {**self.context, **values, 'step': step, 'kind': 'train'})

    def eval(self, step, values):
        """Records an evaluation, e.g. {'val/loss': nats per token, 'val/bits_per_byte': ...}."""
        self._scalars('metrics', {**self.context, **values, 'step': step, 'kind': 'eval'})

    def perf(self, step, values):
        """Records times and memory; adds wall_s, the seconds spent on the run, resumes included."""
        if self.is_writer:
            self._scalars('perf', {**values, 'step': step, 'kind': 'perf',
                                   'wall_s': time.monotonic() - self.started})

    def sample(self, step, values):
        """Records a generated text: {'prompt': str, 'completion': str}."""
        if self.is_writer:
            self.files['samples'].write({**values, 'step': int(step)})

    def note(self, step, text):
        """Records a warning for the report. The text must be deterministic."""
        if self.is_writer:
            self.files['metrics'].write({**self.context, 'step': int(step), 'kind': 'note',
                                         'text': text})

    def repair(self, step, text):
        """Records what a resume had to mend. It stands in perf.jsonl: metrics.jsonl is the same as
        that of a run to which nothing happened."""
        if self.is_writer:
            self.files['perf'].write({'step': int(step), 'kind': 'note', 'text': text})

    def offsets(self):
        """Bytes per file, on the disk: to be saved in the checkpoint. Zeros on other processes."""
        if not self.is_writer:
            return dict.fromkeys(FILES, 0)
        if self.events:
            self.events.flush()
        return {name: file.offset for name, file in self.files.items()}

    def close(self):
        """Flushes and closes everything."""
        if not self.is_writer:
            return
        for file in self.files.values():
            file.close()
        if self.events:
            self.events.close()
        if self.wandb:
            self.wandb.finish()

    def _scalars(self, file, record):
        if not self.is_writer:
            return
        record = {**plain(record), 'step': int(record['step'])}
        self.files[file].write(record)
        if self.events:
            _add_scalars(self.events, record)
        if self.wandb:
            self.wandb.log({**dict(_scalars_of(record)), 'step': record['step']})


def _scalars_of(record):
    """Pairs (tag, float) of a record: evaluations as they are named, others under their kind."""
    prefix = '' if record['kind'] == 'eval' else record['kind'] + '/'
    for key, value in record.items():
        number = as_number(value)
        if key not in ('step', 'kind') and number is not None and math.isfinite(number):
            yield prefix + key, number


def _add_scalars(events, record):
    for tag, number in _scalars_of(record):
        events.add_scalar(tag, number, record['step'])


def _start_tensorboard(folder, before):
    """Opens an event file that replaces what a killed process wrote after its checkpoint.

    TensorBoard drops the steps >= purge_step of earlier event files. Which of them were kept
    (the evaluation that comes before the save at the same step) stands in the truncated files,
    `before`: those are written again.
    """
    import tensorboardX  # here, since it loads torch where that is installed: seconds

    last = [records[-1]['step'] for records in before.values() if records]
    purge_step = max(last) if last else 0
    earlier = len(list(folder.iterdir())) if folder.exists() else 0
    resumes = earlier > 0
    # The suffix keeps two files of one second apart; TensorBoard reads them in order of name.
    events = tensorboardX.SummaryWriter(str(folder), filename_suffix=f'.{earlier:04d}',
                                        purge_step=purge_step if resumes else None)
    for records in before.values():
        for record in records:
            if record['step'] >= purge_step or not resumes:
                _add_scalars(events, record)
    return events


def _start_wandb(project, workdir):
    try:
        import wandb
    except ImportError as error:
        raise InputError(f'wandb_project={project!r} asks for Weights & Biases, which is not '
                         'installed. Install it with `pip install wandb`, or leave the project '
                         "empty ('').") from error
    run = wandb.init(project=project, name=workdir.name, dir=str(workdir), resume='allow',
                     id=f'{workdir.parent.name}-{workdir.name}'.strip('-'))
    run.define_metric('*', step_metric='step')
    return run
