"""Sweeps: the algebra of arms, chains, and jobs that are the same where their numbers are."""

import copy
import json

import pytest

from jaxllm import sweep
from jaxllm.errors import InputError
from jaxllm.sweep import CHAIN, axis, chained, product, zipped


def names(arms):
    return [arm['name'] for arm in arms]


def test_an_axis_is_an_arm_per_value():
    assert axis('optim.lr', (1e-3, 0.25)) == [
        {'name': 'lr=0.001', 'set': {'optim.lr': 1e-3}},
        {'name': 'lr=0.25', 'set': {'optim.lr': 0.25}}]
    assert axis('world.kind', {'plain': 'none', 'less': 'delete'})[1] == {
        'name': 'less', 'set': {'world.kind': 'delete'}}


def test_a_product_varies_the_last_fastest():
    arms = product(axis('a.x', (1, 2)), axis('b.y', ('u', 'v', 'w')))
    assert names(arms) == ['x=1,y=u', 'x=1,y=v', 'x=1,y=w', 'x=2,y=u', 'x=2,y=v', 'x=2,y=w']
    assert arms[4] == {'name': 'x=2,y=v', 'set': {'a.x': 2, 'b.y': 'v'}}


def test_zipped_and_chained():
    x, y = axis('x', (1, 2)), axis('y', (3, 4))
    assert zipped(x, y)[1] == {'name': 'x=2,y=4', 'set': {'x': 2, 'y': 4}}
    assert names(chained(x, y, product(x, y)[:1])) == ['x=1', 'x=2', 'y=3', 'y=4', 'x=1,y=3']
    with pytest.raises(InputError, match='sweeps of 2, 3 arms'):
        zipped(x, axis('z', (1, 2, 3)))
    for combine in (product, zipped):
        with pytest.raises(InputError, match="x is set twice by 'x=1', 'low'"):
            combine(x, axis('x', {'low': 0, 'high': 9}))


@pytest.mark.parametrize('arms, message', [
    ([], r'returned \[\]; expected a list'),
    (None, 'returned None; expected a list'),
    ([{'name': 'a'}], 'is no arm'),
    (['a'], 'is no arm'),
    ([{'name': 'a', 'set': {}}, {'name': 'b', 'set': {}}, {'name': 'a', 'set': {'x': 1}}],
     "2 arms are called 'a'"),
])
def test_wrong_arms(arms, message):
    with pytest.raises(InputError, match=message):
        sweep.check_arms(arms)


def chain():
    """base -> sft -> two evaluations, written in no possible order."""
    step = lambda stage, **values: {'stage': f'jaxllm.stages.{stage}', 'seed': 3, **values}
    return {'stage': CHAIN, 'seed': 3, 'steps': {
        'late': step('evaluate', run='@sft', prompts=['@property', 'x']),
        'base': step('pretrain', init_from='', train={'num_steps': 5}, checkpoint={'keep': 1}),
        'sft': step('sft', init_from='@base', tokenizer={'path': '@base/tokenizer'}),
        'early': step('evaluate', run='@base', prompts=['@property', 'x'])}}


def test_steps_come_in_an_order_that_works_and_else_as_written():
    assert list(sweep.steps_of(chain())) == ['base', 'sft', 'late', 'early']
    config = chain()
    config['steps']['early']['both'] = ['@sft', '@late']
    assert list(sweep.steps_of(config)) == ['base', 'sft', 'late', 'early']
    assert sweep.references(config['steps']['early'], config['steps']) == ('base', 'late', 'sft')


def test_references_become_paths():
    step = sweep.resolve(chain()['steps']['sft'], {'base': '/d/base'})
    assert step['init_from'] == '/d/base' and step['tokenizer']['path'] == '/d/base/tokenizer'
    assert sweep.resolve(chain()['steps']['early'], {'base': 'b'})['prompts'] == ['@property', 'x']


def _with(path, value):
    config = chain()
    *sections, leaf = path.split('.')
    place = config
    for name in sections:
        place = place[name]
    place[leaf] = value
    return config


@pytest.mark.parametrize('config, message', [
    ({'stage': CHAIN, 'steps': {}}, 'needs config.steps'),
    ({'stage': CHAIN, 'steps': {'a': {'seed': 1}}}, 'needs config.steps'),
    ({'stage': CHAIN, 'steps': {'../a': {'stage': 'x'}}}, 'use letters, digits'),
    ({'stage': CHAIN, 'steps': {'a': {'stage': CHAIN}}}, 'steps.a is a chain'),
    (_with('steps.sft.init_from', '@bsae'), "steps.sft.init_from='@bsae'.*did you mean @base"),
    (_with('steps.base.init_from', '@late'), 'base -> .*wait for each other'),
])
def test_wrong_chains(config, message):
    with pytest.raises(InputError, match=message):
        sweep.steps_of(config)


def test_a_job_is_named_by_what_changes_its_numbers_and_its_parents():
    jobs = sweep.jobs_of(chain())
    assert [job.stage for job in jobs.values()] == [
        f'jaxllm.stages.{name}' for name in ('pretrain', 'sft', 'evaluate', 'evaluate')]
    assert jobs['base'].name.startswith('pretrain-') and jobs['base'].needs == ()
    assert jobs['sft'].needs == (jobs['base'].name,)
    assert jobs['sft'].config['tokenizer']['path'] == f'@{jobs["base"].name}/tokenizer'
    assert jobs['late'].name != jobs['early'].name

    def changed(path, value):
        other = sweep.jobs_of(_with(path, value))
        return {step for step in jobs if other[step].name != jobs[step].name}

    assert changed('steps.base.train.num_steps', 6) == {'base', 'sft', 'late', 'early'}
    assert changed('steps.sft.tokenizer.path', 'elsewhere') == {'sft', 'late'}
    assert changed('steps.early.seed', 4) == {'early'}
    assert changed('steps.base.checkpoint.keep', 2) == set()  # changes no number
    config = chain()
    config['steps'] = {{'base': 'renamed'}.get(name, name): step
                       for name, step in config['steps'].items()}
    text = json.dumps(config).replace('@base', '@renamed')
    renamed = sweep.jobs_of(json.loads(text))
    assert renamed['sft'].name == jobs['sft'].name  # what a step is called is nothing to its run


def test_equal_parents_are_one_job():
    configs = {}
    for seed in (0, 1):
        for arm, value in (('plain', 'p'), ('sweet', 's'), ('sour', 'x')):
            config = copy.deepcopy(chain())
            for step in config['steps'].values():
                step['seed'] = seed
            config['steps']['late']['taste'] = value
            configs[arm, seed] = config
    jobs, rows = sweep.expand(configs)
    # Per seed: one base, one sft, one early evaluation, and a late one for each of three arms.
    assert len(jobs) == 2 * (3 + 3)
    assert [(row.arm, row.seed) for row in rows] == list(configs)
    assert rows[0].steps['base'] == rows[2].steps['base'] != rows[3].steps['base']
    order = list(jobs)
    assert all(order.index(need) < order.index(job.name)
               for job in jobs.values() for need in job.needs)
    picked = sweep.select(jobs, [rows[4].steps['late']])
    assert list(picked) == [rows[4].steps[step] for step in ('base', 'sft', 'late')]


def test_equal_arms_are_an_error():
    one = {'stage': 'jaxllm.stages.pretrain', 'seed': 0, 'lr': 1.0, 'sharding': {'preset': 'dp'}}
    sweep.expand({('a', 0): one, ('b', 0): one | {'lr': 2.0}})
    for same in (one, one | {'sharding': {'preset': 'tp'}}):
        with pytest.raises(InputError, match="arms 'a' and 'b' are equal"):
            sweep.expand({('a', 0): one, ('b', 0): same})
