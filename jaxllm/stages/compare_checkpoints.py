"""Which states of a run a comparison takes: its best or last one, one step, or all that it kept."""

import dataclasses
import pathlib

from jaxllm.errors import InputError
from jaxllm.stages import base as bases
from jaxllm.train.checkpoint import saved_steps

ALL = 'all'


def open_entries(entries, reference):
    """Opens every artefact; one with the checkpoint 'all' becomes one of each checkpoint.

    These are called NAME-STEP, and are of one method, so that the table at equal KL picks among
    them.

    Args:
      entries: {name: compare_samples.Entry}. reference: the name of one.

    Returns:
      ({name: Entry}, {name: Base}), in the order of `entries` and of steps.

    Raises:
      InputError: no model at a path, no such checkpoint, or a name that is there twice.
    """
    found = {}
    for name, entry in entries.items():
        what = f'config.artefacts.{name}'
        if not entry.path:
            raise InputError(f'{what}.path is empty; give a run or a model file, e.g. '
                             f'--{what}.path=runs/{name}')
        _check(what, entry)
        for own, each in _each(name, entry, reference):
            if own in found:
                raise InputError(f'{what}.checkpoint={ALL!r} makes the name {own!r}, which is '
                                 'there already; rename one of the two')
            found[own] = each, bases.open_base(each.path, each.checkpoint, what)
            _check_step(what, *found[own])
    return ({name: entry for name, (entry, _) in found.items()},
            {name: base for name, (_, base) in found.items()})


def _check(what, entry):
    if entry.checkpoint not in ('best', 'last', ALL) and not entry.checkpoint.isdecimal():
        raise InputError(f'{what}.checkpoint={entry.checkpoint!r} is unknown; use best, last, '
                         f'{ALL} or the number of a step')


def _each(name, entry, reference):
    """[(name, Entry)], with one checkpoint each."""
    if entry.checkpoint != ALL:
        return [(name, entry)]
    if name == reference:
        raise InputError(f'the reference {name!r} has checkpoint={ALL!r}, and the others are held '
                         'to one model; use best, last or the number of a step')
    folder = pathlib.Path(entry.path) / 'checkpoints'
    if not folder.is_dir():
        raise InputError(f'config.artefacts.{name}.checkpoint={ALL!r}: {entry.path} is no run with '
                         'checkpoints; use best for a model file')
    return [(f'{name}-{step}', dataclasses.replace(
        entry, checkpoint=str(step), method=entry.method or name)) for step in saved_steps(folder)]


def _check_step(what, entry, base):
    """A file of weights has no steps, and would be taken whatever is asked for."""
    if entry.checkpoint.isdecimal() and base.step != int(entry.checkpoint):
        raise InputError(f'{what}.checkpoint={entry.checkpoint!r}: {entry.path} is no run with '
                         'checkpoints; use best for a model file')
