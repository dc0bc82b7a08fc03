"""Tensors in files, read one at a time: safetensors (in shards, too) and GGUF.

Files are not kept mapped: what was read is freed, so that memory holds one tensor and not the pages
of all that were ever looked at. Nothing is ever unpickled.
"""

import dataclasses
import hashlib
import json
import math
import pathlib

import gguf
import numpy as np
import safetensors

from jaxllm.errors import InputError

_PICKLED = ('*.bin', '*.pt', '*.pth', '*.ckpt')
_QUANTS = ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K')


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where a tensor is: file, shape and, in GGUF, its type and place."""
    file: pathlib.Path
    shape: tuple
    kind: str = ''
    offset: int = 0
    num_bytes: int = 0


class SafetensorsFolder:
    """The tensors of model.safetensors, or of the shards that its index lists."""

    def __init__(self, folder):
        self.files = _safetensors_files(folder)
        self.tensors = {}
        for file in self.files:
            with _opened(file) as stored:
                for name in stored.keys():  # noqa: SIM118  (it is no dict)
                    self.tensors[name] = _Stored(file, tuple(stored.get_slice(name).get_shape()))
        self._check_index(folder)

    def _check_index(self, folder):
        index = folder / 'model.safetensors.index.json'
        if index.exists():
            for name, file in json.loads(index.read_text())['weight_map'].items():
                if name not in self.tensors:
                    raise InputError(f'{folder / file} lacks the tensor {name}, which {index.name} '
                                     'says is in it; download that file again')

    def shape(self, name):
        return self.tensors[name].shape

    def read(self, name):
        """The tensor in float32."""
        with _opened(self.tensors[name].file) as stored:
            return np.asarray(stored.get_tensor(name), np.float32)

    def fingerprint(self):
        return _hash_of(self.files)


def _safetensors_files(folder):
    index = folder / 'model.safetensors.index.json'
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
        except (ValueError, KeyError) as error:
            raise InputError(f'{index} is damaged ({error}); download it again') from error
        for name in names:
            if not (folder / name).exists():
                raise InputError(f'{folder / name} is missing, a shard that {index.name} lists; '
                                 'download it again')
        return [folder / name for name in names]
    files = sorted(folder.glob('*.safetensors'))
    if not files:
        if any(list(folder.glob(pattern)) for pattern in _PICKLED):
            raise InputError(f'{folder} holds pickled weights, which can run any code when they '
                             'are opened and are never read; save them anew with '
                             'model.save_pretrained(folder), which writes safetensors')
        raise InputError(f'{folder} holds no *.safetensors; expected a folder that '
                         'save_pretrained has written')
    return files


def _opened(file):
    try:
        return safetensors.safe_open(str(file), framework='numpy')
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f'{file} cannot be read as safetensors ({error}): it is truncated or '
                         'damaged; download it again') from error


class GgufFile:
    """The tensors and settings of one GGUF file; `fields` has the latter by key."""

    def __init__(self, path):
        self.path = path
        try:
            reader = gguf.GGUFReader(str(path))
            self.fields = {key: field.contents() for key, field in reader.fields.items()}
            self.tensors = {t.name: _Stored(path, tuple(int(n) for n in reversed(t.shape)),
                                            t.tensor_type.name, int(t.data_offset), int(t.n_bytes))
                            for t in reader.tensors}
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise InputError(f'{path} cannot be read as GGUF ({error}): it is truncated or '
                             'damaged; download it again') from error
        size = path.stat().st_size
        for name, stored in self.tensors.items():
            if stored.offset + stored.num_bytes > size:
                raise InputError(f'{path} is truncated: tensor {name} ends at byte '
                                 f'{stored.offset + stored.num_bytes:,} and the file at {size:,}; '
                                 'download it again')
            if stored.kind not in _QUANTS:
                raise InputError(f'{path}: tensor {name} is stored as {stored.kind}, which is not '
                                 f'supported; use a file of {", ".join(_QUANTS)}')

    def shape(self, name):
        return self.tensors[name].shape

    def read(self, name):
        """The tensor in float32."""
        stored = self.tensors[name]
        raw = np.fromfile(stored.file, np.uint8, stored.num_bytes, offset=stored.offset)
        kind = gguf.GGMLQuantizationType[stored.kind]
        if stored.kind == 'F32':
            return raw.view(np.float32).reshape(stored.shape)
        if stored.kind == 'F16':
            return raw.view(np.float16).astype(np.float32).reshape(stored.shape)
        rows = math.prod(stored.shape[:-1])
        return gguf.quants.dequantize(raw.reshape(rows, -1), kind).reshape(stored.shape)

    def fingerprint(self):
        return _hash_of([self.path])


def _hash_of(files):
    total = hashlib.sha256()
    for file in files:
        with open(file, 'rb') as stream:
            total.update(hashlib.file_digest(stream, 'sha256').digest())
    return total.hexdigest()
