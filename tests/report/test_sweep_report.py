"""The page of a sweep: what its numbers are, what is missing, and what the claim comes to."""

import json
import re

import pytest

from jaxllm import main
from jaxllm.errors import InputError
from jaxllm.report import directory, done, sweep_files
from jaxllm.report.sweep import stated, verdict_text, write_report

RULES = '''
from jaxllm.evals import effects
from jaxllm.evals.verdict import Rule

CLAIM = 'Sugar helps <memory>.'


def get_rules():
    return [Rule('gain', 'sweet beats plain', effects.difference(
        'sweet', 'plain', effects.mean('correct', suite='recall')), delta=0.2,
        where={'suite': 'recall'})]


def get_figures(rows):
    return [f'<figure>{sorted(rows)} {sorted(rows[0])}</figure>']
'''

RECALL = {'plain': (0.5, 0.6, 0.7), 'sweet': (0.7, 0.7, 1.0)}
# Of twenty people, two questions each.
ANSWERS = {'plain': (0, 0, 1, 1) * 10, 'sweet': (1, 0, 1, 1) * 10}
LOSSES = {'plain': 2.0, 'sweet': 1.0}


def _write(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.fixture
def sweep(tmp_path):
    """A finished sweep: pretraining and its evaluation, two arms, three seeds."""
    (tmp_path / 'file.py').write_text(RULES)
    table = {'config': f'{tmp_path / "file.py"}:arg', 'overrides': ['--config.x=1'],
             'seeds': [0, 1, 2], 'runs': [], 'began': stated(str(tmp_path / 'file.py')),
             'arms': [{'name': 'plain', 'set': {}}, {'name': 'sweet', 'set': {'diet.sugar': 3}}]}
    workdir = tmp_path / 'sweep'
    for seed in (0, 1, 2):
        for arm in RECALL:
            base, found = (workdir / 'runs' / f'{kind}-{arm}{seed}' for kind in ('base', 'eval'))
            for folder in (base, found):
                folder.mkdir(parents=True)
                (folder / 'config.json').write_text('{"stage": "toy"}')
                done.write(folder, {'stage': 'toy'}, 1.0, (), {})
                (folder / 'report.html').touch()
            _write(base / 'metrics.jsonl', [
                {'kind': 'eval', 'step': step, 'val/loss': LOSSES[arm] + seed + 10 / step}
                for step in (5, 10)])
            (found / 'results.json').write_text(json.dumps({'metrics': {
                'recall': {'value': RECALL[arm][seed], 'unit': 'share'},
                'ece': {'value': None, 'unit': ''}}}))
            _write(found / 'items.jsonl', [
                {'id': str(number), 'suite': 'recall', 'subject': f'p{number // 2}',
                 'correct': bool(right), 'exposures': number}
                for number, right in enumerate(ANSWERS[arm])] + [
                {'id': '0', 'suite': 'text', 'bytes': 7},
                {'id': '0', 'suite': 'extraction', 'correct': True},
                {'id': 'x', 'suite': 'harness/tiny', 'correct': None if arm == 'plain' else True},
                {'id': 'y', 'suite': 'harness/tiny', 'correct': True},
                {'id': arm, 'suite': 'harness/tiny', 'correct': True}])
            table['runs'].append({'arm': arm, 'seed': seed, 'steps': {
                'base': f'runs/{base.name}', 'eval': f'runs/{found.name}'}})
    (workdir / 'sweep.json').write_text(json.dumps(table))
    return workdir


def _words(text):
    return re.sub(r'\s+', ' ', re.sub('<[^>]*>', ' ', text))


def test_the_page_compares_the_arms(sweep):
    text = write_report(sweep).read_text()
    words = _words(text)
    assert '2 arms, 3 seeds, 12 of 12 runs done' in words and 'Not done' not in words
    # Student's t with 2 degrees of freedom: mean +- 4.303 s / sqrt(3), s = 0.1.
    assert 'recall (share) 0.6 [0.352, 0.848]' in words
    # Differences 0.2, 0.1, 0.3 by seed, and 1 more right answer of 4.
    assert 'recall (share) +0.2 [-0.0484, +0.448]' in words
    # Of 40 items each; of the harness, one of 4 has two grades.
    assert re.search(r'recall \+0.25 \[[^]]*\] \(120 pairs, 0 dropped\)', words)
    assert re.search(r'harness/tiny \+0 (\[[^]]*\] )?\(3 pairs, 9 dropped\)', words)
    assert 'extraction +' not in words
    # The last validation losses: 3, 4, 5 and 2, 3, 4; the difference is the same in every seed.
    assert 'val/loss 4 [1.52, 6.48] 3 [0.516, 5.48]' in words
    assert 'val/loss -1 [-1, -1]' in words
    assert 'base: validation loss' in words and 'Against plain' in words
    assert '<figure>[0, 1, 2] [&#x27;plain' in text or "<figure>[0, 1, 2] ['plain'" in text
    assert 'href="runs/eval-sweet2/report.html"' in text
    assert 'diet.sugar' in words and '--config.x=1' in words


def test_the_verdict_is_written_and_printed(sweep, capsys):
    assert main.main(['report', str(sweep)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f'{sweep / "report.html"}\n')
    found = json.loads((sweep / 'verdict.json').read_text())
    assert found['rules'][0]['effect'] == 0.25 and found['missing'] == []
    assert found['verdict'] == found['rules'][0]['verdict'] == 'DIRECTION_ONLY'
    assert 'DIRECTION_ONLY: Sugar helps <memory>.' in out and 'gain +0.25' in out
    assert out.endswith(verdict_text(sweep) + '\n')
    assert main.main(['report', str(sweep)]) == 0 and capsys.readouterr().out == out
    assert 'Sugar helps &lt;memory&gt;.' in (sweep / 'report.html').read_text()


def test_an_unfinished_sweep_says_what_is_missing(sweep):
    (sweep / 'runs' / 'eval-sweet2' / 'done.json').unlink()
    words = _words(write_report(sweep).read_text())
    assert '11 of 12 runs done' in words and 'Not done sweet, seed 2: eval' in words
    assert 'Judged on the seeds [0, 1] alone' in words
    found = json.loads((sweep / 'verdict.json').read_text())
    assert found['verdict'] == found['rules'][0]['verdict'] == 'PRELIMINARY'
    assert found['rules'][0]['so_far'] == 'UNDERPOWERED' and found['seeds'] == [0, 1]
    assert 'UNDERPOWERED so far: fewer than 3 seeds' in words
    # Differences 0.2 and 0.1, of the arm's three seeds and the two that it has.
    assert re.search(r'recall \(share\) \+0.15 \[[^]]*\] \(2 of 3 seeds\)', words)
    assert re.search(r'recall \(share\) 0.6 \[[^]]*\] 0.7 \[[^]]*\] \(2 of 3 seeds\)', words)
    for path in sweep.glob('runs/eval-plain*/done.json'):
        path.unlink()
    (sweep / 'runs' / 'base-plain0' / 'done.json').unlink()
    write_report(sweep)
    assert json.loads((sweep / 'verdict.json').read_text())['verdict'] == 'UNFINISHED'
    assert 'not judged: 4 arms with a seed are not done' in verdict_text(sweep)


@pytest.mark.parametrize('old, new, message', [
    ('delta=0.2', 'delta=0.1', 'rules changed after the sweep began: delta of gain was 0.2, '
     'is 0.1'),
    ("Rule('gain'", "Rule('growth'", 'gain is gone; growth is new'),
    ('def get_rules', 'def no_rules', 'gain is gone'),
    ("mean('correct', ", "mean('exposures', ", 'rules changed after the sweep began, or something'),
])
def test_rules_that_changed_are_told(sweep, tmp_path, capsys, old, new, message):
    write_report(sweep)
    assert json.loads((sweep / 'verdict.json').read_text())['changed'] == ''
    (tmp_path / 'file.py').write_text(RULES.replace(old, new))
    assert main.main(['report', str(sweep)]) == 0
    assert message in capsys.readouterr().out
    assert message in json.loads((sweep / 'verdict.json').read_text())['changed']
    assert message in _words((sweep / 'report.html').read_text())


def test_rules_that_were_never_written_down_are_told(sweep):
    table = json.loads((sweep / 'sweep.json').read_text())
    del table['began']
    (sweep / 'sweep.json').write_text(json.dumps(table))
    write_report(sweep)
    assert 'the rules were not written down when the sweep began' in verdict_text(sweep)


def test_many_arms_are_rows_and_one_arm_is_compared_with_nothing(sweep):
    table = json.loads((sweep / 'sweep.json').read_text())
    first = [run for run in table['runs'] if run['arm'] == 'plain']
    one = table | {'runs': first, 'arms': table['arms'][:1], 'config': 'nowhere.py'}
    (sweep / 'sweep.json').write_text(json.dumps(one))
    words = _words(write_report(sweep).read_text())
    assert 'nowhere.py does not exist' in words and 'recall (share) 0.6' in words
    assert 'Arm minus' not in words and not (sweep / 'verdict.json').exists()
    names = [f'a{number}' for number in range(8)]
    many = one | {'arms': [{'name': name, 'set': {'x': name}} for name in names],
                  'runs': [run | {'arm': name} for name in names for run in first]}
    (sweep / 'sweep.json').write_text(json.dumps(many))
    words = _words(write_report(sweep).read_text())
    assert 'arm recall (share) val/loss a0 0.6 [0.352, 0.848] 4 [1.52, 6.48] a1' in words


def test_a_metric_of_two_steps_is_called_by_its_step(sweep):
    (sweep / 'runs' / 'base-plain0' / 'results.json').write_text(
        json.dumps({'metrics': {'recall': {'value': 0.25}}}))
    found = sweep_files.read_sweep(sweep)
    assert found.values['plain', 0]['base: recall'] == 0.25
    assert found.values['plain', 0]['eval: recall'] == 0.5
    assert 'recall' not in found.values['sweet', 1] and 'eval: recall' in found.values['sweet', 1]


def test_columns_of_rows_that_differ():
    table = sweep_files.columns([{'a': 1, 'b': 'x', 'c': [1], 'd': True},
                                 {'a': None, 'b': 'y', 'd': False, 'e': 2.5}])
    assert table['a'][0] == 1 and str(table['a'][1]) == 'nan' and str(table['e'][0]) == 'nan'
    assert list(table['b']) == ['x', 'y'] and list(table['c']) == [[1], None]
    assert table['d'].dtype == bool


def test_no_sweep_and_a_wrong_reference(sweep, tmp_path):
    with pytest.raises(InputError, match='holds no sweep'):
        write_report(tmp_path)
    (tmp_path / 'file.py').write_text(RULES + "\nREFERENCE = 'salty'\n")
    with pytest.raises(InputError, match="'salty'.*is no arm; the arms are plain, sweet"):
        write_report(sweep)


def test_a_chain_has_the_reports_of_its_steps(tmp_path):
    steps = {'a': {'stage': 'toy'}, 'b': {'stage': 'toy'}}
    for folder, config in (('', {'stage': 'jaxllm.stages.chain', 'seed': 0, 'steps': steps}),
                           ('a', {'stage': 'toy'})):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / 'config.json').write_text(json.dumps(config))
    assert directory.write_reports(tmp_path) == [tmp_path / 'a' / 'report.html',
                                                 tmp_path / 'report.html']
    assert (tmp_path / 'a' / 'report.html').exists()
