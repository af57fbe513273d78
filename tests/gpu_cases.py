"""Cases beside those of tests/cases.py that are large enough for a CUDA kernel to take several blocks of everything."""

from minnl import functional as F
from minnl.study.cases.case import beside, case, normal
from minnl.study.cases.normalisation import batch_norm, frozen_batch_norm

CHANNELS = 40  # more than a warp, and no multiple of one
ROWS = (3, 7, 61, CHANNELS)  # several slices of rows, the last one short
PER_CHANNEL = [i % 7 / 7 for i in range(CHANNELS)], [0.5 + i % 5 for i in range(CHANNELS)]
RUNNING = dict(zip(("mean", "var"), PER_CHANNEL, strict=True))


def beyond_a_block(rng):
    """Channels with different means, and slices of rows with different means and spreads."""
    x, weight, bias, residual = normal(ROWS, CHANNELS, CHANNELS, ROWS)(rng)
    x *= rng.uniform(0.5, 2, size=(3, 7, 1, 1))
    x += rng.uniform(-3, 3, size=(3, 7, 1, CHANNELS))
    return x, weight, bias, residual


def learnt(x, *others):
    """Batch norm with the running statistics that a pass in training has left."""
    running = [beside(x, values) for values in PER_CHANNEL]
    F.batch_norm(x, *running, training=True)
    return F.batch_norm(x, *running, *others[:2], residual=others[2])


LARGE = {
    c.name: c
    for c in (
        case("batch_norm/large", beyond_a_block, batch_norm, training=True, **RUNNING),
        case("batch_norm/large-relu", beyond_a_block, batch_norm, training=True, relu=True, smooth=False),
        case("batch_norm/large-learnt", beyond_a_block, learnt),
        case("frozen_batch_norm/large-relu", beyond_a_block, frozen_batch_norm, relu=True, smooth=False, **RUNNING),
    )
}
