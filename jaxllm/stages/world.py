"""The world stage: publishes a synthetic world, all its datasets with their cards."""

import dataclasses
import json

import jax

from jaxllm.config import check_keys, section, to_json
from jaxllm.errors import InputError
from jaxllm.stages import lineage
from jaxllm.train.progress import stage as say
from jaxllm.world import publish, truth
from jaxllm.world.atlas import check_memory, estimated_bytes
from jaxllm.world.interventions import source_number
from jaxllm.world.spec import SCALES, Intervention, WorldSpec, check

OUTPUTS = 'README.md',


@dataclasses.dataclass(frozen=True)
class PublishConfig:
    names: tuple  # of the datasets; () = all


def world_spec(config):
    """The WorldSpec of a section `config.world`.

    Only truth tables are drawn here, and those only to find a source that is named.

    Raises: InputError: an unknown scale or source, or an intervention that has no meaning.
    """
    intervention = section(Intervention, config.intervention, 'world.intervention')
    spec = section(WorldSpec, {**config, 'intervention': intervention}, 'world')
    check(spec)
    if intervention.kind in ('source_volume', 'contradict'):
        source_number(truth.draw(spec.seed, SCALES[spec.scale]).sources, intervention.target)
    return spec


def check_learned(what, run, asked):
    """Raises InputError if the model of a run has learned another world than the one that it is
    asked about.

    Args:
      what: the setting that names the run. asked: a WorldSpec.
    """
    file = run / 'lineage.json'
    learned = json.loads(file.read_text()) if file.exists() else {}
    if 'world' in learned and learned['world'] != asked.fingerprint:
        raise InputError(f'{what}: {run} has learned the world {learned["world"]} and config.world '
                         f'is {asked.fingerprint}; give its world, e.g. --config.seed=1, or a '
                         'model of this one')


def prepare(config):
    """Checks the config. Returns (WorldSpec, names of datasets).

    Raises: InputError: also for a scale that does not fit memory.
    """
    check_keys(config, ('stage', 'seed', 'world', 'publish'))
    names = section(PublishConfig, config.publish, 'publish').names or tuple(publish.DATASETS)
    for name in names:
        publish.check_dataset(name, 'id')
    spec = world_spec(config.world)
    check_memory(SCALES[spec.scale])
    return spec, names


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    spec, names = prepare(config)
    scale = SCALES[spec.scale]
    planned = int(truth.draw(spec.seed, scale).people.planned.sum())
    facts = planned * (1 if scale.biographies else len(scale.values))
    lines = {'world': spec.fingerprint, 'people': f'{scale.people:,}',
             'attributes': ', '.join(f'{name} {count:,}' for name, count in scale.values),
             'sources': f'{scale.sources:,}', 'brands': f'{scale.brands:,}',
             'documents': f'{facts:,} that tell facts, before dirt and interventions',
             'memory': f'{estimated_bytes(scale) / 2**20:,.0f} MiB while it is drawn, about',
             'datasets': ', '.join(names)}
    return to_json(config) + ''.join(f'\n{name:<11} {value}' for name, value in lines.items())


def run(config, workdir):
    """Writes `workdir/tfds`, `jsonl`, `cards`, `manifests` and README.md."""
    spec, names = prepare(config)
    if jax.process_index() == 0:
        manifests = publish.publish(workdir, spec, names, say=say)
        lineage.write_lineage(
            workdir, config, world=spec.fingerprint,
            datasets={name: manifest['jsonl_sha256'] for name, manifest in manifests.items()})
        say(f'world {spec.fingerprint} in {workdir}')
