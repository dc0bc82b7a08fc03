"""Adapters in the layout of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

    base_model.model.<module>.lora_A.weight           [R, inputs]    ours is [*inputs, R]
    base_model.model.<module>.lora_B.weight           [features, R]  ours is [R, *features]
    base_model.model.<module>.lora_magnitude_vector   [features]     DoRA
    base_model.model.<module>.weight                  an embedding that was trained in full
"""

import json
import math
import pathlib
import re

import jax.numpy as jnp
import numpy as np

from jaxllm.errors import InputError
from jaxllm.models import peft_layout as layout
from jaxllm.models.lora import LoraConfig

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'


def export_peft(folder, adapter, model, lora, base_name, modules):
    """Writes an adapter so that `PeftModel.from_pretrained(base, folder)` computes what ours does.

    Args:
      folder: made if need be.
      adapter: tree as from `lora.init_adapter`.
      model: ModelConfig.
      lora: its LoraConfig. How our base is stored is no property of the adapter: on a base in
        other bits PEFT computes what that base gives.
      base_name: name or folder of the base model, for PEFT's AutoPeftModel.
      modules: Modules of the base.

    Raises:
      InputError: a DoRA of a part of a fused module, whose other magnitudes the adapter lacks.
    """
    tensors, ranks = {}, {}
    for module, parts in modules.linears.items():
        for n in range(model.num_layers):
            leaves = [layout.layer_leaves(adapter, model, n, part) for part in parts]
            if not any(leaves):
                continue
            if lora.dora and not all(leaves):
                raise InputError(f'DoRA of a part of {module} cannot be exported: it lacks the '
                                 f'magnitudes of {", ".join(parts)} that are no target; use '
                                 "lora.targets=('*',), or merge the adapter")
            name = _PREFIX + modules.layers.format(n) + module
            new = layout.fused(leaves, parts, model)
            ranks[module] = len(new['lora_A.weight'])
            tensors |= {f'{name}.{key}': value for key, value in new.items()}
    saved = _full_tables(adapter, model, modules)
    tensors |= {f'{_PREFIX}{name}.weight': table for name, table in saved.items()}
    config = _make_config(lora, base_name, modules, ranks, saved)
    from safetensors.numpy import save_file
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={'format': 'pt'})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + '\n')


def _full_tables(adapter, model, modules):
    """{module: array} of the embeddings that are trained in full."""
    saved = {}
    if 'embed' in adapter:
        saved[modules.tokens] = layout.to_numpy(adapter['embed']['tokens'])
    if 'head' in adapter:
        saved[modules.head] = layout.to_numpy(adapter['head']['kernel'])
    elif 'embed' in adapter and model.tie_embeddings:
        # Without it PEFT would untie them: the head would keep the base's table.
        saved[modules.head] = saved[modules.tokens].copy()
    return saved


def _make_config(lora, base_name, modules, ranks, saved):
    """adapter_config.json, with patterns for the modules whose rank is not lora.rank."""
    short = layout.short_names(modules)
    other = {short[module]: rank for module, rank in ranks.items() if rank != lora.rank}
    return {
        'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': str(base_name),
        'inference_mode': True, 'r': lora.rank, 'lora_alpha': lora.alpha,
        'target_modules': sorted(short[module] for module in ranks), 'rank_pattern': other,
        'alpha_pattern': {name: lora.scale * (math.sqrt(rank) if lora.rslora else rank)
                          for name, rank in other.items()},
        'modules_to_save': [name.split('.')[-1] for name in saved] or None,
        'use_rslora': lora.rslora, 'use_dora': lora.dora, 'lora_dropout': 0.0, 'bias': 'none',
        'fan_in_fan_out': modules.transposed, 'init_lora_weights': True}


def load_peft(folder, model, modules, base='float32'):
    """Reads an adapter that PEFT, or `export_peft`, has saved.

    A rank or alpha of its own (rank_pattern, alpha_pattern) is kept: the leaves of a layer have the
    rank that they have, and B is multiplied so that one scale serves all.

    Args:
      model: ModelConfig of the base.
      modules: its Modules.
      base: how the frozen base is to be stored, for the LoraConfig; PEFT does not say.

    Returns:
      (LoraConfig, adapter tree of float32 arrays).

    Raises:
      InputError: no adapter, a broken file, an adapter for another base, or one that has what we
        have not: other modules, trained biases, another rank in every layer.
    """
    folder = pathlib.Path(folder)
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    adapter, names = {}, []
    for module, parts in modules.linears.items():
        found = [_take(tensors, _PREFIX + modules.layers.format(n) + module)
                 for n in range(model.num_layers)]
        if not any(found):
            continue
        shapes = [{key: x.shape for key, x in leaves.items()} for leaves in found]
        if any(shape != shapes[0] for shape in shapes):
            raise InputError(f'{folder}: {module} has not the same adapter in all '
                             f'{model.num_layers} layers; adapters of some layers, or with a rank '
                             'of their own in each, cannot be held')
        scale = _scale(config, modules.layers.format(0) + module, found[0], folder)
        for part, layers in layout.parted(found, parts, model, module, folder).items():
            names.append(part)
            layout.put_layers(adapter, model, part, layers, scale / _config_scale(config))
    if not names:
        raise InputError(f'{folder}: no adapter of a layer of this model; it has '
                         f'{", ".join(list(tensors)[:3])}. Is it for another family?')
    _take_embeddings(adapter, tensors, model, modules, config, folder)
    if tensors:
        raise InputError(f'{folder / WEIGHTS}: {len(tensors)} tensors have no place here, e.g. '
                         f'{next(iter(tensors))}; expected adapters of {", ".join(modules.linears)}'
                         f' in {model.num_layers} layers: is it for another base?')
    lora = LoraConfig(rank=config['r'], alpha=config['lora_alpha'], targets=tuple(names),
                      rslora=_of(config, 'use_rslora'), dora=_of(config, 'use_dora'),
                      train_embeddings='embed' in adapter or 'head' in adapter, base=base)
    return lora, adapter


def _take(tensors, name):
    """Removes the tensors of one module and returns them under our names, or {}."""
    names = {'lora_A.weight': 'lora_a', 'lora_B.weight': 'lora_b',
             'lora_magnitude_vector': 'magnitude'}
    return {ours: tensors.pop(f'{name}.{key}') for key, ours in names.items()
            if f'{name}.{key}' in tensors}


def _take_embeddings(adapter, tensors, model, modules, config, folder):
    tokens = tensors.pop(f'{_PREFIX}{modules.tokens}.weight', None)
    head = tensors.pop(f'{_PREFIX}{modules.head}.weight', None)
    for name, table in (('token table', tokens), ('head', head)):
        if table is not None and table.shape != (model.vocab_size, model.d_model):
            raise InputError(f'{folder}: a {name} of shape {table.shape}, this model has '
                             f'{(model.vocab_size, model.d_model)}; it was made for another base '
                             'or for more tokens')
    if model.tie_embeddings and (tokens is not None or head is not None):
        same = tokens is not None and head is not None and np.array_equal(tokens, head)
        if not same and not (tokens is not None and _of(config, 'ensure_weight_tying')):
            raise InputError(f'{folder}: token table and head differ after training, but this '
                             'model has one table for both (model.tie_embeddings); untie it first')
        head = None
    if tokens is not None:
        adapter['embed'] = {'tokens': jnp.asarray(tokens)}
    if head is not None:
        adapter['head'] = {'kernel': jnp.asarray(head)}


def _config_scale(config):
    rank, alpha = config['r'], config['lora_alpha']
    return alpha / (math.sqrt(rank) if _of(config, 'use_rslora') else rank)


def _scale(config, name, leaves, folder):
    """s of one module, by PEFT's patterns; a pattern is a regular expression for a name's end."""
    def look_up(table, default):
        for pattern, value in (_of(config, table) or {}).items():
            if re.match(rf'(.*\.)?({pattern})$', name):
                return value
        return default
    rank = look_up('rank_pattern', config['r'])
    alpha = look_up('alpha_pattern', config['lora_alpha'])
    want = {'lora_a', 'lora_b'} | ({'magnitude'} if _of(config, 'use_dora') else set())
    if set(leaves) != want:
        raise InputError(f'{folder}: {name} has {", ".join(sorted(leaves))}, expected '
                         f'{", ".join(sorted(want))} with use_dora={_of(config, "use_dora")}; '
                         'the file is not whole')
    if len(leaves['lora_a']) != rank:
        raise InputError(f'{folder}: {name} has rank {len(leaves["lora_a"])}, {CONFIG} says '
                         f'{rank}; the two files do not belong together')
    return alpha / (math.sqrt(rank) if _of(config, 'use_rslora') else rank)


# What PEFT's LoraConfig may ask for beyond what we hold: names and the values that ask for nothing.
_PLAIN = {
    'bias': ('none',), 'lora_bias': (False,), 'layers_to_transform': (None, []),
    'layer_replication': (None,), 'megatron_config': (None,), 'target_parameters': (None, []),
    'trainable_token_indices': (None,), 'use_qalora': (False,), 'alora_invocation_tokens': (None,),
    'arrow_config': (None,), 'kasa_config': (None,), 'monteclora_config': (None,),
    'velora_config': (None,), 'use_bdlora': (None, False),
    'init_lora_weights': (True, False, 'gaussian'),  # others change the base as well
}
_OPTIONAL = {'use_rslora': False, 'use_dora': False, 'rank_pattern': None, 'alpha_pattern': None,
             'ensure_weight_tying': False}


def _of(config, name):
    """A setting that older versions of PEFT do not write."""
    return config[name] if name in config else _OPTIONAL[name]


def _read_config(folder):
    path = folder / CONFIG
    if not path.exists():
        raise InputError(f'{folder} has no {CONFIG}; expected a folder that PEFT has saved')
    try:
        config = json.loads(path.read_text())
        kind, rank, alpha = config['peft_type'], config['r'], config['lora_alpha']
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f'{path} is no configuration of an adapter ({error!r}); expected JSON '
                         'with peft_type, r and lora_alpha') from error
    if kind != 'LORA':
        raise InputError(f'{path}: peft_type={kind!r} cannot be loaded, only LORA')
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, (int, float)) and alpha > 0):
        raise InputError(f'{path}: r={rank!r} and lora_alpha={alpha!r} must be positive numbers')
    for name, allowed in _PLAIN.items():
        if name in config and config[name] not in allowed:
            raise InputError(f'{path}: {name}={config[name]!r} cannot be held here, only '
                             f'{allowed[0]!r}; merge the adapter with PEFT instead')
    return config


def _read_tensors(folder):
    path = folder / WEIGHTS
    if not path.exists():
        raise InputError(f'{folder} has no {WEIGHTS}; save the adapter with PEFT as safetensors '
                         '(pickled .bin files are never loaded)')
    from safetensors import SafetensorError
    from safetensors.flax import load_file
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f'{path} is broken ({error}); copy it again') from error
    return {name: np.asarray(x, np.float32) for name, x in tensors.items()}
