"""Fast convolution over shapes that tests of small cubes never have, against the textbook body in float64.

One long axis with the others trivial, strides as long as the kernel, dilations, odd batches, maps up to 64, few and
many channels; by the method that is chosen and by every other that can do it, as one task and as many.
"""

import collections
import contextlib
import math
from unittest import mock

import numpy as np
import pytest

from minnl import Tensor
from minnl import functional as F
from minnl.kernels.conv3d import cpu as conv
from minnl.kernels.runtime import threads
from tests.fast import agree, arrays, as_before  # noqa: F401 (as_before is a fixture)
from tests.kernels.test_conv3d import WINDOWS, WINOGRAD, by

TRIALS, CHUNKS = 800, 16
MOST = 12_000_000  # multiply-adds of a trial
KERNELS = [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0), (0, 0, 0), (1, 3, 3), (0, 3, 3)]
CHANNELS = (1, 2, 3, 5, 16, 17, 32, 64, 130)


def shape(rng):
    """(of x, of the weight, arguments): a 0 in the kernel is a length of 2 to 5."""
    while True:
        kernel = tuple(k or int(rng.integers(2, 6)) for k in KERNELS[rng.integers(len(KERNELS))])
        steps = {"stride": (1, 1, 1), "dilation": (1, 1, 1)}
        kind = rng.choice(["plain", "as the kernel", "stride", "dilation"])
        if kind == "as the kernel":
            steps["stride"] = kernel
        elif kind != "plain":
            steps[str(kind)] = tuple(int(n) for n in rng.integers(1, 4, 3))
        padding = tuple(int(rng.choice([0, k // 2, rng.integers(0, k + 1)])) for k in kernel)
        sizes = [int(rng.integers(1, 5)) for _ in range(3)]
        long = rng.choice(["one", "map", "none"])
        if long == "map":
            sizes[1:] = (int(n) for n in rng.integers(4, 65, 2))
        elif long == "one":
            sizes[rng.integers(3)] = int(rng.integers(20, 65))
        spans = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, steps["dilation"], padding, strict=True)]
        sizes = [max(size, span) for size, span in zip(sizes, spans, strict=True)]
        n, c, k = int(rng.choice([1, 1, 2, 3, 5, 7])), int(rng.choice(CHANNELS)), int(rng.choice(CHANNELS))
        positions = math.prod((s - p) // step + 1 for s, p, step in zip(sizes, spans, steps["stride"], strict=True))
        if 3 * n * positions * math.prod(kernel) * c * k <= MOST and n * math.prod(sizes) * c <= 400_000:
            return (n, *sizes, c), (*kernel, c, k), {**steps, "padding": padding}


def methods(weight, arguments):
    """Names of tests/kernels/test_conv3d.py's methods that can do all passes of such a convolution."""
    plain = arguments["stride"] == arguments["dilation"] == (1, 1, 1)
    fits = all(p < k for p, k in zip(arguments["padding"], weight, strict=False))
    return [*WINDOWS, *(["winograd 4"] if plain and weight[1:3] == (3, 3) and fits else [])]


def trial(number):
    """Shapes, how the convolution is called, and the contexts in which it is right: one task or eight, and a method."""
    rng = np.random.default_rng(number)
    x, weight, arguments = shape(rng)
    many = mock.patch.object(threads, "tasks_for", lambda flops: 8)
    forced = by(str(rng.choice(methods(weight, arguments))), int(rng.choice([1, 500, 20_000])))
    return x, weight, arguments, [many if number % 2 else contextlib.nullcontext(), many, forced]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_shapes(chunk):
    for number in range(chunk, TRIALS, CHUNKS):
        x, weight, arguments, (tasks, many, forced) = trial(number)
        if max(arguments["stride"]) > 1 and max(arguments["dilation"]) > 1:
            continue  # the textbook body's
        inputs = arrays(x, weight, weight[-1:], seed=number)

        def fn(*tensors, arguments=arguments):
            return F.conv3d(*tensors, **arguments)

        for context in ((tasks,), (many, forced)):
            with contextlib.ExitStack() as stack:
                for each in context:
                    stack.enter_context(each)
                try:
                    agree(fn, inputs, WINOGRAD if weight[1:3] == (3, 3) else 1e-5)
                except AssertionError as error:
                    raise AssertionError(f"trial {number}: x {x}, weight {weight}, {arguments}: {error}") from None


def test_the_shapes_reach_every_method():
    """But for the weight's gradient by Winograd, which pays for more products only; test_shapes forces it."""
    seen = collections.Counter()

    def watched(*shapes, choose=conv.choose, gradient=False):
        seen[choose(*shapes, gradient=gradient)[0], gradient] += 1
        return choose(*shapes, gradient=gradient)

    with mock.patch.object(conv, "choose", watched):
        for number in range(300):
            x, weight, arguments, _ = trial(number)
            leaves = [Tensor(a.astype(np.float32), requires_grad=True) for a in arrays(x, weight)]
            F.sum(F.conv3d(*leaves, **arguments)).backward()
    for method in (conv.conv_points, conv.conv_taps, conv.conv_columns, conv.conv_winograd):
        assert seen[method, False] and (seen[method, True] or method is conv.conv_winograd), method


@pytest.mark.parametrize(
    ("x", "weight", "arguments"),
    [
        ((1, 2, 56, 56, 32), (2, 1, 1, 32, 32), {"stride": (2, 1, 1)}),
        ((1, 1, 56, 56, 32), (1, 3, 1, 32, 32), {"dilation": (1, 2, 1)}),
        ((1, 1, 64, 40, 16), (1, 4, 1, 16, 64), {"stride": (1, 4, 1)}),
        ((1, 2, 64, 40, 32), (2, 3, 1, 32, 32), {"stride": (1, 2, 1)}),
    ],
)
def test_a_sum_of_ones_is_the_number_of_terms(x, weight, arguments):
    """Outputs are cut by places, where windows have no lines in common."""
    leaves = [Tensor(np.ones(s, np.float32), requires_grad=True) for s in (x, weight)]
    y = F.conv3d(*leaves, **arguments)
    assert (y.data == math.prod(weight[:4])).all()
    F.sum(y).backward()
    assert leaves[0].grad.sum() == y.data.sum() and (leaves[1].grad == y.data[..., 0].size).all()
