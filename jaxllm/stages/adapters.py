"""Adapters as artefacts: the verbs `adapters` and `export`.

A rack is a directory with adapters.json and a copy of each adapter; its base is named, with its
fingerprint, and never copied or changed. Adapters are small: the copies make a rack outlive the
runs that its adapters come from.
"""

import json
import pathlib
import re
import shutil

import jax
import numpy as np

from jaxllm.config import one_builder, write_atomic
from jaxllm.errors import InputError
from jaxllm.models import peft, peft_layout
from jaxllm.models.config import model_config
from jaxllm.models.convert import TreeWeights, export_gguf, export_hf
from jaxllm.models.convert.hf_config import guess_family
from jaxllm.sharding import make_mesh
from jaxllm.stages import base as bases
from jaxllm.stages.run import start_jax

FILE = bases.RACK_FILE


def adapters(args):
    """Runs one action of the verb."""
    start_jax()
    path = pathlib.Path(args.path).resolve()
    actions = {'add': _add, 'list': _list, 'activate': _activate, 'swap': _activate,
               'remove': _remove, 'merge': _merge, 'export': _export}
    actions[args.action](path, args)


def _read(path):
    if not (path / FILE).exists():
        raise InputError(f'{path} is no rack of adapters (no {FILE} there); make one with '
                         '`jaxllm adapters add RACK --run=RUN`')
    return json.loads((path / FILE).read_text())


def _write(path, rack):
    write_atomic(path / FILE, json.dumps(rack, indent=1) + '\n')


def _entry(rack, name, path):
    if name not in rack['adapters']:
        raise InputError(f'{path} has no adapter {name!r}; it has '
                         f'{", ".join(rack["adapters"]) or "none"}')
    return rack['adapters'][name]


def _add(path, args):
    if bool(args.run) == bool(args.peft):
        raise InputError('adapters add needs one adapter: --run=RUN of a LoRA run, or '
                         '--peft=FOLDER with --base=PATH')
    base, settings, tree, source = _from_run(args) if args.run else _from_peft(path, args)
    name = args.name or pathlib.Path(args.run or args.peft).resolve().name
    if not re.fullmatch(r'[\w-][\w.-]*', name):
        raise InputError(f'{name!r} cannot be the name of an adapter; use letters, digits, '
                         '"-", "_" and "."')
    about = {'path': str(base.path), 'step': base.step, 'fingerprint': base.fingerprint}
    path.mkdir(parents=True, exist_ok=True)
    with one_builder(path / FILE):
        rack = _read(path) if (path / FILE).exists() else {'base': about, 'adapters': {},
                                                           'active': ''}
        if rack['base']['fingerprint'] != base.fingerprint or rack['base']['step'] != base.step:
            raise InputError(f'{source} is an adapter for {base.path} (step {base.step}), and '
                             f'{path} is of adapters for {rack["base"]["path"]} (step '
                             f'{rack["base"]["step"]}); give it a rack of its own')
        if name in rack['adapters']:
            raise InputError(f'{path} has an adapter {name!r} already; give another name '
                             'behind the rack')
        folder = path / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        np.savez(folder / bases.ADAPTER_FILE, **bases.flat(tree))
        _save_talk(folder, args, base)
        rack['adapters'][name] = {'source': source, 'lora': bases.lora_dict(settings)}
        rack['active'] = rack['active'] or name
        _write(path, rack)
    print(f'{name} added to {path}; active: {rack["active"]}')


def _save_talk(folder, args, base):
    """The chat template that goes with an adapter: of its run, else of the base."""
    from jaxllm.data import chat
    template = chat.read_template(pathlib.Path(args.run) / 'tokenizer') if args.run else None
    template = template or base.template()
    if template:
        chat.save_template(folder, template)


def _from_run(args):
    run = bases.open_base(args.run, what='--run')
    if run.lora is None:
        raise InputError(f'{args.run} trained all weights and has no adapter; give a run with '
                         'lora.rank above 0')
    _, tree = bases.load_parts(run, make_mesh())
    return run.parent, run.lora, tree, str(run.path)


def _from_peft(path, args):
    where = args.base
    if not where and (path / FILE).exists():
        where = _read(path)['base']['path']
    if not where:
        raise InputError('a PEFT adapter does not hold its base; add --base=PATH')
    base = bases.open_base(where, what='--base')
    model = model_config(base.model)
    family = base.foreign.family if base.foreign else guess_family(model)
    settings, tree = peft.load_peft(args.peft, model, peft_layout.modules_of(family))
    return base, settings, tree, str(pathlib.Path(args.peft).resolve())


def _list(path, args):
    if not (path / FILE).exists():
        run = bases.open_base(path)
        if run.lora is None:
            raise InputError(f'{path} trained all weights and has no adapter')
        print(f'{path}: rank {run.lora.rank}, targets {", ".join(run.lora.targets)}, on '
              f'{run.parent.path}')
        return
    rack = _read(path)
    print(f'base {rack["base"]["path"]} (step {rack["base"]["step"]}, fingerprint '
          f'{rack["base"]["fingerprint"][:12]})')
    for name, entry in rack['adapters'].items():
        size = (path / name / bases.ADAPTER_FILE).stat().st_size
        kind = 'DoRA' if entry['lora']['dora'] else 'rsLoRA' if entry['lora']['rslora'] else 'LoRA'
        print(f'{"*" if name == rack["active"] else " "} {name:<20} {kind} rank '
              f'{entry["lora"]["rank"]:<4} {size / 1e6:8.2f} MB  from {entry["source"]}')
    if not rack['active']:
        print('no adapter is active: the bare base answers')


def _activate(path, args):
    rack = _read(path)
    if not args.none:
        if not args.name:
            raise InputError(f'{args.action} needs the name of an adapter, or --none; {path} has '
                             f'{", ".join(rack["adapters"])}')
        _entry(rack, args.name, path)
    was, rack['active'] = rack['active'], '' if args.none else args.name
    _write(path, rack)
    print(f'{was or "the bare base"} -> {rack["active"] or "the bare base"}')


def _remove(path, args):
    rack = _read(path)
    _entry(rack, args.name, path)
    mesh = make_mesh()
    base = bases.rack_base(path, rack)
    before = bases.tensor_hashes(bases.load_plain(base, mesh))
    del rack['adapters'][args.name]
    if rack['active'] == args.name:
        rack['active'] = ''
    _write(path, rack)
    shutil.rmtree(path / args.name)
    after = bases.tensor_hashes(bases.load_plain(bases.rack_base(path, rack), mesh))
    if before != after:
        raise InputError(f'{base.path} changed while {args.name} was removed; bring it back from a '
                         'copy')
    print(f'{args.name} removed; active: {rack["active"] or "the bare base"}. The base has the '
          f'same {len(after)} tensors as before (sha256 {bases.hash_of(after)[:16]})')


def _chosen(path, args):
    """The Base of a rack's adapter (the named or the active one), or of a LoRA run."""
    if not (path / FILE).exists():
        found = bases.open_base(path)
    else:
        rack = _read(path)
        name = args.name or rack['active']
        if not name:
            raise InputError(f'{path} has no active adapter; name one')
        _entry(rack, name, path)
        found = bases.open_rack(path, name)
    if found.lora is None:
        raise InputError(f'{path} trained all weights and has no adapter; use `jaxllm export`')
    return found


def _need_out(args):
    if not args.out:
        raise InputError(f'{args.action} needs --out=PATH, a new one')
    if pathlib.Path(args.out).exists():
        raise InputError(f'{args.out} exists already; give a new --out')


def _merge(path, args):
    _need_out(args)
    _write_model(_chosen(path, args), args)


def _export(path, args):
    _need_out(args)
    found = _chosen(path, args)
    model = model_config(found.model)
    _, tree = bases.load_parts(found, make_mesh())
    family = _family(found, model)
    peft.export_peft(args.out, tree, model, found.lora, found.parent.path,
                     peft_layout.modules_of(family))
    print(args.out)


def _family(base, model):
    while base.parent:
        base = base.parent
    return base.foreign.family if base.foreign else guess_family(model)


def export(args):
    """The verb `export`."""
    args.action = 'export'
    if args.format == 'gguf' and not args.out.endswith('.gguf'):
        raise InputError(f'--out={args.out}: expected a FILE.gguf for --format=gguf')
    _need_out(args)
    start_jax()
    _write_model(bases.open_base(args.path, args.checkpoint), args)


def _write_model(base, args):
    """Writes a Base as --format says; a model file becomes another one tensor by tensor."""
    model, mesh = model_config(base.model), make_mesh()
    tokenizer, template = base.tokenizer(), base.template()
    with jax.set_mesh(mesh):
        weights = base.foreign or TreeWeights(bases.load_plain(base, mesh))
    family = _family(base, model)
    if args.format == 'hf':
        from jaxllm.data import chat
        stops = chat.stop_ids(template, tokenizer) if template else ()
        export_hf(args.out, model, weights, tokenizer, template, family=family, stop_ids=stops,
                  dtype=args.kind or 'float32')
    else:
        export_gguf(args.out, model, weights, tokenizer, template, family=family,
                    kind=args.kind or 'f16')
    print(args.out)
