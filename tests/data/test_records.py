"""Every source of text reads alike; every malformed record is counted, placed and survived."""

import gzip
import json
import os
import time
import tracemalloc

import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from jaxllm.data import records, stdlib
from jaxllm.data.records import Rejects, SourceSpec, read_source
from jaxllm.errors import InputError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, rejects=None, **fields):
    spec = SourceSpec(**{'name': 'src', 'path': str(path), 'license': 'MIT'} | fields)
    return list(read_source(spec, rejects or Rejects()))


def logged(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_is_read_in_order_with_every_kind_of_file(tmp_path):
    folder = tmp_path / 'in'
    write(folder / 'b.md', '# two\n')
    write(folder / 'a/z.txt', '\ufeffone é')
    write(folder / 'a' / 'y.py', 'x = 1\n')
    write(folder / 'c.jsonl', '{"text": "three", "id": 7}\n\n{"text": "four", "license": "CC0"}')
    write(folder / 'd.jsonl.gz', gzip.compress(b'{"text": "five", "id": "own"}\n'))
    pa.parquet.write_table(pa.table({'text': ['six', 'seven'], 'n': [1, 2]}), folder / 'e.parquet')
    write(folder / 'skip.bin', 'no')
    write(folder / '.hidden/x.txt', 'no')
    write(folder / '.x.txt', 'no')
    found = read(folder)
    assert [d.text for d in found] == ['x = 1\n', 'one é', '# two\n', 'three', 'four', 'five',
                                       'six', 'seven']
    assert [os.path.relpath(d.origin, folder) for d in found] == [
        'a/y.py', 'a/z.txt', 'b.md', 'c.jsonl:1', 'c.jsonl:3', 'd.jsonl.gz:1', 'e.parquet:1',
        'e.parquet:2']
    assert [d.license for d in found] == ['MIT'] * 4 + ['CC0'] + ['MIT'] * 3
    assert {d.source for d in found} == {'src'}
    assert (found[3].id, found[5].id) == ('7', 'own')
    assert len({d.id for d in found}) == 8
    assert read(folder) == found


def test_globs_and_single_files(tmp_path):
    for name in ('q/a.txt', 'q/b.txt', 'q/c.md', 'r/d.txt'):
        write(tmp_path / name, name)
    texts = lambda path, **fields: [d.text for d in read(path, **fields)]
    assert texts(tmp_path / '*' / '*.txt') == ['q/a.txt', 'q/b.txt', 'r/d.txt']
    assert texts(tmp_path / '**' / '*.md') == ['q/c.md']
    assert texts(tmp_path / 'q' / 'b.txt') == ['q/b.txt']
    assert texts(tmp_path / 'q', max_documents=2) == ['q/a.txt', 'q/b.txt']


def test_ids_depend_on_source_and_place_not_on_the_folder_above(tmp_path):
    for name in ('one', 'two'):
        write(tmp_path / name / 'sub' / 'a.txt', 'same')
        write(tmp_path / name / 'b.jsonl', '{"text": "x"}\n{"text": "x"}\n')
    ids = lambda path, **fields: [d.id for d in read(path, **fields)]
    assert ids(tmp_path / 'one') == ids(tmp_path / 'two')
    assert len(set(ids(tmp_path / 'one'))) == 3
    assert ids(tmp_path / 'one' / '*.jsonl') == ids(tmp_path / 'one')[:2]
    assert not set(ids(tmp_path / 'one')) & set(ids(tmp_path / 'one', name='other'))


BAD_LINES = [
    ('{"text": "ok"', 'bad JSON'), ('[1]', 'not an object'), ('{"txt": "x"}', "no field 'text'"),
    ('{"text": 3}', "field 'text' is int, not text"),
    ('{"text": null}', "field 'text' is NoneType, not text"), ('{"text": " \\n"}', 'empty text'),
    (b'{"text": "\xff"}', 'invalid UTF-8'), ('{"text": "\\ud83d"}', 'lone surrogate in text'),
    ('{"text": "' + 'x' * 2000 + '"}', 'longer than 1000 bytes'), ('[' * 900, 'bad JSON'),
    ('{"text": ' + '9' * 990 + '}', "field 'text' is int, not text"),
    ('{"id": ' + '{"a":' * 190, 'bad JSON'), ('\x00', 'bad JSON')]


def test_bad_lines_are_counted_placed_and_passed_over(tmp_path):
    lines = [line if isinstance(line, bytes) else line.encode() for line, _ in BAD_LINES]
    good = b'{"text": "good"}'
    file = write(tmp_path / 'x.jsonl', b'\n'.join([good, *lines, good]) + b'\r\n')
    rejects = Rejects(tmp_path / 'out' / 'rejects.jsonl')
    found = read(file, rejects, max_record_bytes=1000)
    assert [d.origin for d in found] == [f'{file}:1', f'{file}:{len(lines) + 2}']
    rows = logged(tmp_path / 'out' / 'rejects.jsonl')
    assert [row['origin'] for row in rows] == [f'{file}:{i + 2}' for i in range(len(lines))]
    for row, (line, reason) in zip(rows, BAD_LINES, strict=True):
        assert row['reason'].partition(':')[0] == reason
        assert row['source'] == 'src'
        assert len(row['start']) <= 200
        if isinstance(line, str):
            assert row['start'] == line[:200]
    assert rows[6]['start'] == '{"text": "\\xff"}'
    summary = rejects.summary()['src']
    assert (summary['read'], summary['rejected']) == (len(lines) + 2, len(lines))
    assert summary['reasons']['bad JSON'] == 4
    assert sum(summary['reasons'].values()) == len(lines)


def test_a_deeply_nested_line_is_bad_json(tmp_path):
    file = write(tmp_path / 'x.jsonl', '[' * 100_000 + '\n{"text": "good"}\n')
    rejects = Rejects()
    assert [d.origin for d in read(file, rejects)] == [f'{file}:2']
    assert rejects.summary()['src']['reasons'] == {'bad JSON': 1}


def test_a_share_of_bad_lines_is_refused_with_their_places(tmp_path):
    file = write(tmp_path / 'x.jsonl', '{"text": "good"}\n' + 'bad\n' * 7 + '{"text": "good"}\n')
    rejects = Rejects(tmp_path / 'rejects.jsonl')
    read(file, rejects)
    rejects.check(7 / 9)
    with pytest.raises(InputError) as info:
        rejects.check(0.5)
    message = str(info.value)
    assert f"source 'src': 7 of 9 records rejected ({file}:2: bad JSON" in message
    assert f'{file}:6' in message and f'{file}:7' not in message and 'and 2 more' in message
    assert '77.78%' in message and 'at most 50.00%' in message
    assert str(tmp_path / 'rejects.jsonl') in message


def test_the_log_starts_anew_and_is_bounded(tmp_path):
    log = write(tmp_path / 'rejects.jsonl', 'old')
    rejects = Rejects(log, max_logged=3)
    assert log.read_text() == ''
    for i in range(5):
        rejects.read('s')
        rejects.reject('s', f'o{i}', 'why: much')
    assert [row['origin'] for row in logged(log)] == ['o0', 'o1', 'o2']
    assert rejects.summary() == {'s': {'read': 5, 'rejected': 5, 'reasons': {'why': 5}}}


def test_bad_whole_files(tmp_path):
    write(tmp_path / 'in/a.txt', b'one\ntwo\nthr\xffee\nfour')
    write(tmp_path / 'in/b.txt', b'y' * 1001)
    write(tmp_path / 'in/c.txt', b'z' * 1000)
    write(tmp_path / 'in/d.txt', b'')
    (tmp_path / 'in/e.txt').symlink_to(tmp_path / 'nowhere')
    rejects = Rejects(tmp_path / 'rejects.jsonl')
    assert [d.text for d in read(tmp_path / 'in', rejects, max_record_bytes=1000)] == ['z' * 1000]
    rows = [(os.path.basename(row['origin']), row['reason'], row['start'][:8])
            for row in logged(tmp_path / 'rejects.jsonl')]
    assert rows == [('a.txt:3', 'invalid UTF-8: invalid start byte', 'thr\\xffe'),
                    ('b.txt:1', 'longer than 1000 bytes: 1001 bytes', 'y' * 8),
                    ('d.txt', 'empty text', '')]


@pytest.mark.parametrize('ending', ['', '\n'])
def test_the_limit_of_a_line_is_exact(tmp_path, ending):
    line = '{"text": "good"}'
    file = write(tmp_path / 'x.jsonl', f'{line}\n{line}{ending}')
    assert len(read(file, max_record_bytes=len(line))) == 2
    rejects = Rejects()
    with pytest.raises(InputError, match=f':1: longer than {len(line) - 1} bytes'):
        read(file, rejects, max_record_bytes=len(line) - 1)
    assert rejects.summary()['src']['read'] == 2


def test_a_line_of_50_mb_takes_little_time_and_memory(tmp_path):
    file = tmp_path / 'x.jsonl'
    with open(file, 'wb') as stream:
        stream.write(b'{"text": "')
        for _ in range(50):
            stream.write(b'a' * 1_000_000)
        stream.write(b'"}\n{"text": "after"}\n')
    rejects = Rejects(tmp_path / 'rejects.jsonl')
    tracemalloc.start()
    start = time.process_time()
    found = read(file, rejects, max_record_bytes=1_000_000)
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(d.text, d.origin) for d in found] == [('after', f'{file}:2')]
    assert seconds < 5 and peak < 10e6
    row, = logged(tmp_path / 'rejects.jsonl')
    assert row['reason'] == 'longer than 1000000 bytes: line of 50000012 bytes'
    assert row['origin'] == f'{file}:1'
    assert os.path.getsize(tmp_path / 'rejects.jsonl') < 1000


@pytest.mark.parametrize('harm', ['cut', 'flip', 'not gzip'])
def test_damaged_gzip_keeps_what_came_before(tmp_path, harm):
    lines = [json.dumps({'text': f'{i} {i * 7919 % 104729}'}) for i in range(30_000)]
    data = bytearray(gzip.compress('\n'.join(lines).encode()))
    if harm == 'cut':
        data = data[:len(data) // 2]
    elif harm == 'flip':
        data += gzip.compress(b'more')
        data[-len(gzip.compress(b'more')) + 10] = 0xff  # of the second member: no such block type
    else:
        data = b'plain text'
    file = write(tmp_path / 'in/a.jsonl.gz', bytes(data))
    write(tmp_path / 'in/b.txt', 'after')
    rejects = Rejects(tmp_path / 'rejects.jsonl')
    found = read(tmp_path / 'in', rejects)
    assert found[-1].text == 'after'
    assert [d.text for d in found[:3]] == ([json.loads(line)['text'] for line in lines[:3]]
                                           if harm != 'not gzip' else ['after'])
    last = logged(tmp_path / 'rejects.jsonl')[-1]
    assert last['reason'].startswith('damaged gzip')
    number = int(last['origin'].removeprefix(f'{file}:'))
    assert number >= rejects.summary()['src']['read'] - 1  # damaged data may hold blank lines
    if harm == 'cut':
        assert rejects.count('src') == 1 and number == len(found)


def test_parquet_rows_and_their_faults(tmp_path):
    raw = pa.array([b'ok', b'\xff', None, b'', b'x' * 30], pa.binary())
    view = pa.Array.from_buffers(pa.string(), 5, raw.buffers())  # unchecked UTF-8
    licenses = ['CC0', None, None, None, None]
    file = tmp_path / 'x.parquet'
    pa.parquet.write_table(pa.table({'body': view, 'license': licenses}), file)
    rejects = Rejects(tmp_path / 'rejects.jsonl')
    found = read(file, rejects, text_key='body', max_record_bytes=20)
    assert [(d.text, d.license, d.origin) for d in found] == [('ok', 'CC0', f'{file}:1')]
    assert [(row['origin'], row['reason'].partition(':')[0])
            for row in logged(tmp_path / 'rejects.jsonl')] == [
        (f'{file}:2', 'invalid UTF-8'), (f'{file}:3', "field 'body' is NoneType, not text"),
        (f'{file}:4', 'empty text'), (f'{file}:5', 'text longer than 20 bytes')]


def test_parquet_is_streamed_over_row_groups_and_dictionaries(tmp_path):
    texts = [f'text {i % 7}' for i in range(1000)]
    table = pa.table({'text': pa.array(texts).dictionary_encode(), 'id': range(1000)})
    pa.parquet.write_table(table, tmp_path / 'x.parquet', row_group_size=300)
    found = read(tmp_path / 'x.parquet')
    assert [d.text for d in found] == texts
    assert [d.id for d in found] == [str(i) for i in range(1000)]
    assert found[-1].origin.endswith('x.parquet:1000')


@pytest.mark.parametrize('harm', ['cut', 'garbage', 'empty', 'other column', 'flipped page'])
def test_unreadable_parquet_is_one_reject(tmp_path, harm):
    file = tmp_path / 'in' / 'a.parquet'
    file.parent.mkdir()
    name = 'txt' if harm == 'other column' else 'text'
    pa.parquet.write_table(pa.table({name: ['a' * 50, 'b']}), file, compression='zstd')
    data = bytearray(file.read_bytes())
    if harm == 'flipped page':
        data[4:40] = bytes(36)
    file.write_bytes({'cut': data[:50], 'garbage': b'PAR1 no', 'empty': b''}.get(harm, data))
    write(tmp_path / 'in/b.txt', 'after')
    rejects = Rejects(tmp_path / 'rejects.jsonl')
    assert [d.text for d in read(tmp_path / 'in', rejects)] == ['after']
    row, = logged(tmp_path / 'rejects.jsonl')
    assert row['origin'] == f'{file}:1'
    kind = "no column 'text'" if harm == 'other column' else 'unreadable parquet'
    assert row['reason'].startswith(kind)


@pytest.mark.parametrize('make, message', [
    (lambda p: p / 'nowhere', 'no such file, folder or glob'),
    (lambda p: p / '*.jsonl', 'no such file, folder or glob'),
    (lambda p: write(p / 'in/a.bin', 'x').parent, 'holds 1 files, none of a known kind'),
    (lambda p: write(p / 'a.csv', 'x'), 'none of a known kind'),
    (lambda p: write(p / 'in/.a.txt', 'x').parent, 'holds 0 files'),
    (lambda p: write(p / 'a.jsonl', '\n \n'), 'no record at all'),
    (lambda p: write(p / 'a.jsonl', 'x\n'), '1 of 1 records rejected .*a.jsonl:1: bad JSON'),
    (lambda p: 'python:nothing', "expected 'python:stdlib'"),
    (lambda p: 'tfds:no_such_dataset_here', 'cannot open TFDS dataset'),
    (lambda p: f'tfds:{p}/nowhere', 'cannot open TFDS dataset')])
def test_sources_without_text_are_refused(tmp_path, monkeypatch, make, message):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    with pytest.raises(InputError, match=message):
        read(make(tmp_path))


class TinyText(tfds.core.GeneratorBasedBuilder):
    """Three records, one of them bad, as a TFDS dataset."""

    VERSION = tfds.core.Version('1.2.3')

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=(
            tfds.features.FeaturesDict({'text': tfds.features.Text(), 'n': tfds.features.Text()})))

    def _split_generators(self, dl_manager):
        return {'train': enumerate([{'text': text, 'n': 'x'} for text in ('uno', '', 'trés')]),
                'test': enumerate([{'text': 'cuatro', 'n': 'x'}])}

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    builder = TinyText(data_dir=tmp_path_factory.mktemp('tfds'), file_format='array_record')
    builder.download_and_prepare()
    return builder


def test_a_prepared_tfds_folder(tiny, tmp_path):
    rejects = Rejects(tmp_path / 'rejects.jsonl')
    found = read(f'tfds:{tiny.data_path}', rejects)
    assert [(d.text, d.origin) for d in found] == [
        ('uno', 'tiny_text/1.2.3/train[0]'), ('trés', 'tiny_text/1.2.3/train[2]')]
    assert logged(tmp_path / 'rejects.jsonl')[0]['origin'] == 'tiny_text/1.2.3/train[1]'
    assert [d.text for d in read(f'tfds:{tiny.data_path}', split='test')] == ['cuatro']
    assert [d.text for d in read(f'tfds:{tiny.data_path}', split='train[:1]+test')] == [
        'uno', 'cuatro']


def test_a_tfds_name_needs_a_prepared_dataset(tiny, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r'tiny_text.*not prepared.*download_and_prepare'):
        monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
        read('tfds:tiny_text:1.2.3')
    with pytest.raises(InputError, match="split 'valid'.*'test', 'train'"):
        read(f'tfds:{tiny.data_path}', split='valid')
    with pytest.raises(InputError, match=r"no feature 'body'; expected one of \['n', 'text'\]"):
        read(f'tfds:{tiny.data_path}', text_key='body')


def test_the_standard_library_by_its_path(tmp_path, monkeypatch):
    write(tmp_path / 'lib/a.py', '"""Doc."""\n')
    monkeypatch.setattr(stdlib, 'library_root', lambda: tmp_path / 'lib')
    assert [d.text for d in read('python:stdlib', split='docstrings', license='')] == [
        'a\n\nDoc.\n']
    found = read('python:stdlib')
    assert len(found) > 50 and found[0].id == 'docstrings/a.py:1'
    assert {d.license for d in found} == {'PSF-2.0'}
    with pytest.raises(InputError, match="split 'tests'.*'docstrings', 'source', 'topics'"):
        read('python:stdlib', split='tests')


def test_documents_and_specs_are_frozen():
    with pytest.raises(AttributeError):
        SourceSpec('a', 'b').weight = 2.0
    with pytest.raises(AttributeError):
        records.Document('t', 'i', 's', 'l', 'o').text = 'x'
