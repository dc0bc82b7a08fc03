"""Reads records of each file format, in bounded memory; what cannot be read becomes an error."""

import csv
import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tensorflow_datasets as tfds

from jaxllm.errors import InputError

START_CHARS = 200  # of a bad record, kept for the report
CHUNK = 1 << 20
BATCH = 256


@dataclasses.dataclass(frozen=True)
class Raw:
    """One record as read: its fields, or the error and the start of what was there.

    Attributes:
        origin: for people: file and line, row or index.
        place: the part of the origin that ids are made of (without the file's folder).
    """
    origin: str
    place: str
    fields: dict
    error: str = ''
    start: str = ''


def bad(origin: str, place: str, error: str, start: bytes | str = '') -> Raw:
    """A record that cannot be read."""
    head = start[:START_CHARS]
    text = head.decode('utf-8', errors='backslashreplace') if isinstance(head, bytes) else head
    return Raw(origin, place, {}, error, text)


def read_whole(file: str, text_key: str, max_bytes: int) -> Iterator[Raw]:
    """A file as one record."""
    try:
        size = os.path.getsize(file)
        with open(file, 'rb') as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        yield bad(file, '', f'unreadable file: {error.strerror}')
        return
    if len(data) > max_bytes:
        yield bad(f'{file}:1', '', f'longer than {max_bytes} bytes: {size} bytes', data)
        return
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = data.count(b'\n', 0, error.start) + 1
        start = data[data.rfind(b'\n', 0, error.start) + 1:]
        yield bad(f'{file}:{line}', '', f'invalid UTF-8: {error.reason}', start)
        return
    yield Raw(file, '', {text_key: text}, start=text[:START_CHARS])


def read_jsonl(file: str, text_key: str, max_bytes: int) -> Iterator[Raw]:
    """A JSON object per line; also gzipped."""
    number = 0
    try:
        with (gzip.open(file, 'rb') if file.endswith('.gz') else open(file, 'rb')) as stream:
            for number, line, length in bounded_lines(stream, max_bytes):
                place = f':{number}'
                if length > max_bytes:
                    yield bad(file + place, place, f'longer than {max_bytes} bytes: line of '
                              f'{length} bytes', line)
                elif line.strip():
                    yield parse_line(line, file + place, place)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield bad(f'{file}:{number + 1}', f':{number + 1}', f'damaged gzip: {error}')
    except OSError as error:
        yield bad(f'{file}:{number + 1}', f':{number + 1}', f'unreadable file: {error.strerror}')


def bounded_lines(stream, max_bytes: int) -> Iterator[tuple[int, bytes, int]]:
    """(number from 1, line, its length); of a line longer than `max_bytes` only the start."""
    number = 0
    while line := stream.readline(max_bytes + 1):  # the line end is not counted
        number += 1
        kept = line.removesuffix(b'\n')
        length = len(kept)
        while length > max_bytes and not line.endswith(b'\n'):
            line = stream.readline(CHUNK)
            if not line:
                break
            length += len(line) - line.endswith(b'\n')
        yield number, kept, length


def parse_line(line: bytes, origin: str, place: str) -> Raw:
    """One line of JSON."""
    try:
        fields = json.loads(line.decode('utf-8-sig'))
    except UnicodeDecodeError as error:
        return bad(origin, place, f'invalid UTF-8: {error.reason} at byte {error.start}', line)
    except (ValueError, RecursionError) as error:
        return bad(origin, place, f'bad JSON: {error}', line)
    if not isinstance(fields, dict):
        return bad(origin, place, f'not an object: a JSON {type(fields).__name__}', line)
    return Raw(origin, place, fields, start=line[:START_CHARS].decode('utf-8', 'replace'))


def read_parquet(file: str, text_key: str, max_bytes: int) -> Iterator[Raw]:
    """A record per row, streamed by batches; columns `text_key`, id and license ('' = all)."""
    row = 0
    try:
        with pa.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if text_key and text_key not in names:
                yield bad(f'{file}:1', ':1', f'no column {text_key!r}: the columns are {names}')
                return
            columns = [name for name in dict.fromkeys((text_key, 'id', 'license'))
                       if name in names] if text_key else names
            for batch in table.iter_batches(batch_size=BATCH, columns=columns):
                values = [to_values(batch.column(name)) for name in columns]
                for cells in zip(*values, strict=True):
                    row += 1
                    yield decode_fields(dict(zip(columns, cells, strict=True)), f'{file}:{row}',
                                        f':{row}')
    except (pa.ArrowException, OSError) as error:
        yield bad(f'{file}:{row + 1}', f':{row + 1}', f'unreadable parquet: {error}')


def to_values(column: pa.Array) -> list:
    """Python values of a column; strings as bytes, because parquet does not check their UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def decode_fields(fields: dict, origin: str, place: str) -> Raw:
    """A record whose byte strings are UTF-8 text."""
    decoded = {}
    for name, value in fields.items():
        try:
            decoded[name] = _decoded(value)
        except UnicodeDecodeError as error:
            return bad(origin, place, f'invalid UTF-8: {error.reason} in field {name!r}',
                       value if isinstance(value, bytes) else '')
    start = next((value for value in decoded.values() if isinstance(value, str)), '')
    return Raw(origin, place, decoded, start=start[:START_CHARS])


def _decoded(value):
    """bytes as text, also within lists and dicts; numpy arrays as lists."""
    if isinstance(value, bytes):
        return value.decode('utf-8')
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_csv(file: str, text_key: str, max_bytes: int) -> Iterator[Raw]:
    """A record per row behind a header; a quoted cell may have several lines, the record is at the
    first of them. Reading goes on at the next line behind a row that cannot be read."""
    del text_key
    csv.field_size_limit(max(max_bytes, csv.field_size_limit()))
    try:
        with open(file, encoding='utf-8-sig', errors='surrogateescape', newline='') as stream:
            rows, names = csv.reader(stream, strict=True), None
            for line, cells, error in _csv_rows(rows):
                place, start = f':{line}', ','.join(cells)
                problem = error or _csv_problem(cells, names, start, max_bytes)
                if names is None and not problem:
                    names = cells
                elif problem:
                    yield bad(file + place, place, problem,
                              start.encode('utf-8', 'surrogateescape'))
                else:
                    yield Raw(file + place, place, dict(zip(names, cells, strict=True)),
                              start=start[:START_CHARS])
                if names is None:
                    return  # without its header the rest means nothing
    except OSError as error:
        yield bad(f'{file}:1', ':1', f'unreadable file: {error.strerror}')


def _csv_rows(rows):
    """(number of its first line, cells, error) of each row that is not empty."""
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, [], f'bad CSV: {error}'
            continue
        if cells:
            yield line, cells, ''


def _csv_problem(cells, names, start, max_bytes):
    """Why a row is no record (under names) or no header (names is None), or ''."""
    try:
        size = len(start.encode())
    except UnicodeEncodeError:
        return 'invalid UTF-8: a cell is in another encoding'
    if size > max_bytes:
        return f'longer than {max_bytes} bytes: row of {size} bytes'
    if names is None:
        distinct = len(set(cells)) == len(cells) and all(cells)
        return '' if distinct else f'bad header: the columns are {cells}, expected distinct names'
    if len(cells) != len(names):
        return f'bad row: {len(cells)} cells under {len(names)} columns'
    return ''


def open_tfds(name: str) -> tfds.core.DatasetBuilder:
    """A prepared dataset by 'NAME[/CONFIG][:VERSION]' or by its folder, without TensorFlow."""
    try:
        if os.path.isabs(name) or name.startswith('.'):
            return tfds.builder_from_directory(name)
        builder = tfds.builder(name, file_format='array_record')
    except (tfds.core.DatasetNotFoundError, ValueError, OSError, AssertionError) as error:
        raise InputError(f'cannot open TFDS dataset {name!r}: {error}; expected '
                         'NAME[/CONFIG][:VERSION] or the folder of a prepared dataset') from error
    if not builder.data_path.exists():
        raise InputError(
            f'TFDS dataset {name!r} is not prepared in {builder.data_path}; run python -c "import '
            f'tensorflow_datasets as tfds; tfds.builder({name!r}, file_format=\'array_record\')'
            '.download_and_prepare()", or set TFDS_DATA_DIR to where it is')
    return builder


def read_tfds(builder: tfds.core.DatasetBuilder, split: str, text_key: str) -> Iterator[Raw]:
    """The records of a split, read in batches; with text_key '' all fields of each."""
    label = builder.info.full_name
    features = sorted(builder.info.features or {})
    if text_key and text_key not in features:
        raise InputError(f'dataset {label} has no feature {text_key!r}; expected one of '
                         f'{features}; set text_key')
    try:
        source = builder.as_data_source(split)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise InputError(
            f'cannot read split {split!r} of {label}: {error}; its splits are '
            f'{sorted(builder.info.splits)}, its format must be array_record (it is '
            f'{builder.info.file_format})') from error
    for first in range(0, len(source), BATCH):
        indices = range(first, min(first + BATCH, len(source)))
        for i, fields in zip(indices, source.__getitems__(list(indices)), strict=True):
            place = f'{label}/{split}[{i}]'
            wanted = (text_key, 'id', 'license') if text_key else fields
            yield decode_fields({name: fields[name] for name in wanted if name in fields}, place,
                                place)


BY_SUFFIX = {'.txt': read_whole, '.md': read_whole, '.py': read_whole, '.jsonl': read_jsonl,
             '.jsonl.gz': read_jsonl, '.parquet': read_parquet}
