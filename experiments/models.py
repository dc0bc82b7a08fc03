"""(moving to jaxllm/models/families.py: use that; this file goes away)"""
import ml_collections
from jaxllm.models import families as _f
from jaxllm.models.families import SIZES
def _w(f):
    def g(size='10m'):
        return ml_collections.ConfigDict(f(size))
    g.__name__ = f.__name__
    return g
FAMILIES = {n: _w(f) for n, f in _f.FAMILIES.items()}
globals().update(FAMILIES)
base = FAMILIES['llama']
def resize(model, size):
    (model.d_model, model.num_layers, model.d_ff, model.attention.num_heads,
     model.attention.num_kv_heads, model.attention.head_dim) = SIZES[size]
    return model
