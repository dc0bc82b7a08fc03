"""Turning single tensors of theirs into ours and back; weights to take tensors from."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxllm.models.transformer import PARAM_AXES, num_inputs


def num_inputs_of(entry):
    """How many leading axes of the kernels of an Entry are inputs; 1 for what is no kernel."""
    name = f'{entry.leaves[0][-2]}/kernel'
    return num_inputs(PARAM_AXES[name]) if name in PARAM_AXES else 1


@dataclasses.dataclass(frozen=True)
class TreeWeights:
    """A parameter tree as a source of single tensors."""
    params: Any

    def get(self, path, layer):
        """The float32 tensor of one leaf, of one layer where leaves are stacked."""
        leaf = self.params
        for name in path:
            leaf = leaf[name]
        return np.asarray(leaf if layer is None else leaf[layer], np.float32)

    def shape(self, path, layer):
        leaf = self.params
        for name in path:
            leaf = leaf[name]
        return leaf.shape[layer is not None:]


def from_theirs(tensor, entry, shapes):
    """Our tensors of a tensor of theirs.

    Args:
      tensor: theirs. shapes: of each of entry.leaves.
    """
    if len(shapes) == 1:
        return [(tensor.T if entry.transposed else tensor).reshape(shapes[0])]
    axis = 0 if entry.transposed or tensor.ndim == 1 else 1
    parts = np.split(tensor, len(shapes), axis=axis)
    return [(part.T if entry.transposed else part).reshape(shape)
            for part, shape in zip(parts, shapes, strict=True)]


def to_theirs(tensors, entry, num_inputs):
    """The tensor of theirs that holds ours side by side.

    Args:
      tensors: of entry.leaves. num_inputs: leading axes of a kernel that are inputs.
    """
    if entry.leaves[0][-1] != 'kernel' or entry.leaves[0][0] == 'head':
        flat = [x if x.ndim == 1 or entry.leaves[0][0] in ('embed', 'head') else x.reshape(-1)
                for x in tensors]
        return flat[0] if len(flat) == 1 else np.concatenate(flat)
    matrices = [x.reshape(int(np.prod(x.shape[:num_inputs])), -1) for x in tensors]
    whole = matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)
    return np.ascontiguousarray(whole.T) if entry.transposed else whole


def their_shape(shapes, entry, num_inputs):
    """Shape of to_theirs of tensors of these shapes, without making it."""
    if entry.leaves[0][-1] != 'kernel' or entry.leaves[0][0] == 'head':
        if entry.leaves[0][0] in ('embed', 'head'):
            return tuple(shapes[0])
        return (sum(int(np.prod(shape)) for shape in shapes),)
    into = int(np.prod(shapes[0][:num_inputs]))
    out = sum(int(np.prod(shape[num_inputs:])) for shape in shapes)
    return (out, into) if entry.transposed else (into, out)


def fill_tree(like, take):
    """The tree `like`, leaf by leaf: each is put together on the host, then placed.

    Args:
      like: nested dict of ShapeDtypeStructs with shardings.
      take: take(path, layer) -> our tensor; layer is None for leaves that are not stacked.
    """
    def fill(path, leaf):
        names = tuple(entry.key for entry in path)
        if names[0] != 'layers':
            whole = take(names, None).astype(leaf.dtype)
        else:
            whole = np.empty(leaf.shape, leaf.dtype)
            for layer in range(leaf.shape[0]):
                whole[layer] = take(names, layer)
        return jax.device_put(whole, leaf.sharding)
    return jax.tree_util.tree_map_with_path(fill, like)
