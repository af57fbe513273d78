"""The state of a run in one checkpoint: a run that is resumed from it has the same bits as one that never stopped.

Randomness in a run has two sources, and the checkpoint holds both: the rng state of minnl.random (dropout), and the
loader's seed, epoch and batch (order, crops, mirroring). The rest are arrays, step and learning rate.
"""

from __future__ import annotations

from minnl import backend, random
from minnl.training import checkpoint, schema
from minnl.training.run_checks import diverged, not_finite


def save(path, model, optimizer, loader, progress):
    """Write a run's state to `path`; `progress` is a dict of "config", "step", "epoch", "best" and "sums".

    Raises FloatingPointError if a number in an array is not finite, and leaves the file as it was.
    """
    values = optimizer.state_dict()
    slots = {k: v for k, v in values.items() if backend.is_array(v)}
    meta = progress | {
        "optimizer": {k: v for k, v in values.items() if k not in slots},
        "loader": loader.state_dict(),
        "random": random.get_state(),
        "versions": checkpoint.versions(),
    }
    arrays = {f"model/{k}": v for k, v in model.state_dict().items()}
    arrays |= {f"optimizer/{k}": v for k, v in slots.items()}
    arrays = {k: backend.to_host(v) for k, v in arrays.items()}
    bad = not_finite(arrays)
    if bad:
        raise diverged(f"{bad} holds NaN or infinities after step {progress['step']}")
    checkpoint.save(path, arrays, meta)


def load(path, model, optimizer, loader):
    """Put the state at `path` back into model, optimiser, loader and generator; returns the values beside the arrays.

    Raises ValueError for a checkpoint that cannot be trusted, does not fit, or holds NaN.
    """
    arrays, meta = checkpoint.load(path)
    schema.check(f"{path}: meta", meta, schema.RUN)
    bad = not_finite(arrays)
    if bad:
        raise ValueError(f"resume: {path}: {bad} holds NaN or infinities; go on from another checkpoint")
    model.load_state_dict(checkpoint.under(arrays, "model/"))
    optimizer.load_state_dict(checkpoint.under(arrays, "optimizer/") | meta["optimizer"])
    loader.load_state_dict(meta["loader"])
    random.set_state(meta["random"])
    return meta
