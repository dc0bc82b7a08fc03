"""The world stage: publishes a synthetic world, all its datasets with their cards."""

import dataclasses

import jax

from jaxllm.config import check_keys, section, to_json
from jaxllm.stages import lineage
from jaxllm.train.progress import stage as say
from jaxllm.world import publish
from jaxllm.world.spec import Intervention, WorldSpec, check


@dataclasses.dataclass(frozen=True)
class PublishConfig:
    names: tuple  # of the datasets; () = all


def world_spec(config):
    """The WorldSpec of a section `config.world`.

    Raises: InputError: an unknown scale, or an intervention that has no meaning.
    """
    intervention = section(Intervention, config.intervention, 'world.intervention')
    spec = section(WorldSpec, {**config, 'intervention': intervention}, 'world')
    check(spec)
    return spec


def prepare(config):
    """Checks the config. Returns (WorldSpec, names of datasets)."""
    check_keys(config, ('stage', 'seed', 'world', 'publish'))
    names = section(PublishConfig, config.publish, 'publish').names or tuple(publish.DATASETS)
    for name in names:
        publish.check_dataset(name, 'id')
    return world_spec(config.world), names


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    spec, names = prepare(config)
    return to_json(config)


def run(config, workdir):
    """Writes `workdir/tfds`, `jsonl`, `cards`, `manifests` and README.md."""
    spec, names = prepare(config)
    if jax.process_index() == 0:
        manifests = publish.publish(workdir, spec, names, say=say)
        lineage.write_lineage(
            workdir, config, world=spec.fingerprint,
            datasets={name: manifest['jsonl_sha256'] for name, manifest in manifests.items()})
        say(f'world {spec.fingerprint} in {workdir}')
