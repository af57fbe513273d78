"""What optimisers and clipping are handed: parameters and groups of them. Refused is what would go wrong in silence."""

from minnl import backend
from minnl.engine import Tensor


def tensors(where, params):
    """Tensors that were handed over, in a list: one alone, or several in order, each once."""
    params = [params] if isinstance(params, Tensor) else _listed(where, params)
    seen = set()
    for i, p in enumerate(params):
        if not isinstance(p, Tensor):
            raise TypeError(f"{where}: params must be leaf tensors, params[{i}] is {type(p).__name__}")
        if id(p) in seen:
            raise ValueError(f"{where}: a parameter of shape {p.shape} is listed twice")
        seen.add(id(p))
    return params


def groups(where, params):
    """What an optimiser was handed, as groups: dicts with leaves in "params", a tuple, since nothing may be added."""
    params = [params] if isinstance(params, Tensor) else _listed(where, params)
    found = params if any(isinstance(group, dict) for group in params) else [{"params": params}]
    for i, group in enumerate(found):
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(f'{where}: group {i} must be a dict with "params", got {group!r:.80}')
    found = [group | {"params": tuple(tensors(where, group["params"]))} for group in found]
    leaves = tensors(where, [p for group in found for p in group["params"]])
    if not leaves:
        raise ValueError(f"{where}: no parameters to optimise")
    for i, p in enumerate(leaves):
        if not p.is_leaf:
            raise TypeError(f"{where}: params must be leaf tensors, params[{i}] of shape {p.shape} was computed")
        if type(p) is Tensor and not p.requires_grad:
            raise ValueError(f"{where}: params[{i}] of shape {p.shape} has no requires_grad=True, so it never learns")
    return found


def _listed(where, params):
    if hasattr(params, "parameters"):
        raise TypeError(f"{where}: params is {type(params).__name__}, a module; pass its .parameters()")
    if isinstance(params, (dict, set, str)) or not hasattr(params, "__iter__"):  # a set has no order
        raise TypeError(f"{where}: params is {type(params).__name__}, a list of Tensors expected")
    return list(params)


def overlap(arrays):
    """The places of two arrays that share memory, or None."""
    if all(a.base is None for a in arrays) and len({id(a) for a in arrays}) == len(arrays):
        return None  # each owns its memory
    spans = sorted((*_span(a), i) for i, a in enumerate(arrays) if a.size)
    for k, (_, end, i) in enumerate(spans):
        for start, _, j in spans[k + 1 :]:
            if start >= end:
                break
            if backend.namespace("overlap", arrays[i], arrays[j]).shares_memory(arrays[i], arrays[j]):
                return min(i, j), max(i, j)
    return None


def _span(array):
    """Where the memory of an array begins and ends."""
    start = array.data.ptr if backend.is_gpu_array(array) else array.ctypes.data
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    return start + sum(min(r, 0) for r in reach), start + sum(max(r, 0) for r in reach) + array.itemsize
