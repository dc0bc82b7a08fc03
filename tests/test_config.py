"""Config files: arguments, overrides, fingerprints, and what a run directory will take."""

import dataclasses
import json

import ml_collections
import pytest

from jaxllm import config as configs
from jaxllm.errors import InputError

FILE = '''
import ml_collections
from jaxllm.config import parse_arg


def get_config(arg=''):
    arg = parse_arg(arg, wide=False, depth=2)
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.toy'
    config.tokenizer = ml_collections.ConfigDict(dict(vocab_size=100, kind='bpe'))
    config.model = ml_collections.ConfigDict(dict(
        width=64 if arg.wide else 8, depth=arg.depth, tied=True, pattern=('global', 'local'),
        rate=1e-3))
    config.model.vocab_size = config.tokenizer.get_ref('vocab_size')
    config.sharding = ml_collections.ConfigDict(dict(preset='fsdp'))
    return config
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'toy.py'
    path.write_text(FILE)
    return path


def _load(file, *overrides, arg=''):
    return configs.load([f'--config={file}{arg}', *(f'--config.{text}' for text in overrides)])


def test_arguments_have_the_types_of_their_defaults():
    defaults = dict(smoke=False, size='5m', steps=3, lr=0.5)
    assert configs.parse_arg('', **defaults).to_dict() == defaults
    got = configs.parse_arg('smoke,size=a=b,steps=7,lr=2', **defaults).to_dict()
    assert got == dict(smoke=True, size='a=b', steps=7, lr=2.0)
    assert isinstance(got['lr'], float)
    for text, value in (('true', True), ('1', True), ('False', False), ('0', False)):
        assert configs.parse_arg(f'smoke={text}', **defaults).smoke is value


@pytest.mark.parametrize('arg, message', [
    ('smok', "'smok' is unknown; this file takes smoke=False, steps=3"),
    ('smoke=yes', 'expected true or false'),
    ('steps=x', 'expected int'),
    ('steps', 'write steps=VALUE'),
])
def test_wrong_arguments(arg, message):
    with pytest.raises(InputError, match=message):
        configs.parse_arg(arg, smoke=False, steps=3)


def test_a_file_gets_its_argument(file):
    assert _load(file).model.width == 8
    config = _load(file, arg=':wide,depth=5')
    assert (config.model.width, config.model.depth) == (64, 5)
    assert config.is_locked


@pytest.mark.parametrize('override, key, value', [
    ('model.depth=7', 'depth', 7),
    ('model.tied=False', 'tied', False),
    ('model.tied=true', 'tied', True),
    ('model.rate=3e-4', 'rate', 3e-4),
    ('model.rate=2', 'rate', 2.0),
    ("model.pattern=('local',)", 'pattern', ('local',)),
    ("model.pattern=('local','local','global')", 'pattern', ('local', 'local', 'global')),
])
def test_overrides_keep_the_type(file, override, key, value):
    got = _load(file, override).model[key]
    assert got == value and type(got) is type(value)


def test_overrides_apply_in_turn_and_alone(file):
    config = _load(file, 'model.depth=7', 'model.tied=False', 'model.depth=9')
    assert config.model.depth == 9 and not config.model.tied
    assert config.model.width == 8 and config.tokenizer.kind == 'bpe'


def test_a_reference_follows_what_it_refers_to(file):
    config = _load(file, 'model.depth=3', 'tokenizer.vocab_size=77', 'model.width=5')
    assert config.model.vocab_size == config.tokenizer.vocab_size == 77
    assert json.loads(configs.to_json(config))['model']['vocab_size'] == 77


@pytest.mark.parametrize('argv, message', [
    (['--config.model.dpeth=3'], 'model.dpeth is unknown; did you mean --config.model.depth'),
    (['--config.model=3'], 'model is unknown'),
    (['--config.model.depth=x'], "expected int, such as the present 2, got 'x'"),
    (['--config.model.depth=1.5'], 'expected int'),
    (['--config.model.tied=maybe'], 'expected bool'),
    (['--config.model.rate=fast'], 'expected float'),
    (['--config.model.depth'], 'no value'),
    (['--model.depth=3'], 'overrides look like'),
    (['depth'], 'overrides look like'),
])
def test_wrong_overrides(file, argv, message):
    with pytest.raises(InputError, match=message):
        configs.load([f'--config={file}', *argv])


@pytest.mark.parametrize('argv, message', [
    ([], 'no config'), (['--config=nowhere.py'], 'nowhere.py does not exist'),
])
def test_no_file(argv, message):
    with pytest.raises(InputError, match=message):
        configs.load(argv)


def test_a_fingerprint_is_that_of_the_values(file):
    base = configs.fingerprint(_load(file))
    assert base == configs.fingerprint(_load(file, 'model.depth=2')) and len(base) == 16
    others = {configs.fingerprint(_load(file, override)) for override in
              ('model.depth=3', 'tokenizer.kind=byte', 'model.rate=2e-3', 'model.tied=False')}
    assert len(others | {base}) == 5
    shuffled = ml_collections.ConfigDict({'b': 1, 'a': {'d': 2, 'c': 3}})
    ordered = ml_collections.ConfigDict({'a': {'c': 3, 'd': 2}, 'b': 1})
    assert configs.fingerprint(shuffled) == configs.fingerprint(ordered)


@dataclasses.dataclass(frozen=True)
class Toy:
    width: int
    pattern: tuple


def test_a_section_becomes_a_dataclass():
    section = ml_collections.ConfigDict(dict(width=3, pattern=[1, 2]))
    assert configs.section(Toy, section, 'toy') == Toy(3, (1, 2))
    for wrong in (dict(width=3), dict(width=3, pattern=(), depth=1)):
        with pytest.raises(InputError, match='config.toy: .*its keys are width, pattern'):
            configs.section(Toy, ml_collections.ConfigDict(wrong), 'toy')


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / 'run').mkdir()
    return tmp_path / 'run'


def test_a_new_directory_is_claimed(file, workdir):
    (workdir / '.lock').touch()
    configs.claim_workdir(workdir, _load(file))
    assert json.loads((workdir / 'config.json').read_text())['model']['depth'] == 2
    assert not (workdir / 'config.json.partial').exists()
    configs.claim_workdir(workdir, _load(file))


def test_another_config_may_not_go_on_with_a_run(file, workdir):
    configs.claim_workdir(workdir, _load(file))
    (workdir / 'lineage.json').touch()
    with pytest.raises(InputError, match='another config.*model.depth 2 -> 3'):
        configs.claim_workdir(workdir, _load(file, 'model.depth=3'))
    assert json.loads((workdir / 'config.json').read_text())['model']['depth'] == 2
    configs.claim_workdir(workdir, _load(file, 'sharding.preset=tp'))  # changes no number
    assert json.loads((workdir / 'config.json').read_text())['sharding']['preset'] == 'tp'


def test_an_attempt_that_never_trained_gives_way(file, workdir):
    configs.claim_workdir(workdir, _load(file))
    for folder in ('tokenizer', 'data'):
        (workdir / folder).mkdir()
    configs.claim_workdir(workdir, _load(file))  # the same config finds its work done
    assert (workdir / 'tokenizer').exists() and (workdir / 'data').exists()
    configs.claim_workdir(workdir, _load(file, 'model.depth=3'))
    assert not (workdir / 'tokenizer').exists() and not (workdir / 'data').exists()
    assert json.loads((workdir / 'config.json').read_text())['model']['depth'] == 3


def test_a_foreign_directory_is_left_alone(file, workdir):
    (workdir / 'thesis.txt').write_text('mine')
    with pytest.raises(InputError, match='not empty and holds no run'):
        configs.claim_workdir(workdir, _load(file))
    assert [path.name for path in workdir.iterdir()] == ['thesis.txt']


def test_the_config_of_a_run_is_a_config_file(file, workdir):
    config = _load(file, 'model.depth=7', "model.pattern=('local',)")
    configs.claim_workdir(workdir, config)
    record = workdir / 'config.json'
    again = configs.load([f'--config={record}'])
    assert configs.to_json(again) == record.read_text() and again.is_locked
    assert configs.fingerprint(again) == configs.fingerprint(config)
    other = configs.load([f'--config={record}', '--config.model.rate=2',
                          "--config.model.pattern=('a','b')"])
    assert other.model.rate == 2.0 and other.model.pattern == ('a', 'b')
    with pytest.raises(InputError, match='expected int'):
        configs.load([f'--config={record}', '--config.model.depth=x'])
    with pytest.raises(InputError, match='takes no argument'):
        configs.load([f'--config={record}:wide'])
    for text in ('{', '[1]'):
        record.write_text(text)
        with pytest.raises(InputError, match='config.json'):
            configs.load([f'--config={record}'])


def test_values_are_set_where_they_are_known(file):
    config = _load(file)
    configs.set_values(config, {'model.rate': 2, 'model': {'depth': 9, 'pattern': ['local']},
                                'tokenizer.vocab_size': 77}, 'arm a')
    assert (config.model.rate, config.model.depth, config.model.pattern) == (2.0, 9, ('local',))
    assert config.model.vocab_size == 77 and config.is_locked  # what refers to it follows


@pytest.mark.parametrize('values, message', [
    ({'model.dpeth': 3}, 'arm a sets model.dpeth, which is unknown; did you mean model.depth'),
    ({'model.depth': '3'}, "arm a sets model.depth='3': expected int, such as the present 2"),
    ({'model.depth': 1.0}, 'expected int'),
    ({'model.depth': True}, 'expected int'),
    ({'model.tied': 1}, 'expected bool'),
    ({'model.rate': 'high'}, 'expected float'),
    ({'model': 3}, 'arm a sets model, which is unknown'),
])
def test_values_of_other_keys_or_types_are_not_set(file, values, message):
    with pytest.raises(InputError, match=message):
        configs.set_values(_load(file), values, 'arm a')


def test_settings_of_a_step_may_differ_on_resume_as_those_of_a_run():
    values = {'seed': 0, 'steps': {'base': {'lr': 1.0, 'sharding': {'preset': 'dp'}}}}
    other = {'seed': 0, 'steps': {'base': {'lr': 1.0, 'sharding': {'preset': 'tp'}}}}
    assert configs.fingerprint_of(values) == configs.fingerprint_of(other)
    other['steps']['base']['lr'] = 2.0
    assert configs.fingerprint_of(values) != configs.fingerprint_of(other)
