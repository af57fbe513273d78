"""Cases beside those of tests/cases.py that are large enough for a CUDA kernel to take several blocks of everything."""

from minnl import functional as F
from minnl.study.cases.case import beside, case, normal
from minnl.study.cases.non_local import concat
from minnl.study.cases.normalisation import batch_norm, dropout, frozen_batch_norm
from minnl.study.cases.windows import conv

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


LINES = (2, 3, 6, 9, CHANNELS)  # of more numbers than a block has threads
WINDOW = {"kernel_size": 3, "stride": (1, 2, 2), "padding": 1}
CLASSES = [i % 7 for i in range(300)], [i % 5 / 4 for i in range(CHANNELS)]  # labels, and weights
LONG = (3, 1100)  # a line of it takes a block
# Of 2,100,000 pairs the weights are not kept, and a row of 1,500 takes a block; 920 places are a line of several tiles.
PAIRS = [(1, 1, 1, n, 2) for n in (1400, 1500, 1500)]
LINE = (2, 1, 1, 500, 3), (2, 1, 1, 420, 3), (2, 1, 1, 420, CHANNELS), (6,)

LARGE = {
    c.name: c
    for c in (
        case("batch_norm/large", beyond_a_block, batch_norm, training=True, **RUNNING),
        case("batch_norm/large-relu", beyond_a_block, batch_norm, training=True, relu=True, smooth=False),
        case("batch_norm/large-learnt", beyond_a_block, learnt),
        conv("large", (2, 3, 9, 11, 40), (3, 3, 3, 40, 12), padding=1),
        conv("large-stem", (1, 4, 19, 23, 3), (3, 5, 7, 3, 40), stride=(1, 2, 2), padding=(1, 2, 3)),
        conv("large-groups", (1, 3, 9, 11, 48), (2, 3, 3, 24, 36), groups=2, stride=(2, 1, 3)),
        conv("large-depthwise", (2, 5, 17, 11, 40), (3, 3, 3, 1, 80), groups=40, padding=1, dilation=(1, 2, 1)),
        conv("large-direct", (1, 5, 17, 11, 12), (1, 2, 6, 4, 36), groups=3, stride=(1, 2, 1), padding=(0, 1, 2)),
        case("affine/large", normal(ROWS, CHANNELS, CHANNELS), F.affine),
        case("dropout/large-channels", normal(ROWS), dropout, p=0.4, channels=True),
        case("frozen_batch_norm/large-relu", beyond_a_block, frozen_batch_norm, relu=True, smooth=False, **RUNNING),
        case("max_pool3d/large", normal(LINES), smooth=False, **WINDOW),
        case("avg_pool3d/large", normal(LINES), **WINDOW),
        case("adaptive_max_pool3d/large", normal(LINES), smooth=False, output_size=(2, 2, 8)),
        case("adaptive_avg_pool3d/large", normal(LINES), output_size=(2, 2, 8)),
        case("softmax/large", normal((300, CHANNELS))),
        case("softmax/large-first-axis", normal((50, CHANNELS)), axis=0),
        case("softmax/large-line", normal(LONG)),
        case("log_softmax/large-first-axis", normal((50, CHANNELS)), axis=0),
        case("log_softmax/large-line", normal(LONG)),
        case("cross_entropy/large", normal((300, CHANNELS)), labels=CLASSES[0], weight=CLASSES[1]),
        case("cross_entropy/large-line", normal(LONG), labels=[7, 1099, 0], label_smoothing=0.1),
        case("non_local/large", normal(*PAIRS), scale=0.5),
        case("non_local/concat-large", normal(*LINE), concat, smooth=False),
    )
}
