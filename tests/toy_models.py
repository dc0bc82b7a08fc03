"""Tiny models of every family, with parameters from numpy: initialising them compiles nothing."""

import jax
import ml_collections
import numpy as np

from jaxllm.models import families, transformer
from jaxllm.models.config import model_config

# Every axis has another size.
SIZES = {'vocab_size': 41, 'd_model': 16, 'num_layers': 3, 'd_ff': 20, 'max_seq_len': 32,
         'attention.num_heads': 4, 'attention.num_kv_heads': 2, 'attention.head_dim': 6,
         'attention.window': 5, 'attention.impl': 'xla', 'attention.chunk_size': 8}


def config(family, **changes):
    """ModelConfig of a family in SIZES; `changes` has '__' for '.': attention__window=3."""
    section = ml_collections.ConfigDict(families.FAMILIES[family]('tiny'))
    changes = SIZES | {name.replace('__', '.'): value for name, value in changes.items()}
    section.update_from_flattened_dict(changes)
    return model_config(section.to_dict())


def shapes(cfg):
    """Parameter shapes; needs a mesh."""
    return jax.eval_shape(lambda: transformer.init(jax.random.key(0), cfg))


def params(cfg, seed=0):
    """Random numpy parameters: matrices of the usual size, norms and biases that matter."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape)
        if name == 'scale':
            noise = 0.2 * noise + (0 if cfg.norm_unit_offset else 1)
        elif name == 'bias':
            noise = 0.2 * noise
        else:
            noise = noise / 4
        return noise.astype(np.float32)
    return jax.tree_util.tree_map_with_path(fill, shapes(cfg))


def tokens(cfg, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, cfg.vocab_size, shape, dtype=np.int32)
