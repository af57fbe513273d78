"""What a run is refused for before it costs anything, and numbers that end it."""

from __future__ import annotations

import numpy as np

from minnl.study import cost_summary

ADVICE = "the last checkpoint is untouched. Try a lower --lr, or --debug to see which layer it started in"


def check_clips(model, train, test):
    """Refuse, from shapes alone, what would end a run after its first steps.

    Parameters
    ----------
    model : nn.Module
    train, test : data.Loader

    Raises
    ------
    ValueError
        If the test set has other classes than the training set, or clips that the model refuses; or if the last
        batch of an epoch is too small: batch norm cannot normalise a single clip whose maps have one value.
    """
    classes, others = (getattr(loader.dataset, "classes", None) for loader in (train, test))
    if None not in (classes, others) and list(classes) != list(others):
        raise ValueError(f"Trainer: training has the classes {list(classes)}, the test set has {list(others)}")
    count, last = len(train.dataset), 0 if train.drop_last else len(train.dataset) % train.batch_size
    alone, other = last == 1 < count, test.dataset.shape != train.dataset.shape
    # If neither holds there is nothing to check. If training's own batches are refused, the first step says why.
    if not (alone or other) or _refused(model, min(train.batch_size, count), train):
        return
    error = alone and _refused(model, 1, train)
    if error:
        raise ValueError(
            f"Trainer: the last batch of an epoch is a single one of {count} clips: {error}. Leave it out "
            "(--drop-last, or drop_last=True of the Loader), or choose another batch size"
        )
    error = other and _refused(model, 2, test)
    if error:
        raise ValueError(
            f"Trainer: clips of the test set have the shape {test.dataset.shape} and do not go through the model, "
            f"those of training have {train.dataset.shape}: {error}"
        )


def _refused(model, clips, loader):
    """The error with which a model refuses a batch of so many clips, if it does."""
    try:
        cost_summary.summarize(model, (clips, *loader.dataset.shape))
    except Exception as error:
        return error
    return None


def not_finite(arrays):
    """The name of the first of the arrays (NumPy, by name) that holds a NaN or an infinity; None if there is none."""
    return next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)


def diverged(what):
    """The error that ends a run whose numbers are no longer finite."""
    return FloatingPointError(f"{what}; {ADVICE}")
