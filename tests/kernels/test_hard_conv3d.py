"""Convolution on hard inputs, every method by itself: errors of either body beside PyTorch's in float32.

What docs/kernels/winograd.md says of tiles is held here: `WINOGRAD` are its bounds.
"""

import contextlib
import functools
import importlib.util

import numpy as np
import pytest

from minnl import functional as F
from minnl.kernels.conv3d import cpu as conv
from minnl.kernels.conv3d import uneven
from tests import ROOT
from tests.fast import as_before, same_bits  # noqa: F401 (as_before is a fixture)
from tests.hard_inputs import EPS, FACTOR, KINDS, NORMAL, Subject, Trial, check, hard, magnitudes, outcome, pairs, plain
from tests.kernels.test_conv3d import METHODS, by

if importlib.util.find_spec("torch"):
    from torch.nn import functional as TF

WINOGRAD = {2: 6, 3: 32, 4: 64, 5: 256}  # times EPS, the norm of the window and that of the filter


def terms(fn):
    """As `magnitudes`, for sums of n terms in any order: n roundings of the sum so far go to and fro.

    And for each product the smallest normal number: below it a product is rounded as that is.
    """

    def units(inputs, gy, results):
        counts = magnitudes(fn)([np.ones_like(a) for a in inputs], np.ones_like(gy), results)
        sums = magnitudes(fn)(inputs, gy, results)
        return [a * np.maximum(1, np.sqrt(n) / 4) + NORMAL * n for a, n in zip(sums, counts, strict=True)]

    return units


def shapes(rng, method):
    """Of x and the weight, and the arguments: what the method can do."""
    if "winograd" in method:
        taps = int(rng.choice([1, 3]))
        kernel, arguments = (taps, 3, 3), {"padding": (taps // 2, *(int(n) for n in rng.integers(0, 3, 2)))}
    elif method == "points":
        kernel, arguments = (1, 1, 1), {"stride": tuple(int(n) for n in rng.integers(1, 3, 3))}
    else:
        kernel = tuple(int(n) for n in rng.integers(1, 4, 3))
        steps = tuple(int(n) for n in rng.integers(1, 4, 3))
        arguments = {
            "padding": tuple(int(n) for n in rng.integers(0, 3, 3)),
            "stride": (1, 1, 1),
            "dilation": (1, 1, 1),
        }
        arguments[str(rng.choice(["stride", "dilation"]))] = steps
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, arguments.get("dilation", (1, 1, 1)), strict=True)]
    sizes = [int(rng.integers(n, n + 7)) for n in spans]
    c, k = (int(2 ** rng.uniform(0, 4)) for _ in range(2))
    return (int(rng.integers(1, 4)), *sizes, c), (*kernel, c, k), arguments


def convolution(method):
    """x is hard, the weight sometimes."""

    def make(rng):
        of_x, of_weight, arguments = shapes(rng, method)
        inputs = [hard(rng, of_x), (hard if rng.random() < 0.2 else plain)(rng, of_weight), plain(rng, of_weight[-1:])]

        def fn(x, weight, bias):
            return F.conv3d(x, weight, bias, **arguments)

        def twin(x, weight, bias):
            return TF.conv3d(x.movedim(-1, 1), weight.permute(4, 3, 0, 1, 2), bias, **arguments).movedim(1, -1)

        if "winograd" not in method:
            return Trial(inputs, fn, twin, units=terms(fn))
        factor = WINOGRAD[METHODS[method][1]] / FACTOR

        def units(inputs, gy, results):
            x, weight, bias = inputs
            squares = [x**2, np.ones_like(weight), np.zeros_like(bias)]
            windows, of_gy, *_ = outcome(fn, squares, np.float64, "textbook", lambda shape: gy**2)
            _, _, of_weight, of_bias = terms(fn)(inputs, gy, results)
            filters, mirrored = ((weight**2).sum(axis=axis) for axis in ((0, 1, 2, 3), (0, 1, 2, 4)))
            return (
                factor * np.sqrt(windows * filters) + np.abs(bias) + NORMAL * weight[..., 0].size,
                factor * np.sqrt(of_gy * mirrored) + NORMAL * weight[..., 0, :].size,
                factor * of_weight.max(axis=(0, 1, 2), keepdims=True),
                of_bias,
            )

        return Trial(inputs, fn, twin, [(), (), (0, 1, 2), ()], units)

    return make


def subject(method):
    context = contextlib.nullcontext if method == "points" else functools.partial(by, method, 200)  # points are chosen
    return Subject(f"conv3d, {method}", convolution(method), context, ("fast",))


SUBJECTS = [subject(method) for method in ("points", *METHODS)]
SUBJECTS.append(Subject("conv3d", convolution("taps"), modes=("textbook",)))


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "mode"), pairs(SUBJECTS))
def test_errors_beside_pytorchs(subject, mode):
    check(subject, mode)


@pytest.mark.parametrize("m", WINOGRAD)
@pytest.mark.parametrize("pixel", [1e4, 1e14, 1e37, 1e-20, np.inf, -np.inf, np.nan])
def test_one_pixel_unlike_all_others(m, pixel):
    """Outputs that do not see it keep their digits; 9 see it, and are infinite where it is."""
    rng = np.random.default_rng(0)
    x = (0.01 * rng.normal(size=(1, 2, 11, 13, 16))).astype(np.float32)
    x[0, 1, 5, 6, 3] = pixel
    weight, gy = plain(rng, (1, 3, 3, 16, 8)), plain(rng, (1, 2, 11, 13, 8))
    y, gw, where = np.full_like(gy, 7), np.full_like(weight, 7), ((1, 1, 1), ((0, 0), (1, 1), (1, 1)), (1, 1, 1), m)

    def judge(x, weight, gy):
        fn = functools.partial(F.conv3d, padding=(0, 1, 1))
        right, _, of_weight = outcome(fn, [x, weight], np.float64, "textbook", lambda shape: gy)
        return right, of_weight

    with np.errstate(all="ignore"):
        conv.conv_winograd.correlate(x, weight, y, *where)
        conv.conv_winograd.weight_gradient(x, gy, gw, *where)
        right, of_weight = judge(x, weight, gy)
    x[~np.isfinite(x)] = 0
    squares, _ = judge(x.astype(np.float64) ** 2, np.ones_like(weight), gy)
    _, terms = judge(abs(x), weight, abs(gy))
    bounds = np.sqrt(squares * (weight**2).sum(axis=(0, 1, 2, 3))), terms.max(axis=(0, 1, 2), keepdims=True)
    for a, b, bound in zip((y, gw), (right, of_weight), bounds, strict=True):
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        bound = np.broadcast_to(WINOGRAD[m] * EPS * bound, b.shape)
        assert (abs(a[finite] - b[finite]) <= bound[finite]).all()
    assert (~np.isfinite(right)).any(axis=-1).sum() == (0 if np.isfinite(pixel) else 9)


def test_windows_of_zeros_give_zero():
    x = np.zeros((1, 2, 20, 20, 4), np.float32)
    x[0, 0, 10, 10] = 1
    weight, y = plain(np.random.default_rng(0), (3, 3, 3, 4, 5)), np.full((1, 2, 20, 20, 5), 7, np.float32)
    conv.conv_winograd.correlate(x, weight, y, (1, 1, 1), ((1, 1), (1, 1), (1, 1)), (1, 1, 1), conv.TILE)
    assert not y[:, :, :9].any() and not y[:, :, 12:].any()
    np.testing.assert_allclose(y[0, 0, 9:12, 9:12], weight[1].sum(axis=2)[::-1, ::-1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(y[0, 1, 9:12, 9:12], weight[0].sum(axis=2)[::-1, ::-1], rtol=0, atol=1e-5)


def test_the_windows_that_are_small_beside_their_tile():
    """One by one, with the norms of windows and tiles in a loop."""
    rng, m, frames, pads = np.random.default_rng(0), 4, 3, ((1, 1), (2, 0), (1, 2))
    x = hard(rng, (2, 3, 9, 11, 2), [h for h in KINDS if h.__name__ == "_rows"])
    out = 2, 3, 9, 12
    every, seen = uneven.small_windows(x, uneven.pixels(x), out, frames, pads, m)
    whole = np.pad(x.astype(float) ** 2, [(0, 0), (1, 1), (2, 9), (1, 9), (0, 0)]).sum(axis=-1)
    for n, t, h, w in np.ndindex(out):
        lost = False
        for frame in whole[n, t : t + frames]:
            top, left = h // m * m, w // m * m
            tile, window = frame[top : top + m + 2, left : left + m + 2].max(), frame[h : h + 3, w : w + 3].sum()
            lost |= tile > uneven.RATIO**2 * window
        assert lost == ((n, t, h, w) in set(zip(*every, strict=True)))
    assert len(every[0]) > 100 and len(every[0]) == len(seen[0])


@pytest.mark.parametrize("size", [1e-30, 1e30, np.inf])
def test_a_weight_out_of_range_is_left_to_taps(size):
    rng = np.random.default_rng(0)
    x, weight, found = plain(rng, (1, 1, 9, 9, 3)), plain(rng, (1, 3, 3, 3, 2)) * np.float32(size), []
    for by_taps in (True, False):
        y = np.full((1, 1, 9, 9, 2), 7, np.float32)
        how, more = ((1, 1, 1), ((0, 0), (1, 1), (1, 1)), (1, 1, 1)), () if by_taps else (conv.TILE,)
        with np.errstate(invalid="ignore"):
            (conv.conv_taps if by_taps else conv.conv_winograd).correlate(x, weight, y, *how, *more)
        found.append(y)
    np.testing.assert_array_equal(*found)


def test_the_bounds_of_the_docs():
    page = (ROOT / "docs/kernels/winograd.md").read_text()
    assert f"| bound | {' | '.join(map(str, WINOGRAD.values()))} |" in page


def test_the_bits_of_windows_taken_directly_do_not_depend_on_threads():
    """3,000 outputs and more beside large pixels, in products that BLAS would share out among its own threads."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(8, 1, 32, 32, 64)), rng.normal(size=(1, 3, 3, 64, 64))
    x[:, :, ::4, ::4] *= 1e3
    with by("winograd 4"):
        same_bits(lambda x, w: F.conv3d(x, w, padding=(0, 1, 1)), [x, w])
