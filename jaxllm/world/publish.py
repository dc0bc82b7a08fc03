"""Publishes a world: every dataset as TFDS and JSON lines with a data card, each whole or absent.

    <folder>/README.md                     the card of the world
    <folder>/tfds/<name>/<version>/        array_record, opens with tfds.builder_from_directory
    <folder>/jsonl/<name>/<split>.jsonl    the same rows for every other tool
    <folder>/cards/<name>.md               the card of one dataset
    <folder>/manifests/<name>.json         counts and hashes; written last: marks what is whole
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil

from jaxllm.config import one_builder, write_atomic
from jaxllm.errors import InputError
from jaxllm.world import cards
from jaxllm.world.atlas import atlas
from jaxllm.world.datasets import DATASETS
from jaxllm.world.spec import VERSION, WorldSpec
from jaxllm.world.written import DatasetWriter

TFDS_VERSION = f'{VERSION}.0.0'


def prepare(cache_dir: str | os.PathLike, spec: WorldSpec, names=None, **options) -> pathlib.Path:
    """The folder of a published world under `cache_dir`, where missing datasets are built first.

    Args:
        cache_dir: shared by all runs of a machine.
        spec: which world.
        names: datasets that are needed; default: all. Others are not waited for.
        options: of `publish`.
    """
    folder = pathlib.Path(cache_dir).absolute() / 'worlds' / spec.fingerprint
    publish(folder, spec, names, **options)
    return folder


def publish(folder: pathlib.Path, spec: WorldSpec, names=None, *, datasets=None,
            make_world=atlas, say=None) -> dict:
    """Writes the datasets of a world into `folder`; those that are there and whole stay.

    Safe with several processes at once, each of which may ask for other datasets; a kill at any
    moment leaves only datasets that are whole, and the next call makes the rest.

    Args:
        datasets: {name: (FIELDS, rows function)}; default DATASETS.
        make_world: make_world(seed, scale, intervention), called once if anything is missing.
        say: called with one line about each dataset that is built.

    Returns:
        {name: manifest} of `names`.

    Raises:
        InputError: an unknown dataset, or what `atlas` raises.
    """
    datasets = DATASETS if datasets is None else datasets
    names = tuple(datasets if names is None else names)
    for name in names:
        check_dataset(name, 'id', datasets)
    folder.mkdir(parents=True, exist_ok=True)
    world = functools.cache(lambda: make_world(spec.seed, spec.scale, spec.intervention))
    manifests, built = {}, False
    for name in names:
        with one_builder(folder / name):
            manifests[name] = _whole(folder, name, spec)
            if manifests[name] is None:
                manifests[name], built = _build(folder, name, datasets[name], spec, world()), True
                if say:
                    say(f'{name:<15} {_counts(manifests[name])}')
    if built or not (folder / 'README.md').exists():
        with one_builder(folder / 'README.md'):
            write_atomic(folder / 'README.md', cards.world_card(spec, read_manifests(folder)))
    return manifests


def check_dataset(name: str, field: str, datasets=None) -> None:
    """Raises InputError unless the world has this dataset, with this field of text."""
    datasets = DATASETS if datasets is None else datasets
    if name not in datasets:
        raise InputError(f'the world has no dataset {name!r}; it has {", ".join(datasets)}')
    texts = [key for key, kind in datasets[name][0].items() if kind == 'str']
    if field not in texts:
        raise InputError(f'dataset {name!r} of the world has no text {field!r}; it has '
                         f'{", ".join(texts)}')


def tfds_dir(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where a dataset of a published world can be opened with `tfds.builder_from_directory`."""
    return folder / 'tfds' / name / TFDS_VERSION


def read_manifests(folder: pathlib.Path) -> dict[str, dict]:
    """{name: manifest} of every dataset that is in `folder`, sorted."""
    return {file.stem: json.loads(file.read_text('utf-8'))
            for file in sorted((folder / 'manifests').glob('*.json'))}


def _build(folder, name, dataset, spec, world):
    """Writes one dataset beside its place, then moves it there; the manifest comes last."""
    fields, rows = dataset
    building = folder / f'.{name}.building'
    places = [('tfds', name), ('jsonl', name)]
    for path in (building, *(folder.joinpath(*place) for place in places)):
        shutil.rmtree(path, ignore_errors=True)  # left over from a kill, or damaged
    building.mkdir()
    try:
        with DatasetWriter(building, name, fields, TFDS_VERSION) as writer:
            for row in rows(world):
                writer.add(row)
            hashes = writer.finish(cards.summary(name), cards.LICENSE)
        manifest = {
            'name': name, 'license': cards.LICENSE, 'world': dataclasses.asdict(spec),
            'world_fingerprint': spec.fingerprint, 'generator_version': VERSION,
            'fields': fields, 'rows': writer.counts, 'jsonl_sha256': hashes,
            'files': {str(file.relative_to(building)): _sha256(file)
                      for file in sorted(building.rglob('*')) if file.is_file()}}
        for place in places:
            folder.joinpath(*place).parent.mkdir(exist_ok=True)
            building.joinpath(*place).rename(folder.joinpath(*place))
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for kind in ('cards', 'manifests'):
        (folder / kind).mkdir(exist_ok=True)
    write_atomic(folder / 'cards' / f'{name}.md', cards.dataset_card(manifest))
    write_atomic(folder / 'manifests' / f'{name}.json', json.dumps(manifest, indent=1))
    return manifest


def _whole(folder, name, spec):
    """The manifest of a dataset that is there, as it was written, of this world; otherwise None."""
    file = folder / 'manifests' / f'{name}.json'
    if not file.exists():
        return None
    manifest = json.loads(file.read_text('utf-8'))
    if manifest['world_fingerprint'] == spec.fingerprint and all(
            (folder / path).is_file() and _sha256(folder / path) == sha256
            for path, sha256 in manifest['files'].items()):
        return manifest
    file.unlink()  # before the rest is removed, since it says that the dataset is whole
    return None


def _counts(manifest):
    return '  '.join(f'{split} {count:,}' for split, count in manifest['rows'].items())


def _sha256(file):
    status = file.stat()
    return _sha256_of(file, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.cache
def _sha256_of(file, *_):
    """A file is read once per process, unless it changes."""
    with open(file, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()
