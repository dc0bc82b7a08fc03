"""The verb `label`: samples of models, restarts, the report, datasets out and in."""

import itertools
import json
import pathlib
import types

import jax
import pytest
import runs
import toy_models

from jaxllm.data import chat
from jaxllm.data.preferences import ComparisonSpec, read_comparisons
from jaxllm.data.rejects import Rejects
from jaxllm.data.tokenizer import byte_tokenizer
from jaxllm.feedback import items
from jaxllm.feedback.labels import Labels
from jaxllm.sharding import make_mesh
from jaxllm.stages import artifact

_KEYS = itertools.count()


@pytest.fixture
def models(monkeypatch):
    """Three tiny models in place of runs: a and b chat, c is a base model."""
    tokenizer, mesh = byte_tokenizer(), make_mesh(devices=jax.devices()[:1])
    cfg = toy_models.config('llama', vocab_size=tokenizer.vocab_size, num_layers=1,
                            max_seq_len=96)
    template = chat.load_template('chatml_bos')

    def load(path):
        seed = 'abc'.index(path)
        with jax.set_mesh(mesh):
            params = jax.device_put(toy_models.params(cfg, seed), jax.sharding.NamedSharding(
                mesh, jax.sharding.PartitionSpec()))
        return artifact.Artifact({}, cfg, params, tokenizer, 0, mesh,
                                 template if path != 'c' else None, (tokenizer.eos_id,), None)
    monkeypatch.setattr(artifact, 'load', load)


def write(path, *rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def label(*arguments):
    return runs.run_here(['label', *arguments])


@pytest.fixture
def nobody(monkeypatch):
    """Nobody types anything."""
    def end(prompt):
        raise EOFError
    monkeypatch.setattr('builtins.input', end)
    return ['--terminal', '--rater=Ann']


def test_samples_of_models_are_drawn_once(tmp_path, models, nobody, capsys, monkeypatch):
    prompts = write(tmp_path / 'p.jsonl', {'prompt': 'one', 'id': 'x'}, {'prompt': 'two'},
                    {'prompt': 'long' * 20, 'id': 'z'}, {'nothing': 1})
    command = [f'--prompts={prompts}', '--model=a', '--model=b', '--samples=2',
               '--max_new_tokens=6', f'--workdir={tmp_path / "w"}', *nobody]
    assert label(*command) == 0
    assert "left out: {'unreadable': 1, 'too long for the context': 1}" in capsys.readouterr().err
    found = items.read_items(tmp_path / 'w')
    assert [item.id for item in found] == ['x', ':2']
    for item in found:
        assert item.prompt[-1]['role'] == 'user' and len(item.responses) == 4
        assert sorted(itertools.chain(*item.sources)) == ['a', 'a', 'b', 'b']
    before = (tmp_path / 'w/items.jsonl').read_bytes()
    monkeypatch.setattr(artifact, 'load', None)     # a restart needs no model
    assert label(*command) == label(f'--workdir={tmp_path / "w"}', *nobody) == 0
    assert (tmp_path / 'w/items.jsonl').read_bytes() == before
    assert label(*command, '--samples=3') == 2
    assert 'made with other settings (samples 2 -> 3)' in capsys.readouterr().err


def test_base_models_continue_and_chat_models_answer(tmp_path, models, nobody, monkeypatch):
    fed = []

    def generate(params, cfg, prompts, sampling, *, tokenizer, **options):
        fed.append(tokenizer.decode(prompts[0]))
        return types.SimpleNamespace(texts=[f'{len(fed)}-{i}' for i in range(len(prompts))])
    monkeypatch.setattr('jaxllm.decode.generate', generate)
    prompts = write(tmp_path / 'p.jsonl', {'prompt': 'one'})
    assert label(f'--prompts={prompts}', '--model=c', '--model=a', '--samples=1', '--system=be',
                 '--max_new_tokens=6', f'--workdir={tmp_path / "w"}', *nobody) == 0
    assert fed[0] == 'one' and 'be' in fed[1] and fed[1].index('be') < fed[1].index('one')
    item, = items.read_items(tmp_path / 'w')
    assert dict(zip(item.responses, item.sources, strict=True)) == {
        '1-0': ('c',), '2-0': ('a',)}


@pytest.mark.parametrize('arguments, message', [
    ([], 'no --workdir'), (['--workdir=W'], 'holds nothing to label: give --model'),
    (['--workdir=W', '--model=a'], '--model without --prompts'),
    (['--workdir=W', '--model=a', '--model=a', '--prompts=P'], '--model is given twice'),
    (['--workdir=W', '--model=a', '--samples=1', '--prompts=P'], 'fewer than two responses'),
    (['--workdir=W', '--model=a', '--temperature=0', '--prompts=P'], 'makes the 2 responses'),
    (['--workdir=W', '--responses=P'], 'has no prompt with responses'),
    (['--workdir=W', '--model=gone', '--prompts=P'], 'does not exist'),
    (['--workdir=W', '--model=gone@7', '--prompts=P'], 'gone does not exist'),
    (['--workdir=W', '--model=a', '--prompts=world:pairs', '--world=big'], '--world=big'),
    (['--workdir=W', '--responses=R', '--criteria=a,a'], '--criteria=a,a'),
    (['--workdir=W', '--responses=R', '--criterion=z'], '--criterion=z; expected one of helpful'),
    (['--workdir=W', '--report'], 'holds nothing to label'),
    (['--convert=P'], '--convert needs --export'),
], ids=str)
def test_bad_input(tmp_path, nobody, arguments, message, capsys):
    paths = {'W': tmp_path / 'w', 'P': write(tmp_path / 'p.jsonl', {'prompt': 'q'}),
             'R': write(tmp_path / 'r.jsonl', {'prompt': 'q', 'responses': ['a', 'b']})}
    filled = [f'{name}={paths.get(value, value)}' if value else name
              for name, _, value in (argument.partition('=') for argument in arguments)]
    assert label(*filled, *nobody) == 2
    assert message in capsys.readouterr().err


def test_a_rater_is_named_in_the_terminal_only(tmp_path, capsys):
    assert label(f'--workdir={tmp_path}', '--rater=Ann') == 2
    assert '--rater is for --terminal' in capsys.readouterr().err


def test_report_and_export(tmp_path, nobody, capsys):
    ready = write(tmp_path / 'r.jsonl', *(
        {'prompt': f'q{i}', 'responses': [f'good {i}', f'bad {i}'], 'sources': ['ppo', 'sft'],
         'id': f'i{i}'} for i in range(12)))
    workdir = tmp_path / 'w'
    assert label(f'--responses={ready}', f'--workdir={workdir}', '--max_items=8', *nobody) == 0
    labels = Labels(workdir)
    assert len(labels.items) == 8
    for rater, item in itertools.product(('Ann', 'Bob'), labels.items):
        order = [labels.items[item].sources[i] != ('ppo',) for i in labels.shown(rater, item)]
        labels.rate(key=f'k{next(_KEYS)}', rater=rater, item=item, criterion='helpful',
                    ranks=[1 + worse for worse in order])
    capsys.readouterr()
    assert label(f'--workdir={workdir}', '--report', f'--export={tmp_path / "out"}',
                 '--consensus') == 0
    said = capsys.readouterr().out
    assert '8 items, 16 answers by 2 raters: Ann 8, Bob 8' in said and 'safe: no answers' in said
    assert 'helpful       16     0     0  ppo against sft' in said
    report = json.loads((workdir / 'report.json').read_text())
    helpful = report['criteria']['helpful']
    assert helpful['alpha_ordinal'] == helpful['kappa'] == 1 and helpful['items_rated_twice'] == 8
    bias = helpful['first_shown_best']
    assert bias['low'] < bias['value'] < bias['high'] and helpful['first_by_chance'] == 0.5
    assert report['criteria']['safe']['kappa'] is None
    found = []
    for file in (tmp_path / 'out/jsonl/pairs').iterdir():
        found += read_comparisons(ComparisonSpec('x', str(file)), Rejects())
    assert len(found) == 16 and all(c.responses[0].startswith('good') for c in found)


def test_other_preferences_are_converted(tmp_path, capsys):
    file = write(tmp_path / 'h.jsonl',
                 {'chosen': '\n\nHuman: q\n\nAssistant: a', 'rejected': '\n\nHuman: q\n\n'
                  'Assistant: b'}, {'prompt': 'p', 'responses': ['x', 'y', 'z'],
                                    'ratings': [1, 5, 5]}, {'chosen': 'a', 'rejected': 'b'})
    assert label(f'--convert={file}', f'--export={tmp_path / "out"}', '--license=MIT') == 0
    assert '1 of 3 records rejected' in capsys.readouterr().err
    assert len((tmp_path / 'out.rejects.jsonl').read_text().splitlines()) == 1
    rows = [json.loads(line) for path in (tmp_path / 'out/jsonl/rankings').iterdir()
            for line in pathlib.Path(path).read_text().splitlines()]
    assert sorted((row['id'], tuple(row['ranks'])) for row in rows) == [
        (':1', (1, 2)), (':2', (2, 1, 1))]
    assert 'MIT' in (tmp_path / 'out/README.md').read_text()


def test_the_web_page_is_served(tmp_path, monkeypatch, capsys):
    ready = write(tmp_path / 'r.jsonl', {'prompt': 'q', 'responses': ['a', 'b']})
    served = []
    monkeypatch.setattr('jaxllm.feedback.server.make_server', lambda labels, port: (
        types.SimpleNamespace(port=port, serve_forever=lambda: served.append(len(labels.items)))))
    assert label(f'--responses={ready}', f'--workdir={tmp_path / "w"}', '--port=4321') == 0
    assert served == [1] and 'http://127.0.0.1:4321/' in capsys.readouterr().out
