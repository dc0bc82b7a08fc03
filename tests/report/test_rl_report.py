"""The report of reinforcement learning: rewards, gold against KL, answers before and after."""

import json

import pytest

from jaxllm.report import rl
from jaxllm.report.run import write_report


def _write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _answer(id, text, reward):
    return {'id': id, 'prompt': f'ask {id}', 'response': text, 'reward': reward,
            'scores': {'helpful': reward, 'safe': 0.5}, 'kl': 1.5, 'tokens': 3, 'finished': True}


GOLD = {0: (0.0, 1.0), 4: (4.0, 3.0), 8: (16.0, 2.0)}  # step: KL and gold; gold falls at the end


@pytest.fixture
def workdir(tmp_path):
    train = [{'step': step, 'kind': 'train', 'rollout/reward': step / 2, 'rollout/helpful': 1.0,
              'rollout/safe': 0.5, 'rollout/kl': step / 4, 'rollout/entropy': 1.0,
              'rollout/length': 9.0, 'rollout/finished': 1.0, 'rollout/repetition': 0.0,
              'clip_fraction': 0.125} for step in (2, 4, 6, 8)]
    evals = [{'step': step, 'kind': 'eval', 'val/reward': step / 2, 'val/kl': kl, 'val/gold': gold,
              'val/gold_win_rate': 0.5, 'val/loss': 1.0} for step, (kl, gold) in GOLD.items()]
    _write(tmp_path / 'metrics.jsonl', train + evals)
    (tmp_path / 'config.json').write_text(json.dumps({'stage': 'jaxllm.stages.rl'}))
    for number, text in enumerate(('early', 'late')):
        _write(tmp_path / 'rollouts' / f'{number:06d}.jsonl', [
            {'rollout': number, 'metrics': {}}, _answer('a', f'{text} <a>', number),
            _answer(f'only {number}', text, 0.0)])
    return tmp_path


def test_sections(workdir):
    titles = [section.title for section in rl.sections(workdir) if section.body]
    assert titles == ['Rewards', 'Policy', 'Reward against KL', 'Answers before and after']
    text = write_report(workdir).read_text()
    for words in ('Reward: helpful', 'Reward: safe', 'KL to the reference', 'Clipped',
                  'Hidden judge', 'Answers that end'):
        assert words in text
    assert 'what is trained on' in text and 'training centres it' not in text
    assert 'early &lt;a&gt;' in text and '<a>' not in text.partition('Answers before')[2]
    assert rl.sections(workdir / 'rollouts') == ()


def test_a_reward_that_is_centred_is_shown_where_it_is_not(workdir):
    (workdir / 'config.json').write_text(json.dumps(
        {'stage': 'jaxllm.stages.rl', 'combine': {'rule': 'gate'}}))
    text = next(section.body for section in rl.sections(workdir) if section.title == 'Rewards')
    combined = text.partition('Reward: helpful')[0]
    assert 'training centres it' in combined and 'rollouts' not in combined


def test_the_greatest_gold_is_marked_at_its_kl(workdir):
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    evals = [record for record in records if record['kind'] == 'eval']
    text = rl.over_kl(evals)
    assert 'step 4: 3.000 at 4.00 nats' in text and 'has 2.000 at 16.00 nats' in text
    # At sqrt 4: gold and proxy.
    assert '<title>2.0: 3</title>' in text and '<title>2.0: 2</title>' in text
    assert rl.over_kl(evals[:1]) == ''
    no_gold = [{key: x for key, x in record.items() if 'gold' not in key} for record in evals]
    assert 'Proxy' in rl.over_kl(no_gold) and 'Gold' not in rl.over_kl(no_gold)


def test_the_same_prompts_side_by_side(workdir):
    text = rl.before_and_after(workdir)
    assert text.index('early') < text.index('late') and 'only' not in text
    # Evaluations that were kept come first.
    for step, answer in ((0, 'first'), (4, 'between'), (8, 'last')):
        _write(workdir / 'answers' / f'{step:06d}.jsonl', [_answer('h', answer, step / 4)])
    text = rl.before_and_after(workdir)
    assert 'steps 0 and 8' in text and 'between' not in text and 'early' not in text
    assert text.index('first') < text.index('last')


def test_prompts_that_were_asked_once(workdir):
    for number in range(2):
        _write(workdir / 'rollouts' / f'{number:06d}.jsonl', [_answer(f'{number}', 'text', 1.0)])
    assert 'No prompt was asked twice' in rl.before_and_after(workdir)
