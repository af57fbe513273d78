"""From one trained network to the next: inflation, folding of batch norm, other classes, frozen parts.

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

    Kernels are inflated where the model's look along time; batch norms are folded if it has affine layers instead.
    Non-local blocks that the state does not have stay as they are, and so does the classifier if the state has none
    or one for other classes.

    Returns
    -------
    list of str
        Names of what stays as it is.

    Raises
    ------
    ValueError
        Listing everything else that is missing or does not fit; nothing is changed then.
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
    """The state of a 2D network as that of one with the same names and kernels that look along time.

    .. math:: w^{3D}_{k} = w^{2D} / t, \\qquad k = 0 \\ldots t - 1

    A kernel of shape (1, kH, kW, C, K), or (kH, kW, C, K) of an image network, is repeated t times and divided by t, if
    the target's array of that name has t taps. On a video that stands still the network then computes what it did on a
    frame, except near both ends of the clip, where the zeros of the padding lack their share.

    Parameters
    ----------
    state, target : dict of name -> array
        Of the target only shapes are read. Names that it does not have, and other arrays, pass as they are.
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

    Such a network has non-local blocks without norm, so theirs is folded into W_z: its weight times scale, its bias
    times scale plus shift.

    Raises ValueError for a batch norm that is not whole.
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


def freeze(model: nn.Module, *parts: str) -> None:
    """Parts of a model, named by their paths, learn no more, batch norms in them included: see :func:`freeze_norms`."""
    modules = dict(model.named_modules())
    for part in parts:
        if part not in modules:
            raise ValueError(
                f"freeze: {type(model).__name__} has no part {part!r}; there are {', '.join(model._modules)}"
            )
    for part in parts:
        freeze_norms(modules[part])
        for p in modules[part].parameters():
            p.requires_grad = False


def freeze_norms(model: nn.Module) -> None:
    """All batch norms normalise with their running statistics from now on, in every mode, and learn nothing.

    Raises ValueError for one whose gamma is all 0, as it starts in non-local blocks and at the end of residual ones: it
    would keep what it ends at 0 for good.
    """
    norms = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.BatchNorm3d)]
    for path, norm in norms:
        if not backend.to_host(norm.weight.data).any():
            raise ValueError(
                f"freeze_norms: gamma of {path or 'the norm'} is 0 and would stay so, and with it all that it ends; "
                'load trained weights first, or build with norm="affine", whose new non-local blocks have no norm'
            )
    for _, norm in norms:
        norm.frozen = True
        norm.weight.requires_grad = norm.bias.requires_grad = False
