"""A world is published whole or not at all, once, and reads the same in every format."""

import hashlib
import json
import multiprocessing
import os
from collections import Counter

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from jaxllm.errors import InputError
from jaxllm.world import cards, documents, meanings, publish, tables, written
from jaxllm.world.atlas import atlas
from jaxllm.world.datasets import DATASETS
from jaxllm.world.spec import Intervention, WorldSpec

FIELDS = {'id': 'str', 'split': 'str', 'text': 'str', 'kind': 'str', 'template': 'int',
          'weight': 'float', 'true': 'bool', 'sources': 'list[str]', 'planned': 'list[int]',
          'ranks': 'list[float]', 'aliases': 'messages'}
SPEC = WorldSpec(seed=3)


def rows(world, count=7):
    for i in range(count):
        yield {'id': f'd{i}', 'split': ('train', 'validation')[i % 3 == 2], 'text': f'Zoë {i}\n',
               'kind': '', 'template': -i, 'weight': i / 2, 'true': i % 2 == 0,
               'sources': ['é'] * (i % 3), 'planned': list(range(i)), 'ranks': [0.5] * (i % 2),
               'aliases': [{'role': 'user', 'content': f'{i}'}] * (i % 4)}


def write(folder, spec=SPEC, names=None, **functions):
    """Publishes tables whose rows are given functions; default: one called documents."""
    functions = functions or {'documents': rows}
    return publish.publish(folder, spec, names, make_world=no_world,
                           datasets={name: (FIELDS, f) for name, f in functions.items()})


def no_world(seed, scale, intervention):
    """The rows above need none."""


def never(world):
    raise AssertionError('built again')
    yield


def plain(row):
    """A row of a TFDS data source as it went in."""
    text = lambda value: value.decode() if isinstance(value, bytes) else value
    row = {name: text(value) for name, value in row.items()}
    for name in ('sources', 'planned', 'ranks'):
        row[name] = [text(value) for value in row[name]]
    messages = row['aliases']
    row['aliases'] = [{'role': role.decode(), 'content': content.decode()} for role, content
                      in zip(messages['role'], messages['content'], strict=True)]
    return row


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*')
            if path.is_file() and not path.name.startswith('.')}


def test_tfds_and_json_lines_hold_the_same_rows(tmp_path):
    manifest = write(tmp_path)['documents']
    builder = tfds.builder_from_directory(tmp_path / 'tfds' / 'documents' / '2.0.0')
    for split, count in (('train', 5), ('validation', 2)):
        want = [row for row in rows(None) if row['split'] == split]
        source = builder.as_data_source(split)
        assert [plain(source[i]) for i in range(len(source))] == want
        lines = (tmp_path / 'jsonl' / 'documents' / f'{split}.jsonl').read_text().splitlines()
        assert [json.loads(line) for line in lines] == want
        assert len(want) == count == manifest['rows'][split]
    assert 'Zoë' in lines[0]  # readable, not escaped
    assert sorted(builder.info.splits) == ['train', 'validation']
    assert builder.info.redistribution_info.license == 'CC0-1.0'


def test_rows_are_kept_as_tfds_keeps_them():
    features, serialize = written.features(FIELDS), written.serializer(FIELDS)
    for row in rows(None):
        ours = tf_example_pb2.Example.FromString(serialize(row))
        theirs = features.serialize_example(features.encode_example(row))
        assert ours == tf_example_pb2.Example.FromString(theirs)


def test_many_rows_make_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(written, 'ROWS_PER_SHARD', 2)
    write(tmp_path)
    folder = publish.tfds_dir(tmp_path, 'documents')
    assert len(list(folder.glob('*-train.array_record-*-of-00003'))) == 3
    source = tfds.builder_from_directory(folder).as_data_source('train')
    assert [row['id'] for row in map(plain, source)] == ['d0', 'd1', 'd3', 'd4', 'd6']


def test_what_is_there_is_not_built_again(tmp_path):
    first = write(tmp_path / 'one')
    before = files(tmp_path / 'one')
    assert write(tmp_path / 'one', documents=never) == first
    assert files(tmp_path / 'one') == before
    write(tmp_path / 'two')
    assert files(tmp_path / 'two') == before


def test_only_what_is_asked_for_is_built(tmp_path):
    assert write(tmp_path, names=['people'], documents=never, people=rows).keys() == {'people'}
    assert not (tmp_path / 'tfds' / 'documents').exists()
    assert 'cards/people.md' in (tmp_path / 'README.md').read_text()
    write(tmp_path, documents=rows, people=never)
    assert publish.read_manifests(tmp_path).keys() == {'documents', 'people'}
    assert 'cards/documents.md' in (tmp_path / 'README.md').read_text()


@pytest.mark.parametrize('damage', [
    lambda folder: (folder / 'jsonl' / 'documents' / 'train.jsonl').write_text('{}\n'),
    lambda folder: next(folder.rglob('*-train.array_record*')).unlink(),
    lambda folder: (folder / 'manifests' / 'documents.json').unlink()])
def test_what_is_damaged_is_built_again(tmp_path, damage):
    write(tmp_path)
    before = files(tmp_path)
    damage(tmp_path)
    assert files(tmp_path) != before
    write(tmp_path)
    assert files(tmp_path) == before


def test_files_are_read_once_per_process_unless_they_change(tmp_path, monkeypatch):
    write(tmp_path)
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, 'file_digest',
                        lambda file, kind: read.append(file.name) or digest(file, kind))
    write(tmp_path)
    files = len(read)
    assert files == len(set(read)) > 0      # they were moved, so their paths are new
    write(tmp_path)
    assert len(read) == files
    lines = tmp_path / 'jsonl' / 'documents' / 'train.jsonl'
    lines.write_bytes(lines.read_bytes().replace(b'Zo', b'zO'))     # of the same size
    write(tmp_path)
    assert str(lines) in map(str, read[files:])


def test_another_world_is_not_taken_for_this_one(tmp_path):
    write(tmp_path)
    other = WorldSpec(seed=4)
    assert write(tmp_path, other)['documents']['world']['seed'] == 4
    clean = WorldSpec(3, 'nano', Intervention('dirt', 'all', factor=0.0))
    folders = [publish.prepare(tmp_path / 'cache', spec, make_world=no_world,
                               datasets={'documents': (FIELDS, rows)})
               for spec in (SPEC, other, clean)]
    assert len(set(folders)) == 3


def _publish_and_die(folder):
    def dying(world):
        for i, row in enumerate(rows(world)):
            if i == 4:
                os._exit(9)
            yield row
    write(folder, documents=dying)


def _publish_and_count(folder, barrier):
    def counted(world):
        with open(folder / 'built', 'a', encoding='utf-8') as file:
            file.write('x')
        yield from rows(world)
    barrier.wait()
    write(folder, documents=counted)


def _start(target, *arguments):
    process = multiprocessing.get_context('spawn').Process(target=target, args=arguments)
    process.start()
    return process


def test_a_kill_leaves_nothing_half(tmp_path):
    process = _start(_publish_and_die, tmp_path)
    process.join(60)
    assert process.exitcode == 9
    assert (tmp_path / '.documents.building').exists()
    assert not (tmp_path / 'tfds').exists() and not (tmp_path / 'jsonl').exists()
    write(tmp_path)
    assert not list(tmp_path.glob('.*.building'))
    whole = tmp_path / 'whole'
    write(whole)
    assert files(whole) == {name: content for name, content in files(tmp_path).items()
                            if not name.startswith('whole')}


def test_an_error_in_the_rows_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError, match='built again'):
        write(tmp_path, documents=never)
    assert files(tmp_path) == {}


def test_of_several_processes_one_builds(tmp_path):
    barrier = multiprocessing.get_context('spawn').Barrier(3)
    processes = [_start(_publish_and_count, tmp_path, barrier) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / 'built').read_text() == 'x'


@pytest.mark.parametrize('change, message', [
    (dict(split='dev'), "split 'dev'"), (dict(extra=1), "'extra'")])
def test_rows_that_do_not_fit_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, documents=lambda world: (row | change for row in rows(world)))
    assert publish.read_manifests(tmp_path) == {}


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="no dataset 'docs'; it has documents"):
        write(tmp_path, names=['docs'])
    with pytest.raises(InputError, match="no text 'txt'"):
        publish.check_dataset('documents', 'txt')
    with pytest.raises(InputError, match="type 'dict'"):
        written.features({'id': 'dict'})


@pytest.mark.parametrize('name', DATASETS)
def test_every_dataset_has_a_card_that_explains_every_field(name):
    fields, _ = DATASETS[name]
    assert {'id', 'split'} <= fields.keys() and set(fields.values()) <= set(written.TYPES)
    card = cards.dataset_card({
        'name': name, 'fields': fields, 'rows': {'train': 1234}, 'license': 'CC0-1.0',
        'jsonl_sha256': {'train': 'abc123'}, 'generator_version': 1,
        'world_fingerprint': SPEC.fingerprint,
        'world': dict(seed=3, scale='nano', intervention=dict(kind='skew', target='A'))})
    assert all(f'| `{field}` | {kind} | ' in card for field, kind in fields.items())
    for part in ('| train | 1,234 | `abc123` |', 'seed 3', 'scale nano', 'kind skew, target A',
                 SPEC.fingerprint, '## Limits', '## Use', 'CC0-1.0'):
        assert part in card


def test_the_truth_tables_agree_with_the_documents():
    world = atlas(1, 'nano', Intervention('dirt', 'all', factor=2.0))
    told, false, copies = Counter(), Counter(), Counter()
    for row in documents.rows(world):
        if row['kind'] != 'fact' or row['split'] != 'train' or row['near_duplicate_of']:
            continue
        key = row['subject'], row['attribute']
        if row['duplicate_of']:
            copies[key] += 1
        elif row['true']:
            told[*key, row['source']] += 1
        else:
            false[key] += 1
    by_source = Counter()
    for (_, _, source), n in told.items():
        by_source[source] += n
    assert {row['name']: row['documents'] for row in tables.sources(world)} == {
        name: by_source[name] for name in world.truth.sources.names}
    got = Counter()
    for row in tables.counts(world):
        key = row['subject'], row['attribute']
        got.update({(*key, source): n for source, n in zip(row['sources'], row['documents'],
                                                           strict=True)})
        assert (row['false_documents'], row['copies']) == (false[key], copies[key])
    assert got == told and false and copies
    people = {row['name']: row for row in tables.people(world)}
    per_fact = Counter()
    for (subject, attribute, _), n in told.items():
        per_fact[subject, attribute] += n
    for name, row in people.items():
        assert row['seen'] == min(per_fact[name, attribute] for attribute in row['attributes'])


def test_a_field_without_a_meaning_is_an_error():
    with pytest.raises(InputError, match="'colour' of dataset 'people'"):
        meanings.meaning('colour', 'people')
