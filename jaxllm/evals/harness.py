"""EleutherAI's lm-evaluation-harness on a model of this package: its tasks, our forward pass.

    from jaxllm.evals import harness
    with jax.set_mesh(run.mesh):  # run = jaxllm.stages.artifact.load('runs/base')
        results = harness.evaluate(run.params, run.model, run.tokenizer,
                                   harness.HarnessConfig('my/tasks', max_length=256))

Needs the extra `eval`. Tasks that are files or folders of YAML are read without touching a network.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import pathlib
import sys

import numpy as np

from jaxllm.errors import InputError
from jaxllm.evals import statistics

# Which of the harness's metrics says whether an item was answered correctly.
_CORRECT = ('acc', 'exact_match')
_UNITS = {'acc': 'share', 'acc_norm': 'share', 'acc_bytes': 'share', 'exact_match': 'share',
          'bits_per_byte': 'bits'}


@dataclasses.dataclass(frozen=True)
class HarnessConfig:
    """What to evaluate, and how.

    tasks: folders of task YAML, YAML files, or names of the harness's own tasks, comma-separated.
      A folder stands for all tasks in it; files that begin with '_' are there to be included.
    limit: items of each task, at most; 0 = all.
    num_fewshot: worked examples before each item; -1 = as the task says.
    max_length: tokens that the model sees at once.
    """
    tasks: str
    max_length: int
    limit: int = 0
    num_fewshot: int = -1
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self):
        if not self.names:
            raise InputError(f'tasks={self.tasks!r} names no task; give a folder or file of task '
                             "YAML, or a name such as 'arc_easy'")
        for name, least in (('limit', 0), ('num_fewshot', -1), ('batch_size', 1),
                            ('max_length', 2)):
            if getattr(self, name) < least:
                raise InputError(f'{name}={getattr(self, name)} must be at least {least}')
        for name in self.names:
            if os.sep in name and not os.path.exists(name):
                raise InputError(f'no such file or folder: {name!r} (from {os.getcwd()}); expected '
                                 'task YAML')

    @property
    def names(self):
        return [name.strip() for name in self.tasks.split(',') if name.strip()]


@dataclasses.dataclass(frozen=True)
class HarnessResults:
    """metrics: {'harness/<task>/<metric>': {'value', 'low', 'high', 'n', 'unit'}}, low and high
    the 95 % limits of a bootstrap over items, None where a metric is no mean over them.
    items: one dict per item and filter. versions: {task: version of its definition}.
    """
    metrics: dict
    items: list
    versions: dict


def check_installed():
    """Raises InputError, which says what to install, where the harness is missing."""
    if importlib.util.find_spec('lm_eval') is None:
        raise InputError("the package lm_eval is missing; install it with pip install -e '.[eval]'")


def evaluate(params, cfg, tokenizer, config):
    """Runs tasks of the harness on a model. Needs a mesh: run under `jax.set_mesh`.

    Args:
      params, cfg, tokenizer: a model, its ModelConfig and its Tokenizer.
      config: HarnessConfig.

    Returns:
      HarnessResults.

    Raises:
      InputError: lm_eval is not installed, or a task is unknown, cannot be read or asks for what
        the model cannot do.
    """
    check_installed()
    if all(os.path.exists(name) for name in config.names):
        _offline()
    from jaxllm.evals.harness_model import HarnessModel
    model = HarnessModel(params, cfg, tokenizer, max_length=config.max_length, seed=config.seed,
                         batch_size=config.batch_size)
    from lm_eval import simple_evaluate
    manager = _task_manager(config.names)
    output = simple_evaluate(
        model, tasks=_load_tasks(config.names, manager), task_manager=manager,
        limit=config.limit or None,
        num_fewshot=None if config.num_fewshot < 0 else config.num_fewshot,
        # Without the harness's own bootstrap, which forks processes; limits are found below.
        bootstrap_iters=0, log_samples=True, random_seed=config.seed,
        numpy_random_seed=config.seed, torch_random_seed=config.seed,
        fewshot_random_seed=config.seed)
    samples = output['samples']
    return HarnessResults(
        _metrics(output['results'], samples, output['n-samples'], config.seed),
        [_item(task, sample) for task, some in samples.items() for sample in some],
        output['versions'])


def _offline():
    """Keeps the Hugging Face packages off the network, imported already or not."""
    os.environ['HF_DATASETS_OFFLINE'] = os.environ['HF_HUB_OFFLINE'] = '1'
    for module, name in (('datasets.config', 'HF_DATASETS_OFFLINE'),
                         ('datasets.config', 'HF_HUB_OFFLINE'),
                         ('huggingface_hub.constants', 'HF_HUB_OFFLINE')):
        if module in sys.modules and hasattr(sys.modules[module], name):
            setattr(sys.modules[module], name, True)


def _task_manager(names):
    """Knows the tasks of local folders, for groups; and the harness's own, thousands of files to
    be read, only if one of them is named."""
    from lm_eval.tasks import TaskManager
    folders = [name for name in names if os.path.isdir(name)]
    folders += [os.path.dirname(name) for name in names if os.path.isfile(name)]
    own = all(os.path.exists(name) for name in names)
    folders = list(dict.fromkeys(pathlib.Path(folder).resolve() for folder in folders))
    return TaskManager(include_path=folders, include_defaults=not own)


def _load_tasks(names, manager):
    """Tasks and groups of the harness."""
    built = []
    for name in names:
        path = pathlib.Path(name).resolve()
        if not path.exists():
            built.append(_build(manager, name, pathlib.Path()))
            continue
        files = [path] if path.is_file() else sorted(
            file for file in path.rglob('*.yaml') if not file.name.startswith('_'))
        if not files:
            raise InputError(f'{name!r} holds no task: no *.yaml there that does not begin with '
                             "'_'; give a folder with task YAML")
        built += [_build(manager, str(file), file.parent) for file in files]
    return built


def _build(manager, spec, folder):
    """One task or group. Relative data files are relative to the folder of the YAML."""
    try:
        with contextlib.chdir(folder):
            loaded = manager.load([spec])
    # Tasks are other people's YAML, functions and data: whatever they raise is about the task.
    except Exception as error:
        raise InputError(f'task {spec!r} cannot be loaded ({type(error).__name__}: {error}); check '
                         'its name, its YAML and its data files') from error
    return next(iter((loaded['groups'] or loaded['tasks']).values()))


def _metrics(results, samples, counts, seed):
    found = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, has_filter, kind = key.partition(',')
            if not has_filter or metric.endswith('_stderr') or not isinstance(value, (int, float)):
                continue
            rows = [sample[metric] for sample in samples.get(task, ())
                    if sample['filter'] == kind and metric in sample]
            name = f'harness/{task}/{metric}' + ('' if kind == 'none' else f'/{kind}')
            low, high = _limits(rows, value, seed)
            n = len(rows) or (counts[task]['effective'] if task in counts else 0)
            found[name] = {'value': float(value), 'low': low, 'high': high, 'n': n,
                           'unit': _UNITS[metric] if metric in _UNITS else ''}
    return found


def _limits(rows, value, seed):
    """95 % limits of a metric over items, (None, None) where it is none of the known kinds.

    The kinds are told by whether they give `value`: a mean of numbers x; exp(-mean x); with pairs
    (x, w), exp(-sum x / sum w) and -sum x / sum w / log 2.
    """
    pairs = all(isinstance(row, (tuple, list)) and len(row) == 2 for row in rows)
    numbers = [x for row in rows for x in row] if pairs else rows
    if not rows or not all(isinstance(x, (bool, int, float, np.number)) for x in numbers):
        return None, None
    x, w = np.array(rows, float).T if pairs else (np.array(rows, float), np.ones(len(rows)))
    if not np.isfinite(x).all() or not np.isfinite(w).all() or w.sum() <= 0:
        return None, None
    rate = lambda weights: weights @ x / (weights @ w)
    for shape in (lambda r: r, lambda r: np.exp(-r), lambda r: -r / math.log(2)):
        if math.isclose(shape(x.sum() / w.sum()), value, rel_tol=1e-9, abs_tol=1e-12):
            statistic = lambda weights, shape=shape: shape(rate(weights))
            plain = not pairs and shape(2.0) == 2.0
            found = statistics.bootstrap(x, statistic=None if plain else statistic, draws=2000,
                                         seed=seed).as_dict()
            return tuple(None if found[end] is None else float(found[end])
                         for end in ('low', 'high'))
    return None, None


def _item(task, sample):
    """One line of items.jsonl."""
    metrics = {name: sample[name] for name in sample['metrics']}
    correct = [metrics[name] for name in _CORRECT if name in metrics]
    responses = [_plain(answer) for answer in sample['filtered_resps']]
    subject, kind = f'{task}/{sample["doc_id"]}', sample['filter']
    return {'id': subject if kind == 'none' else f'{subject}/{kind}', 'suite': f'harness/{task}',
            'filter': kind, 'subject': subject,
            'prompt': str(sample['arguments'][0][0]), 'answer': _plain(sample['target']),
            'given': responses, 'correct': int(correct[0]) if correct else None,
            'metrics': _plain(metrics)}


def _plain(x):
    """Numbers, texts, lists and dicts of them, for JSON."""
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple, set)):
        return [_plain(value) for value in x]
    if isinstance(x, np.generic):
        x = x.item()
    return x if isinstance(x, (str, bool, int, float, type(None))) else str(x)
