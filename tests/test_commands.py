"""README.md and --help: every command can be typed as it stands, every path is there."""

import re

import documented
import pytest

from jaxllm import config as configs
from jaxllm import main
from jaxllm.stages.run import stage_of

PAGES = documented.help_pages()
MAIN_JOB = 'pip install -e . && jaxllm run --config=experiments/lifecycle.py --workdir=runs/life'
TESTS = "pip install -e '.[test]' && pytest"


def check(command, files):
    """Flags are known, and a config is loaded with what is set in it."""
    args, rest = main._parser().parse_known_args(command)
    if args.verb not in ('run', 'sweep'):
        assert rest == []
    else:
        config = configs.load([files.get(part, part) for part in rest])
        assert args.workdir or args.dry_run
        assert stage_of(config).run


@pytest.fixture
def written(tmp_path, monkeypatch):
    """{argument: what it is here} of the files that README.md lets its readers write, and of the
    config.json of a run."""
    monkeypatch.chdir(documented.ROOT)
    for path, source in documented.readme_files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source, encoding='utf-8')
    resolved = tmp_path / 'config.json'
    resolved.write_text(configs.to_json(configs.load_file('experiments/sft.py')))
    return {f'--config={path}': f'--config={tmp_path / path}'
            for path in documented.readme_files()} | {
        '--config=runs/life/sft/config.json': f'--config={resolved}'}


def test_the_two_commands():
    fence = f'```\n{MAIN_JOB:<88} # the main job\n{TESTS:<88} # the tests\n```\n'
    assert fence in documented.README


@pytest.mark.parametrize('command', documented.readme_commands(), ids=' '.join)
def test_readme(command, written):
    check(command, written)


def test_readme_has_them_all():
    """A fence or a table that is not read would be green without this."""
    verbs = {words[0] for words in documented.readme_commands()}
    assert verbs >= {page for page in PAGES if page and ' ' not in page}
    assert len(documented.readme_commands()) > 30


@pytest.mark.parametrize('verb', PAGES)
def test_help_ends_with_examples(verb, written):
    head, _, examples = PAGES[verb].rpartition('\nexamples:\n')
    assert head.startswith('usage: jaxllm') and all(
        line.startswith('  jaxllm ') for line in examples.splitlines())
    found = documented.commands(examples)
    assert found and any(' '.join(command).startswith(verb) for command in found)
    for command in found:
        check(command, written)


def test_paths_of_the_readme_are_there():
    """Of code in the text and the tables, arguments behind a colon left out."""
    text = re.sub(r'^```.*?^```$', '', documented.README, flags=re.DOTALL | re.MULTILINE)
    paths = re.findall(r'`((?:jaxllm|experiments|tests|colabs)/[\w./]*)[^`]*`', text)
    assert len(paths) > 30
    assert [path for path in paths if not (documented.ROOT / path).exists()] == []


@pytest.mark.parametrize('line, want', [
    ('pip install -e . && jaxllm run --workdir=x  # why', [['run', '--workdir=x']]),
    ("A=b C='d e' jaxllm chat \\\n    --prompt='a b'", [['chat', '--prompt=a b']]),
    ('jaxllm chat --workdir=$(jaxllm revert x)', [['chat', '--workdir=path'], ['revert', 'x']]),
    ('pytest', []),
])
def test_commands_are_found(line, want):
    assert documented.commands(line) == want


@pytest.mark.parametrize('command', [
    ['chat', '--workdir=x', '--tmeperature=1'], ['rnu'],
    ['run', '--config=experiments/sft.py', '--config.train.nmu_steps=1', '--workdir=x'],
    ['run', '--config=experiments/stf.py', '--workdir=x'],
    ['run', '--config=experiments/sft.py:looora', '--workdir=x'],
    ['run', '--config=experiments/sft.py'],
], ids=' '.join)
def test_a_wrong_command_is_refused(command, written):
    with pytest.raises((AssertionError, SystemExit, configs.InputError)):
        check(command, written)
