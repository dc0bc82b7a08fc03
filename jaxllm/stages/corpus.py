"""From the data and tokenizer sections of a config to a tokenizer and token stores on disk."""

import dataclasses
import itertools
import json
import shutil

from jaxllm.config import one_builder, section, write_atomic
from jaxllm.data import fertility, tokenizer as tokenizers
from jaxllm.data.records import Rejects, SourceSpec, read_source
from jaxllm.data.store import TokenStore, write_store
from jaxllm.errors import InputError
from jaxllm.stages import cleaning
from jaxllm.stages.world import world_spec
from jaxllm.train.progress import stage as say

_FERTILITY_DOCUMENTS = 500  # per source: enough for two digits


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    kind: str        # bpe, byte, char, or file (an existing tokenizer.json or run)
    vocab_size: int
    path: str        # of kind 'file'
    max_bytes: int   # text that BPE merges are learned from, at most

    def __post_init__(self):
        if self.kind not in ('bpe', 'byte', 'char', 'file'):
            raise InputError(f'tokenizer.kind={self.kind!r} is unknown; use bpe, byte, '
                             'char or file')
        if (self.kind == 'file') != bool(self.path):
            raise InputError(f'tokenizer.kind={self.kind!r} with tokenizer.path={self.path!r}; a '
                             "path goes with kind 'file', and only with it")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    sources: object          # {name: SourceSpec}
    seq_len: int             # tokens per row
    holdout_share: float     # of the documents of each source, for validation
    max_reject_share: float  # more malformed records than this stop the run
    infill: object           # infill.InfillConfig
    clean: object = None     # clean.settings.CleanConfig; without it nothing is filtered

    def __post_init__(self):
        check_shares(self, 'documents')


def check_shares(data, what):
    """Raises InputError for numbers of a data section that make no sense."""
    if data.seq_len < 2:
        raise InputError(f'data.seq_len={data.seq_len} must be at least 2')
    if not 0 < data.holdout_share < 1:
        raise InputError(f'data.holdout_share={data.holdout_share} must be above 0 and below 1; a '
                         f'run needs {what} to validate on, e.g. 0.05')
    if not 0 <= data.max_reject_share <= 1:
        raise InputError(f'data.max_reject_share={data.max_reject_share} must be in [0, 1]')


def check_world(sources, config):
    """The WorldSpec of `config.world`, or None; it is there iff a source is of a world."""
    of_world = [name for name, spec in sources.items() if spec.path.startswith('world:')]
    if bool(of_world) != ('world' in config):
        raise InputError(
            f'the source {of_world[0]} is of a world and config.world is missing; add it'
            if of_world else "config.world is read by nobody; no source has a path 'world:NAME'")
    return world_spec(config.world) if of_world else None


def own(name, spec, world):
    """What a source has beside its section: its name, and its world if it is of one."""
    return {'name': name, 'world': world if spec.path.startswith('world:') else None}


def source_specs(config):
    """SourceSpecs of `config.data.sources`; those of a world have the world of `config.world`.

    Raises: InputError: no source, or `config.world` is there without such a source, or missing.
    """
    sources = config.data.sources
    if not sources:
        raise InputError('config.data.sources is empty; add one with a path')
    world = check_world(sources, config)
    return [section(SourceSpec, {**spec, **own(name, spec, world)}, f'data.sources.{name}')
            for name, spec in sources.items()]


def reader(data, folder):
    """read(SourceSpec) -> its documents, cleaned where the section `data` says so.

    Malformed records are counted by whoever makes the stores or cleans.
    """
    if cleaning.settings(data) is None:
        return lambda spec: read_source(spec, Rejects())
    return lambda spec: cleaning.documents(spec, data, folder)


def make_tokenizer(config, specs, folder, read=None):
    """Loads the tokenizer in `folder`, or makes it there: trained on `specs`, or copied.

    Also writes fertility.json: tokens per word and bytes per token of each source. `read` is a
    `reader`; default: of the sources as they are.
    """
    read = read or (lambda spec: read_source(spec, Rejects()))
    with one_builder(folder):
        if (folder / 'fertility.json').exists():
            return tokenizers.load(folder)
        shutil.rmtree(folder, ignore_errors=True)
        texts = (document.text for spec in specs for document in read(spec))
        if config.kind == 'bpe':
            say(f'training a BPE tokenizer of {config.vocab_size:,} tokens ...')
            tokenizer = tokenizers.train_bpe(texts, config.vocab_size, config.max_bytes)
        elif config.kind == 'char':
            tokenizer = tokenizers.char_tokenizer(texts, config.vocab_size)
        elif config.kind == 'byte':
            tokenizer = tokenizers.byte_tokenizer()
        else:
            tokenizer = tokenizers.load(config.path)
        tokenizer.save(folder)
        sample = [document for spec in specs for document in itertools.islice(
            read(spec), _FERTILITY_DOCUMENTS)]
        rows = fertility.fertility(sample, tokenizer)
        write_atomic(folder / 'fertility.json', json.dumps(rows, indent=1))
        say(fertility.table(rows))
        return tokenizer


def copy_tokenizer(parent, folder):
    """The tokenizer of a parent Base, with its fertility report and template, as this run's own."""
    with one_builder(folder):
        if not folder.exists():
            partial = folder.with_name(folder.name + '.partial')
            shutil.rmtree(partial, ignore_errors=True)
            if parent.foreign:
                parent.tokenizer().save(partial)
                write_atomic(partial / 'fertility.json', '[]')
            else:
                shutil.copytree(parent.path / 'tokenizer', partial)
            partial.rename(folder)


def make_stores(data, specs, tokenizer, folder):
    """{source name: TokenStore} in `folder`, built where they are missing.

    Malformed records go to rejects-<source>.jsonl; more than `data.max_reject_share` of a source is
    an InputError. A store that was damaged since it was built is an InputError too. A source with a
    validation split has a store of its own for it, which is not cleaned, and trains on all of its
    split.
    """
    with one_builder(folder):
        stores = {spec.name: _store(data, spec, tokenizer, folder) for spec in specs}
        if cleaning.settings(data) is not None and not (folder / cleaning.REPORT).exists():
            cleaning.write_report(specs, folder)
        return stores


def _store(data, spec, tokenizer, folder):
    cleaned = cleaning.settings(data) is not None
    if not spec.validation_split:
        return _built(data, spec, tokenizer, folder, data.holdout_share, cleaned)
    held_out = dataclasses.replace(spec, name=f'{spec.name}.validation', validation_split='',
                                   split=spec.validation_split)
    train = _built(data, spec, tokenizer, folder, 0.0, cleaned)
    validation = _built(data, held_out, tokenizer, folder, 0.0, cleaned=False)
    return dataclasses.replace(train, validation=validation.train)


def _built(data, spec, tokenizer, folder, holdout_share, cleaned):
    target = folder / 'stores' / spec.name
    if not target.exists():
        found = (cleaning.documents(spec, data, folder) if cleaned
                 else _checked(spec, data.max_reject_share, folder))
        say(f'tokenizing {spec.name} ...')
        write_store(found, tokenizer, target, holdout_share=holdout_share, source_fingerprint=(
            cleaning.fingerprint(spec, data) if cleaned else spec.fingerprint))
    store = TokenStore.open(target)
    if store.train.tokenizer_fingerprint != tokenizer.fingerprint:
        raise InputError(f'{target} was built with another tokenizer; delete '
                         f'{folder / "stores"} to build it again')
    return store


def _checked(spec, max_share, folder):
    """The documents of a source. The share of rejects is checked, and their summary written, before
    the store is closed: where there is a store, there is a summary."""
    rejects = Rejects(folder / f'rejects-{spec.name}.jsonl')
    yield from read_source(spec, rejects)
    rejects.check(max_share)
    write_atomic(folder / f'rejects-{spec.name}.json', json.dumps(rejects.summary()))


def summary(specs, stores, source, num_steps, folder):
    """One row per source for the report: what there is, its share, how often it is read."""
    epochs = source.epochs(num_steps)
    rows = []
    for spec in specs:
        store = stores[spec.name]
        both = store.train, store.validation
        rejects = json.loads((folder / f'rejects-{spec.name}.json').read_text())
        rows.append({
            'source': spec.name, 'path': spec.path, 'license': spec.license,
            'documents': sum(split.num_documents for split in both),
            'tokens': sum(split.num_tokens for split in both),
            'bytes': int(sum(split.text_bytes.sum() for split in both)),
            'share': source.shares[spec.name], 'epochs': epochs[spec.name], 'rejects': rejects})
    return rows
