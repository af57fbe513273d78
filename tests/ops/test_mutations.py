"""The check is checked: every backward is broken on purpose, and the error curve has to notice each time.

Two ways to break one. In general: whatever an op's backward returns is spoilt on its way out, for every case, op and
input. In particular: one expression of a backward is replaced by a plausible mistake (MISTAKES), and some case of the
table must give it away.
"""

import inspect
import textwrap

import numpy as np
import pytest

import minnl
from minnl import engine, sums
from minnl.ops import (
    adaptive_pool,
    arithmetic,
    conv,
    dropout,
    linear,
    loss,
    non_local,
    norm,
    pointwise,
    pool,
    reduce,
    shape,
    softmax,
)
from tests.cases import CASES
from tests.ops.test_gradients import ON_A_KINK

# one a line: the op, its method, what stands there, what stands there by mistake
MISTAKES = [
    (arithmetic.Add, "backward", "lambda: gy, lambda: gy", "lambda: gy, lambda: -gy"),
    (arithmetic.Sub, "backward", "lambda: -gy", "lambda: gy"),
    (arithmetic.Mul, "backward", "gy * self.b", "gy * self.a"),
    (arithmetic.Div, "backward", "/ (self.b * self.b)", "/ self.b"),
    (arithmetic.Pow, "backward", "gy * b * a**exponent", "gy * a**exponent"),
    (arithmetic.Pow, "backward", "gy * a**b * xp.log", "gy * a**b / xp.log"),
    (arithmetic.Maximum, "backward", "self.wins(self.b, self.a)", "self.wins(self.a, self.b)"),
    (arithmetic.Minimum, "backward", "self.wins(self.b, self.a)", "self.wins(self.a, self.b)"),
    (arithmetic.Where, "backward", "xp.where(self.condition, zero, gy)", "xp.where(self.condition, gy, zero)"),
    (pointwise.Neg, "backward", "-gy", "gy"),
    (pointwise.Exp, "backward", "gy * self.y", "gy"),
    (pointwise.Log, "backward", "gy / self.x", "gy * self.x"),
    (pointwise.Sqrt, "backward", "2 * self.y", "self.y"),
    (pointwise.Tanh, "backward", "1 - self.y * self.y", "1 - self.y"),
    (pointwise.Sigmoid, "backward", "1 - self.y", "1 + self.y"),
    (pointwise.ReLU, "backward", "self.y != 0", "self.y >= 0"),
    (pointwise.Abs, "backward", "self.xp.sign(self.x)", "self.x"),
    (pointwise.Clip, "backward", ">= self.low", "<= self.low"),
    (pointwise.Clip, "backward", "<= self.high", ">= self.high"),
    (reduce.Sum, "backward", "self.stretch(gy)", "self.stretch(gy / self.count)"),
    (reduce.Mean, "backward", "gy / self.count", "gy"),
    (reduce.Var, "backward", "self.centred(self.x)", "self.x"),
    (reduce.Var, "backward", "(self.count - self.correction)", "self.count"),
    (reduce.Max, "backward", "hit = self.argmax[..., None]", "hit = self.argmax[..., None] // 2"),
    (reduce.Max, "backward", "transpose(back)", "transpose(order)"),
    (reduce.Min, "backward", "hit = self.argmax[..., None]", "hit = self.argmax[..., None] // 2"),
    (shape.Reshape, "backward", "gy.reshape", "gy.T.reshape"),
    (shape.Transpose, "backward", "sorted(range(len(self.axes)), key=self.axes.__getitem__)", "self.axes"),
    (shape.BroadcastTo, "backward", "sum_to(gy, self.shape)", "sum_to(gy / gy.size, self.shape)"),
    (shape.Concatenate, "backward", "axis=self.axis)", "axis=self.axis)[::-1]"),
    (shape.Stack, "backward", "self.xp.moveaxis(gy, self.axis, 0)", "self.xp.moveaxis(gy, self.axis, 0)[::-1]"),
    (shape.Pad, "backward", "gy[self.inside]", "self.xp.roll(gy, 1)[self.inside]"),
    (shape.Flip, "backward", "self.xp.flip(gy, self.axis)", "gy"),
    (shape.Index, "backward", "self.xp.add.at(gx, self.index, gy)", "gx[self.index] = gy"),
    (linear.MatMul, "backward", "gy @ self.b.swapaxes(-1, -2)", "gy @ self.b"),
    (linear.MatMul, "backward", "self.a.swapaxes(-1, -2) @ gy", "self.a @ gy"),
    (linear.Linear, "backward", "self.weight.T", "self.weight"),
    (linear.Linear, "backward", "product(rows, grows)", "product(rows[1:], grows[1:])"),
    (linear.Linear, "backward", "total(grows, 0)", "total(grows[1:], 0)"),
    (conv.Conv3d, "input_gradient", "windows.taps(weight.shape[:3])", "list(windows.taps(weight.shape[:3]))[1:]"),
    (conv.Conv3d, "input_gradient", "weight[tap][:, k].T", "weight[tap][:, k]"),
    (conv.Conv3d, "input_gradient", "rows(gy[..., k])", "rows(gy[..., ::-1][..., k])"),
    (conv.Conv3d, "input_gradient", "windows.inner(gxp,", "windows.inner(gxp[:, ::-1],"),
    (conv.Conv3d, "weight_gradient", "= rows(window", "= any(tap) * rows(window"),
    (conv.Conv3d, "weight_gradient", "self.tap_view(xp, tap, gy)", "self.tap_view(xp[:, :, ::-1], tap, gy)"),
    (conv.Conv3d, "backward", "total(rows(gy), 0)", "total(rows(gy)[1:], 0)"),
    (pool.MaxPool3d, "backward", "self.argmax == tap", "self.argmax == tap - 1"),
    (pool.MaxPool3d, "backward", "window += chosen", "window[...] = chosen"),
    (pool.MaxPool3d, "backward", "self.views(big, gy.shape[1:4])", "list(self.views(big, gy.shape[1:4]))[:-1]"),
    (pool.AvgPool3d, "backward", "window += share", "window[...] = share"),
    (pool.AvgPool3d, "backward", "self.views(big, gy.shape[1:4])", "list(self.views(big, gy.shape[1:4]))[:-1]"),
    (pool.AvgPool3d, "backward", "self.divisor(gy.shape[1:4], gy.dtype)", "math.prod(self.kernel)"),
    (adaptive_pool.AdaptiveAvgPool3d, "backward", "gx[region] +=", "gx[region] ="),
    (adaptive_pool.AdaptiveAvgPool3d, "backward", "math.prod(gx[region].shape[1:4])", "8"),
    (adaptive_pool.AdaptiveMaxPool3d, "backward", "cell +=", "cell[...] ="),
    (adaptive_pool.AdaptiveMaxPool3d, "backward", "== place", "== place[::-1]"),
    (norm.BatchNorm, "backward", "gy - gbias / n", "gy.copy()"),  # without the mean's term
    (norm.BatchNorm, "backward", "gx -= normed", "pass"),  # without the variance's
    (norm.BatchNorm, "backward", "normed *= gweight / n", "normed *= gweight / (n - 1)"),
    (norm.BatchNorm, "backward", "gx *= self.weight * self.rstd", "gx *= self.rstd"),
    (norm.BatchNorm, "backward", "self.sums(gy * normed)", "self.sums(gy * self.x)"),
    (norm.BatchNorm, "backward", "gy = chosen(gy, self.y != 0)", "pass"),
    (norm.BatchNorm, "backward", "gbias, gy)", "gbias, -gy)"),
    (norm.FrozenBatchNorm, "backward", "(self.x - self.mean)", "self.x"),
    (norm.FrozenBatchNorm, "backward", "gy * (self.weight * self.rstd)", "gy * self.weight"),
    (norm.FrozenBatchNorm, "backward", "gy = chosen(gy, self.y != 0)", "pass"),
    (norm.FrozenBatchNorm, "backward", "None, gy)", "None, gx)"),
    (norm.Affine, "backward", "gy * self.scale", "gy"),
    (norm.Affine, "backward", "self.sums(gy * self.x)", "self.sums(gy)"),
    (softmax.Softmax, "backward", "(gy - total(gy * self.y, self.axis, keepdims=True))", "gy"),
    (softmax.Softmax, "backward", "total(gy * self.y", "total(gy"),
    (softmax.LogSoftmax, "backward", "self.xp.exp(self.y) * ", ""),
    (loss.CrossEntropy, "backward", " * total(q, -1, keepdims=True)", ""),
    (loss.CrossEntropy, "backward", "gy / self.divisor", "gy / len(q)"),
    (loss.CrossEntropy, "backward", "- q\n", "- (q > 0)\n"),
    (loss.BinaryCrossEntropyWithLogits, "backward", "no * sigmoid_of(self.xp, self.x)", "no"),
    (loss.BinaryCrossEntropyWithLogits, "backward", "self.shares()", "(self.target, 1 - self.target)"),
    (loss.BinaryCrossEntropyWithLogits, "backward", "gx / self.x.size", "gx"),
    (dropout.Dropout, "backward", "self.masked(gy)", "gy * self.stays"),
    (non_local.NonLocalSoftmax, "backward", "gs *= self.scale", "pass"),
    (non_local.NonLocalSoftmax, "backward", "gs -= (gs * p).sum", "gs -= gs.sum"),
    (non_local.NonLocalSoftmax, "backward", "s -= self.log_sum[b, i, 1:]", "pass"),
    (non_local.NonLocalSoftmax, "backward", "gphi[b] +=", "gphi[b] ="),
    (non_local.NonLocalSoftmax, "backward", "gg[b] +=", "gg[b] ="),
    (non_local.NonLocalSoftmax, "backward", "gs @ self.phi[b]", "p @ self.phi[b]"),
    (non_local.NonLocalDot, "backward", "gm /= keys", "pass"),
    (non_local.NonLocalDot, "backward", "self.phi @ gm", "self.g @ gm"),
    (non_local.NonLocalConcat, "backward", "gs *= f > 0", "pass"),
    (non_local.NonLocalConcat, "backward", "gs /= keys", "pass"),
    (non_local.NonLocalConcat, "backward", "gb[b] +=", "gb[b] ="),
    (non_local.NonLocalConcat, "backward", "w_theta, w_phi = ", "w_phi, w_theta = "),
]


def mutant(method, old, new):
    """A function with one expression of its source replaced."""
    source = textwrap.dedent(inspect.getsource(method))
    assert source.count(old) == 1, f"{method.__qualname__} has changed: {old!r} is there {source.count(old)} times"
    names = {}
    exec(compile(source.replace(old, new), f"<mutant of {method.__qualname__}>", "exec"), method.__globals__, names)
    return names[method.__name__]


def run(case, arrays):
    """The gradients of a case's inputs, and what was asked for on the way: pairs (op, input)."""
    asked, original = {}, engine.Op.gradients

    def listening(self, gy):
        asked.update({(type(self), i): None for i, need in enumerate(self.needs) if need})
        return original(self, gy)

    leaves = [minnl.Tensor(a, requires_grad=True) for a in arrays]
    y = case.fn(*leaves)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Op, "gradients", listening)
        if y.requires_grad:
            y.backward(np.random.default_rng(1).uniform(0.5, 1.5, size=y.shape))
    grads = [np.zeros_like(a) if x.grad is None else x.grad for x, a in zip(leaves, arrays, strict=True)]
    return grads, list(asked)


def check(case, arrays, i):
    """The gradient check of one input of a case, the others held."""
    held = [minnl.Tensor(a) for a in arrays]
    return minnl.gradcheck(lambda x: case.fn(*held[:i], x, *held[i + 1 :]), [arrays[i]], locate=False)


def noticed(case):
    """Whether the check of any input fails; errors of shape do not count as that."""
    arrays = case.inputs(np.random.default_rng(0))
    try:
        return not all(check(case, arrays, i) for i in range(len(arrays)))
    except (ValueError, RuntimeError):
        return False


@pytest.fixture(autouse=True)
def textbook(monkeypatch):
    """The textbook bodies are what is broken here, and the non-local op takes several blocks."""
    monkeypatch.setattr(non_local, "BLOCK_ELEMENTS", 30)
    with minnl.use_kernels("textbook"):
        yield


@pytest.mark.parametrize(("op", "method", "old", "new"), MISTAKES)
def test_a_mistake_is_noticed(op, method, old, new, monkeypatch):
    monkeypatch.setattr(op, method, mutant(getattr(op, method), old, new))
    names = (op.public_name, "batch_norm") if op is norm.FrozenBatchNorm else (op.public_name,)
    assert any(noticed(case) for case in CASES.values() if case.op in names)


def test_every_op_has_its_mistake():
    def subclasses(cls):
        return {cls, *(s for c in cls.__subclasses__() for s in subclasses(c))}

    ops = {op for op in subclasses(engine.Op) if op.__module__.startswith("minnl.ops.") and "public_name" in vars(op)}
    kinds = {non_local.NonLocalSoftmax, non_local.NonLocalDot, non_local.NonLocalConcat}
    broken = {op for op, *_ in MISTAKES}
    assert {op.__name__ for op in (ops | kinds) - broken} == {"_NonLocal", "To"}  # To: no differences in float32


def sign(g):
    return -g


def scale(g):
    return g * 1.0001


def zeroed(g):
    g = g.copy()
    if g.size:
        g[np.unravel_index(np.abs(g).argmax(), g.shape)] = 0
    return g


def exchanged(g):
    g = g.copy()
    if g.size:
        high, low = (np.unravel_index(k, g.shape) for k in (g.argmax(), g.argmin()))
        g[high], g[low] = g[low], g[high]
    return g


def transposed(g):
    return g.swapaxes(-1, -2) if g.ndim > 1 and g.shape[-1] == g.shape[-2] else g


SPOILT = (sign, scale, zeroed, exchanged, transposed)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_spoilt_gradient_is_noticed(name):
    case = CASES[name]
    arrays = case.inputs(np.random.default_rng(0))
    right, asked = run(case, arrays)
    for op, i in asked:
        for spoil in SPOILT:
            if name in ON_A_KINK and spoil in (zeroed, exchanged):
                continue  # the element may be one at which several gradients are right
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(op, "gradients", spoilt(op.gradients, i, spoil))
                wrong, _ = run(case, arrays)
                error = [np.abs(a - b).max(initial=0) for a, b in zip(wrong, right, strict=True)]
                size = max(np.abs(a).max(initial=0) for a in right)
                if max(error) <= 1e-14 * size:
                    continue  # of a gradient that is 0, or the same everywhere, this makes the same gradient
                assert max(error) > 1e-7 * size, "too small a change for this test to mean anything"
                k = int(np.argmax(error))
                assert not check(case, arrays, k), f"{spoil.__name__} gradient of input {i} of {op.__name__}"


def spoilt(gradients, i, spoil):
    def broken(self, gy):
        grads = list(gradients(self, gy))
        if len(grads) > i and grads[i] is not None:
            grads[i] = spoil(grads[i])
        return tuple(grads)

    return broken


def first_of_each(array, shape):
    """sum_to by one who takes an element where the sum belongs."""
    if array.shape == shape:
        return array
    array = array[(0,) * (array.ndim - len(shape))]
    return array[tuple(slice(0, 1) if n == 1 else slice(None) for n in shape)]


def wrong_axis(array, shape):
    """sum_to by one who mixes up the last two axes."""
    return array if array.shape == shape else sums.sum_to(array.swapaxes(-1, -2), shape)


@pytest.mark.parametrize("wrong", [first_of_each, wrong_axis])
@pytest.mark.parametrize("module", [arithmetic, shape, linear])
def test_a_wrong_sum_over_broadcast_axes_is_noticed(module, wrong, monkeypatch):
    monkeypatch.setattr(module, "sum_to", wrong)
    stretched = ("broadcast", "batch-", "new-axes", "stretched")
    assert any(noticed(case) for case in CASES.values() if any(word in case.name for word in stretched))


def test_a_sum_over_broadcast_axes_left_out_is_refused_by_the_engine(monkeypatch):
    monkeypatch.setattr(arithmetic, "sum_to", lambda array, shape: array)
    x, y = minnl.Tensor(np.ones((2, 3)), requires_grad=True), minnl.Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(
        RuntimeError, match=r"add: backward returned a gradient of shape \(2, 3\).* input 1 of shape \(3,\)"
    ):
        (x + y).backward(np.ones((2, 3)))
