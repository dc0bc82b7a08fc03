"""The models of a directory: those that the steps of a chain made, or the one of a run."""

import json
import pathlib

from jaxllm.errors import InputError
from jaxllm.stages.base import MODEL_FILE
from jaxllm.sweep import CHAIN
from jaxllm.train.checkpoint import has_checkpoint

_PREFERRED = 'aligned'  # of the steps of a chain, whatever comes after it
_NO_TALKERS = ('reward',)  # stages whose models score texts and write none


def models_of(path):
    """({name: path}, the name to begin with) of what can be talked to in a directory, in the order
    in which it was made; of a run or a model file, itself.

    In a chain, one begins with the step `aligned`, or with the last one that has a checkpoint.

    Raises:
      InputError: a chain of which no step has made a model yet.
    """
    path = pathlib.Path(path)
    config = _config(path)
    if _stage(config) != CHAIN:
        return {path.name: path}, path.name
    found = {step: path / step for step in _order(path, config) if _writes(path / step)}
    if not found:
        raise InputError(f'{path} is a chain of {", ".join(config["steps"])}, none of which has '
                         'made a model yet; run it first, with its --config')
    return found, _PREFERRED if _PREFERRED in found else list(found)[-1]


def _order(path, config):
    """Names of steps as they run: config.json sorts them by name."""
    file = path / 'lineage.json'
    return json.loads(file.read_text())['steps'] if file.exists() else list(config['steps'])


def _config(path):
    file = path / 'config.json'
    return json.loads(file.read_text()) if file.exists() else {}


def _stage(config):
    """'' of a directory without a config: a model file."""
    return config['stage'] if 'stage' in config else ''


def _writes(step):
    """Whether a step has made a model that writes text, and is no control on random weights, which
    one opens by its own directory."""
    config = _config(step)
    return (_stage(config).rpartition('.')[2] not in _NO_TALKERS
            and not ('fresh_weights' in config and config['fresh_weights'])
            and ('model' in config or (step / MODEL_FILE).exists())
            and has_checkpoint(step / 'checkpoints'))
