"""Writes the rows of a dataset as JSON lines and as a TFDS dataset at once, one pass, any size."""

import hashlib
import json
import operator
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from jaxllm.errors import InputError
from jaxllm.world.spec import SPLITS

ROWS_PER_SHARD = 500_000
_MESSAGE = ('role', 'content')
# Type of a field -> (its TFDS feature, the list of a tf.train.Feature it is kept in, how to get
# there). Floats are float32 there.
_SCALARS = {'str': (tfds.features.Text, 'bytes_list', str.encode),
            'int': (lambda: tfds.features.Scalar(np.int64), 'int64_list', int),
            'float': (lambda: tfds.features.Scalar(np.float32), 'float_list', float),
            'bool': (lambda: tfds.features.Scalar(np.bool_), 'int64_list', int)}
TYPES = (*_SCALARS, 'list[str]', 'list[int]', 'list[float]', 'messages')


def features(fields: dict[str, str]) -> tfds.features.FeaturesDict:
    """The TFDS features of a dataset. 'messages' is a sequence of {role, content}, which TFDS gives
    back as {'role': [...], 'content': [...]}.

    Raises: InputError for a type that is not one of TYPES.
    """
    found = {}
    for name, kind in fields.items():
        if kind not in TYPES:
            raise InputError(f'field {name!r} has type {kind!r}; expected one of '
                             f'{", ".join(TYPES)}')
        if kind == 'messages':
            found[name] = tfds.features.Sequence({key: tfds.features.Text() for key in _MESSAGE})
        elif kind.startswith('list'):
            found[name] = tfds.features.Sequence(_SCALARS[kind[5:-1]][0]())
        else:
            found[name] = _SCALARS[kind][0]()
    return tfds.features.FeaturesDict(found)


def serializer(fields: dict[str, str]):
    """serialize(row) -> the `tf.train.Example` that TFDS reads with `features(fields)`.

    The same message that TFDS makes of a row, in a fraction of the time.
    """
    plan = []  # (name in the message, where its values are kept, their type, how to get them)
    for name, kind in fields.items():
        if kind == 'messages':
            plan += [(f'{name}/{key}', *_SCALARS['str'][1:],
                      lambda row, name=name, key=key: [message[key] for message in row[name]])
                     for key in _MESSAGE]
        elif kind.startswith('list'):
            plan.append((name, *_SCALARS[kind[5:-1]][1:], operator.itemgetter(name)))
        else:
            plan.append((name, *_SCALARS[kind][1:], lambda row, name=name: (row[name],)))

    def serialize(row):
        example = tf_example_pb2.Example()
        stored = example.features.feature
        for name, where, convert, values in plan:
            target = getattr(stored[name], where)
            target.SetInParent()  # so that an empty list has its type
            target.value.extend(map(convert, values(row)))
        return example.SerializeToString(deterministic=True)
    return serialize


class DatasetWriter:
    """Appends rows to their splits; use as a context manager, then call `finish`.

    Files: tfds/<name>/<version>/ and jsonl/<name>/<split>.jsonl under `folder`. A split without a
    row has no file.

    Attributes:
        counts: {split: rows}, of the splits that have any.
    """

    def __init__(self, folder: pathlib.Path, name: str, fields: dict[str, str], version: str):
        self.name, self.fields, self.version = name, fields, version
        self.features, self._serialize = features(fields), serializer(fields)
        self.tfds_dir = folder / 'tfds' / name / version
        self.jsonl_dir = folder / 'jsonl' / name
        for path in (self.tfds_dir, self.jsonl_dir):
            path.mkdir(parents=True)
        self._splits = {}
        self._encode = json.JSONEncoder(ensure_ascii=False, default=lambda x: x.tolist()).encode

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for split in self._splits.values():
            split.close()

    @property
    def counts(self) -> dict[str, int]:
        return {name: self._splits[name].rows for name in SPLITS if name in self._splits}

    def add(self, row: dict) -> None:
        """Appends a row to the split it names. Raises ValueError if it has other fields."""
        if row.keys() != self.fields.keys():
            raise ValueError(f'a row of {self.name} has other fields than its FIELDS: '
                             f'{sorted(row.keys() ^ self.fields.keys())} differ')
        split = row['split']
        if split not in self._splits:
            if split not in SPLITS:
                raise ValueError(f'a row of {self.name} has split {split!r}, expected one of '
                                 f'{SPLITS}')
            self._splits[split] = _Split(self.tfds_dir, f'{self.name}-{split}',
                                         self.jsonl_dir / f'{split}.jsonl')
        self._splits[split].add(self._encode(row).encode('utf-8') + b'\n',
                                self._serialize(row))

    def finish(self, description: str, license: str) -> dict[str, str]:
        """Closes the files and writes the TFDS metadata. Returns {split: sha256 of its JSONL}.

        Raises: ValueError if there was no row at all.
        """
        if not self._splits:
            raise ValueError(f'dataset {self.name} has no row')
        infos = []
        for name in self.counts:
            split = self._splits[name]
            split.close()
            split.name_shards()
            infos.append(tfds.core.SplitInfo(name=name, shard_lengths=split.shard_lengths,
                                             num_bytes=split.num_bytes))
        tfds.folder_dataset.write_metadata(
            data_dir=self.tfds_dir, features=self.features, split_infos=infos,
            version=self.version, check_data=False,  # which would need TensorFlow
            description=description, license=license, disable_shuffling=True)
        return {name: self._splits[name].digest.hexdigest() for name in self.counts}


class _Split:
    """The files of one split."""

    def __init__(self, folder, prefix, jsonl):
        self.folder, self.prefix = folder, prefix
        self.jsonl = open(jsonl, 'wb')
        self.records = None
        self.digest = hashlib.sha256()
        self.rows, self.num_bytes, self.shard_lengths = 0, 0, []

    def add(self, line, example):
        if self.records is None or self.shard_lengths[-1] == ROWS_PER_SHARD:
            self._close_records()
            self.records = ArrayRecordWriter(str(self._unnamed(len(self.shard_lengths))),
                                             'group_size:1')
            self.shard_lengths.append(0)
        self.jsonl.write(line)
        self.digest.update(line)
        self.records.write(example)
        self.rows += 1
        self.shard_lengths[-1] += 1
        self.num_bytes += len(example)

    def _unnamed(self, shard):
        return self.folder / f'{self.prefix}.{shard:05d}'

    def _close_records(self):
        if self.records is not None:
            self.records.close()
            self.records = None

    def close(self):
        self._close_records()
        self.jsonl.close()

    def name_shards(self):
        """A shard's name says how many there are, which is known only now."""
        count = len(self.shard_lengths)
        for shard in range(count):
            self._unnamed(shard).rename(
                self.folder / f'{self.prefix}.array_record-{shard:05d}-of-{count:05d}')
