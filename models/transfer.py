"""From one trained network to the next: inflation, folding of batch norm, other classes, frozen modules.

States are those of ``state_dict``: name -> array. Formulas and examples: docs/models.md.
"""

from __future__ import annotations

import numpy as np

from minnl import backend, nn
from minnl.backend import Array
from minnl.checks import clean

CLASSIFIER = "head.classify."


def start(model: nn.Module, state: dict[str, Array]) -> list[str]:
    """Load the state of a trained network into a model that goes on from there.

    Kernels are inflated where those of the model have taps along time. Batch norms are folded if the model has affine
    layers. Non-local blocks that the state lacks stay as they are, and so does the classifier if the state has none or
    one for other classes.

    Returns
    -------
    list of str
        Names of the arrays that stay as they are.

    Raises
    ------
    ValueError
        For anything else that is missing or does not fit; the message lists it, and nothing is changed.
    """
    mine = model.state_dict()
    state = inflate(state, mine)
    if not any(name.endswith(".running_mean") for name in mine):
        state = fold(state)
    fresh = [f"{path}." for path, m in model.named_modules() if isinstance(m, nn.NonLocalBlock)]
    fresh = [path for path in fresh if not any(name.startswith(path) for name in state)]
    classifier = {name for name in mine if name.startswith(CLASSIFIER)}
    if any(name not in state or state[name].shape != mine[name].shape for name in classifier):
        fresh.append(CLASSIFIER)
    kept = {name: array for name, array in mine.items() if name.startswith(tuple(fresh))}
    model.load_state_dict(state | kept)
    return list(kept)


def inflate(state: dict[str, Array], target: dict[str, Array]) -> dict[str, Array]:
    """The state of a 2D network as that of a network with the same names whose kernels have taps along time.

    .. math:: w^{3D}_{k} = w^{2D} / t, \\qquad k = 0 \\ldots t - 1

    A kernel of shape (1, kH, kW, C, K), or (kH, kW, C, K) of an image network, is repeated t times and divided by t, if
    the target's array of that name has t taps. On a clip of equal frames the network then computes what the 2D network
    computes on a frame, except near both ends of the clip, where the padding adds zeros.

    Parameters
    ----------
    state, target : dict of name -> array
        Only shapes of the target are read. Arrays whose names it lacks, and all others, pass unaltered.
    """
    inflated = {}
    for name, array in state.items():
        goal = target.get(name)
        if goal is not None and goal.ndim == 5 and array.ndim in (4, 5):
            array = array[None] if array.ndim == 4 else array
            taps = goal.shape[0]
            if array.shape[0] == 1 < taps:
                array = np.repeat(array, taps, axis=0) / taps
        inflated[name] = array
    return inflated


def fold(state: dict[str, Array], eps: float = 1e-5) -> dict[str, Array]:
    """A state with batch norms as that of the same network with affine layers (norm="affine").

    .. math:: \\mathrm{scale} = \\gamma / \\sqrt{v + \\epsilon}, \\qquad \\mathrm{shift} = \\beta - m\\,\\mathrm{scale}

    That network has non-local blocks without norm, so the norm of a block is folded into W_z: weight times scale, bias
    times scale plus shift.

    Raises ValueError for a batch norm that lacks an array.
    """
    folded = dict(state)
    for name in state:
        path, _, last = name.rpartition(".")
        if last != "running_mean":
            continue
        keys = [f"{path}.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
        wrong = [key for key in keys if key not in state or state[key].shape != state[name].shape]
        if wrong:
            raise ValueError(f"fold: the state has {clean(name)}, but no {clean(wrong[0])} of that shape")
        gamma, beta, mean, var = (folded.pop(key) for key in keys)
        scale = gamma / np.sqrt(var + eps)
        shift = beta - mean * scale
        block = path.removesuffix("norm") + "W_z."
        if f"{block}weight" in folded:
            folded[f"{block}weight"] = folded[f"{block}weight"] * scale
            folded[f"{block}bias"] = folded[f"{block}bias"] * scale + shift
        else:
            folded |= {f"{path}.weight": scale, f"{path}.bias": shift}
    return folded


def freeze(model: nn.Module, *paths: str) -> None:
    """Stop learning in modules of a model, named by their paths, batch norms included: see :func:`freeze_norms`."""
    modules = dict(model.named_modules())
    for path in paths:
        if path not in modules:
            raise ValueError(
                f"freeze: {type(model).__name__} has no module {path!r}; there are {', '.join(model._modules)}"
            )
    for path in paths:
        freeze_norms(modules[path])
        for p in modules[path].parameters():
            p.requires_grad = False


def freeze_norms(model: nn.Module) -> None:
    """Have all batch norms normalise with their running statistics from now on, in every mode, and learn nothing.

    Raises ValueError for a norm whose gamma is all 0, as it starts in non-local blocks and at the end of residual
    branches: the output of that block or branch would stay 0.
    """
    norms = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.BatchNorm3d)]
    for path, norm in norms:
        if not backend.to_host(norm.weight.data).any():
            raise ValueError(
                f"freeze_norms: gamma of {path or 'the norm'} is 0 and would stay so, with the output of its block; "
                'load trained weights first, or build with norm="affine", whose new non-local blocks have no norm'
            )
    for _, norm in norms:
        norm.frozen = True
        norm.weight.requires_grad = norm.bias.requires_grad = False
