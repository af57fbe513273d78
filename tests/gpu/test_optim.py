"""Optimisers' CUDA kernels, beside the textbook body in NumPy and float64."""

import re
from unittest import mock

import numpy as np
import pytest

import minnl
from minnl import Tensor, backend, optim
from minnl.kernels.optim.cuda import ELEMENTS, MAX_PARAMETERS, OPTIM, PARAMETER, PARAMETERS, CudaAdamW, CudaSGD
from minnl.kernels.runtime import cuda as source
from tests.gpu.device import GPU, TOLERANCE, broken, close
from tests.training.test_optim import OPTIMISERS

KERNEL = {"AdamW": CudaAdamW, "SGD": CudaSGD}
# Several blocks, and two launches.
SHAPES = ((), (7,), (ELEMENTS,), (3, 701), (2, 1, ELEMENTS + 1), (5 * ELEMENTS - 1,), *[(3,)] * MAX_PARAMETERS)
LAUNCHES = 2


def gradient(step, i, shape):
    """In float32, for all: of a size that changes from step to step, and never near 0, where AdamW's root is steep."""
    rng = np.random.default_rng((step, i))
    size = rng.uniform(0.5, 2, size=shape) * 10.0 ** rng.integers(-2, 2)
    return np.float32(size * rng.choice([-1, 1], size=shape))


def trained(name, dtype="float64", device=GPU, mode="fast", steps=3, shapes=SHAPES):
    """Parameters, and what is kept of each, after some steps at a rate that changes; two of them do not decay."""
    kind, options = OPTIMISERS[name]
    start = [np.float32(np.random.default_rng((99, i)).normal(size=shape)) for i, shape in enumerate(shapes)]
    params = [Tensor(np.array(a, dtype), requires_grad=True, device=device) for a in start]
    decays = options.get("weight_decay", 0.01 if kind == "AdamW" else 0.0)
    plain = [{"params": params[:2], "weight_decay": 0.0}, {"params": params[2:], "weight_decay": decays}]
    optimizer = getattr(optim, kind)(plain, **options)
    with minnl.use_kernels(mode):
        for step in range(steps):
            optimizer.lr = options["lr"] * (1 + 0.1 * step)
            for i, p in enumerate(params):
                p.grad = backend.to_device(np.array(gradient(step, i, p.shape), dtype), p.device)
            optimizer.step()
    kept = [a for slot in optimizer.slots for a in optimizer.kept[slot]]
    return [backend.to_host(a) for a in (*(p.data for p in params), *kept)]


def right(name, **more):
    return trained(name, device=backend.CPU, mode="textbook", **more)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_steps(name, dtype):
    """The numbers of NumPy's textbook, from one launch for every 64 parameters."""
    kernel = KERNEL[OPTIMISERS[name][0]]
    with (
        mock.patch.object(kernel, "apply", wraps=kernel.apply) as picked,
        mock.patch.object(OPTIM, "launch", wraps=OPTIM.launch) as launched,
    ):
        got = trained(name, dtype)
    assert (picked.call_count, launched.call_count) == (3, 3 * LAUNCHES)
    close(got, [a.astype(dtype) for a in right(name)], TOLERANCE[dtype])


GROUPS = {
    "AdamW": ({}, {"lr": 0.3, "weight_decay": 0.1}, {"betas": (0.5, 0.9)}, {"eps": 0.1}),
    "SGD": (
        {"momentum": 0.9},
        {"lr": 0.3, "weight_decay": 0.1},
        {"momentum": 0.5},
        {"momentum": 0.1, "nesterov": True},
    ),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_groups_and_parameters_that_come_late(kind):
    """A launch for all that have the same options and have made as many steps; the numbers of the textbook."""
    results = []
    for device, mode in ((backend.CPU, "textbook"), (GPU, "fast")):
        params = [Tensor(np.full(size, 2.0), requires_grad=True, device=device) for size in (3, 5, 7, 9, 4, 6, 8, 2)]
        given = [{"params": params[2 * i : 2 * i + 2]} | own for i, own in enumerate(GROUPS[kind])]
        optimizer = getattr(optim, kind)(given, lr=0.1)
        with minnl.use_kernels(mode), mock.patch.object(OPTIM, "launch", wraps=OPTIM.launch) as launched:
            for step in range(5):
                optimizer.lr = 0.1 + 0.01 * step
                for i, p in enumerate(params):
                    late = i % 2 and step < 3
                    p.grad = None if late else backend.to_device(gradient(step, i, p.shape).astype("float64"), p.device)
                optimizer.step()
        each = 2 if kind == "AdamW" else 1  # of a group, in the last two steps
        assert launched.call_count == (device != backend.CPU) * (3 * 4 + 2 * 4 * each)
        assert optimizer.counts == [5, 2] * 4
        results.append([p.numpy() for p in params])
    close(results[1], results[0], TOLERANCE["float64"])


def test_large_gradients():
    """Their squares overflow; the moments do not, and a step is lr."""
    (p,) = on_gpu(np.zeros(3, np.float32))
    optimizer = optim.AdamW([p], 0.01, weight_decay=0.0)
    for _ in range(4):
        p.grad = backend.to_device(np.array([1e20, -2e20, 2e19], np.float32), GPU)
        optimizer.step()
    np.testing.assert_allclose(p.numpy(), [-0.04, 0.04, -0.04], rtol=1e-5)


@pytest.mark.parametrize("kind", KERNEL)
def test_parameters_that_share_memory_are_refused(kind):
    whole = backend.to_device(np.ones((2, 6)), GPU)
    for parts, shared in ((list(whole.T), False), ([whole[0], whole[1]], False), ([whole[:, :4], whole[:, 3:]], True)):
        params = [Tensor(a, requires_grad=True) for a in parts]
        for p in params:
            p.grad = p.data * 2
        optimizer = getattr(optim, kind)(params, lr=0.25)
        if shared:
            before = whole.copy()
            with pytest.raises(
                ValueError, match=rf"{kind}: parameters 0 of shape \(2, 4\) and 1 of shape .* share memory"
            ):
                optimizer.step()
            assert (whole == before).all()
        else:
            optimizer.step()
            assert (whole < 1).all()


@pytest.mark.parametrize("name", ["adamw", "nesterov"])
def test_same_bits(name):
    first, second = ([a.tobytes() for a in trained(name, "float32")] for _ in range(2))
    assert first == second


def on_gpu(*arrays):
    params = [Tensor(a, requires_grad=True, device=GPU) for a in arrays]
    for p in params:
        p.grad = p.data * 2
    return params


def test_a_gradient_that_is_not_contiguous():
    a = np.arange(12.0).reshape(3, 4)
    (p,) = on_gpu(a)
    p.grad = p.data.T.copy().T
    assert not p.grad.flags.c_contiguous
    optim.SGD([p], lr=0.5).step()
    np.testing.assert_array_equal(p.numpy(), a / 2)


@pytest.mark.parametrize("kind", KERNEL)
def test_what_the_kernel_is_not_made_for_takes_the_textbook(kind):
    """Two dtypes at once, parameters that are not contiguous, empty ones."""
    turned = Tensor(backend.to_device(np.ones((3, 4)), GPU).T, requires_grad=True)
    turned.grad = turned.data.copy()
    for params in (on_gpu(np.ones(3), np.ones(3, np.float32)), [turned], on_gpu(np.ones(3), np.ones((0, 2)))):
        optimizer = getattr(optim, kind)(params, lr=0.25, weight_decay=0.0)
        with mock.patch.object(KERNEL[kind], "apply") as apply:
            optimizer.step()
        assert not apply.called
        assert all((p.numpy() < 1).all() for p in params)


@pytest.mark.parametrize("kind", KERNEL)
def test_without_gradients_nothing_happens(kind):
    a, b = on_gpu(np.ones(3), np.ones(4))
    a.grad = b.grad = None
    optimizer = getattr(optim, kind)([a, b], lr=0.25)
    optimizer.step()
    a.grad = a.data * 1
    optimizer.step()
    assert (a.numpy() < 1).all() and (b.numpy() == 1).all()


def test_no_decay_does_not_ask_for_the_parameter():
    """0 times infinity would be NaN."""
    (p,) = on_gpu(np.array([np.inf, 1]))
    p.grad[...] = 1
    optimizer = optim.SGD([p], lr=0.5, momentum=0.5)
    optimizer.step()
    np.testing.assert_array_equal(backend.to_host(optimizer.kept["velocity"][0]), [1, 1])
    np.testing.assert_array_equal(p.numpy(), [np.inf, 0.5])


def test_the_table_is_that_of_the_source():
    text = source.read("optim/optim.cu")
    constants = dict(re.findall(r"constexpr int (\w+) = (\d+);", text))
    assert constants == {"MAX_PARAMETERS": str(MAX_PARAMETERS), "ELEMENTS": str(ELEMENTS)}
    fields = re.search(r"struct Parameter \{(.*?)\};", text, re.DOTALL)[1]
    assert re.findall(r"(\w+)[,;]", re.sub(r"//.*", "", fields)) == list(PARAMETER.names)
    assert PARAMETERS.itemsize == 8 + 56 * MAX_PARAMETERS and PARAMETERS.itemsize + 6 * 8 <= 4096  # of arguments


# Of a step: what stands there, what stands there by mistake, with which optimiser it is found.
MISTAKES = [
    ("middle].block <= blockIdx.x", "middle].block < blockIdx.x", "adamw"),
    ("high - low > 1", "high - low > 2", "adamw"),
    ("b1 * p.first[i]", "p.first[i]", "adamw"),
    ("b2 * p.second[i]", "b1 * p.second[i]", "adamw"),
    ("a * g, v", "b1 * g, v", "adamw"),
    ("+ b * g * g;", "+ b * g;", "adamw"),
    ("sqrt(v) / c + e", "sqrt(v) + e", "adamw"),
    ("sqrt(v) / c + e", "sqrt(v / c) + e", "adamw"),
    ("sqrt(v) / c + e", "(sqrt(v) + e) / c", "adamw-options"),
    ("w * keep - r * m", "w - r * m", "adamw"),
    ("r = T(rate), c = T(bias)", "r = T(rate), c = T(rate)", "adamw"),
    ("p.second[i] = v;", "", "adamw"),
    ("p.decay != 0", "p.decay == 0", "sgd-decay"),
    ("mu * p.first[i] + d", "p.first[i] + d", "momentum"),
    ("nesterov ? d + mu * v : v", "v", "nesterov"),
    ("nesterov ? d + mu * v : v", "nesterov ? mu * v : v", "nesterov"),
    ("d = nesterov ? d + mu * v", "d = true ? d + mu * v", "momentum"),
    ("p.w[i] = w - r * d", "p.w[i] = w - d", "sgd"),
]


@pytest.mark.parametrize(("old", "new", "name"), MISTAKES)
def test_a_mistake_in_the_kernel_is_found(monkeypatch, old, new, name):
    broken(monkeypatch, OPTIM, "optim/optim.cu", old, new)
    with pytest.raises(AssertionError):
        close(trained(name), right(name), TOLERANCE["float64"])
