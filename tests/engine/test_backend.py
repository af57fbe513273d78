"""Floor 0: naming devices, moving arrays, refusing mixtures, and a CuPy that is absent, broken or there twice."""

import importlib.metadata
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import threadpoolctl

import minnl
from minnl import Tensor, backend, functional, random
from minnl.kernels.runtime.cuda import CudaKernel
from tests import strict_cupy


@pytest.fixture
def gpus():
    """Two GPUs, after CuPy's rules."""
    with strict_cupy.installed(gpus=2) as cupy:
        yield cupy


@pytest.fixture
def no_cupy(monkeypatch):
    """Whatever is installed: no CuPy to be found."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(backend, "installed_cupy", list)
    backend.load_cupy.cache_clear()
    yield
    backend.load_cupy.cache_clear()


# Names.


def test_names_of_devices(gpus):
    assert minnl.device("cpu") == backend.CPU
    assert str(minnl.device("cpu")) == "cpu"
    assert minnl.device("gpu") == minnl.device("gpu:0")
    assert str(minnl.device("gpu:1")) == "gpu:1"
    assert minnl.device(minnl.device("gpu:1")) == backend.Device("gpu", 1)


@pytest.mark.parametrize("name", ["cuda", "GPU", "gpu:", "gpu:x", "gpu:-1", "cpu:0", "gpu 0", "", ":"])
def test_names_of_no_device(gpus, name):
    with pytest.raises(ValueError, match=rf'device: expected "cpu", "gpu" or "gpu:N", got {name!r}'):
        minnl.device(name)


@pytest.mark.parametrize("name", [0, None, ("gpu", 0), b"cpu"])
def test_names_of_another_type(name):
    with pytest.raises(TypeError, match=f'device: expected "cpu", "gpu" or "gpu:N", got {type(name).__name__}'):
        minnl.device(name)


def test_a_gpu_that_is_not_there(gpus):
    with pytest.raises(ValueError, match=r"device: 'gpu:2' does not exist, this machine has 2 GPU\(s\)"):
        minnl.device("gpu:2")


# CuPy absent, broken, twice.


def test_the_cpu_needs_no_cupy(no_cupy):
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x.to("cpu") * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 4])


def test_importing_minnl_imports_no_cupy():
    program = "import sys, minnl; minnl.device('cpu'); sys.exit('cupy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_cupy_missing(no_cupy):
    for ask in (lambda: minnl.device("gpu"), lambda: Tensor([1.0]).to("gpu"), lambda: Tensor([1.0], device="gpu:0")):
        with pytest.raises(
            RuntimeError, match=r'device: CuPy cannot be imported .*pip install "cupy-cuda12x\[ctk\]>=14"'
        ):
            ask()


def test_cupy_without_a_gpu():
    with strict_cupy.installed(gpus=0), pytest.raises(RuntimeError, match="finds no GPU.*python -m minnl doctor"):
        minnl.device("gpu")


@pytest.mark.parametrize(("version", "old"), [("12.3.0", 1), ("13.6.0", 1), ("14.0.0rc1", 0), ("15.1", 0)])
def test_a_cupy_that_is_too_old(version, old):
    """Its first convolution would fail with "Unsupported type numpy.void"."""
    with strict_cupy.installed() as cupy:
        cupy.__version__ = version
        if not old:
            assert str(minnl.device("gpu")) == "gpu:0"
            return
        mend = '14 or newer; pip uninstall -y cupy-cuda13x, then pip install "cupy-cuda12x[ctk]>=14" (CUDA 12 driver)'
        with pytest.raises(RuntimeError, match=re.escape(f"CuPy {version} is too old, minnl needs {mend}")):
            minnl.device("gpu")


def test_memory_that_the_system_does_not_tell(monkeypatch):
    assert backend.memory_of(backend.CPU) > 1e8
    monkeypatch.delattr(os, "sysconf")
    assert backend.memory_of(backend.CPU) is None


def test_two_cupy_wheels(monkeypatch):
    versions = {"cupy-cuda12x": "14.0", "cupy-cuda13x": "14.2"}

    def version(name):
        try:
            return versions[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert backend.installed_cupy() == ["cupy-cuda12x", "cupy-cuda13x"]
    backend.load_cupy.cache_clear()
    with pytest.raises(RuntimeError, match="cupy-cuda12x and cupy-cuda13x.*pip uninstall -y cupy-cuda12x cupy-cuda13x"):
        minnl.device("gpu")
    del versions["cupy-cuda12x"]
    assert backend.installed_cupy() == ["cupy-cuda13x"]


# Moving.


def test_a_tensor_goes_there_and_back(gpus):
    x = Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    there = x.to("gpu:1")
    assert (str(there.device), there.shape, there.dtype) == ("gpu:1", (2, 3), np.float32)
    assert backend.is_gpu_array(there.data)
    assert there.to("gpu:1") is there
    assert x.to("cpu") is x
    back = there.to("cpu")
    assert type(back.data) is np.ndarray
    np.testing.assert_array_equal(back.data, x.data)
    np.testing.assert_array_equal(there.numpy(), x.data)
    assert there[1, 2].item() == 5


def test_a_tensor_is_made_where_it_is_wanted(gpus):
    x = Tensor([[1, 2]], device="gpu", dtype=np.float64)
    assert (str(x.device), x.dtype) == ("gpu:0", np.float64)


def test_moving_passes_gradients_back(gpus):
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = x.to("gpu:1", dtype=np.float64)
    (y * y).sum().backward()
    assert type(x.grad) is np.ndarray
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad, [2, 4, 6])


def test_from_one_gpu_to_another(gpus):
    x = Tensor([1.0, 2.0], requires_grad=True, device="gpu:0")
    y = x.to("gpu:1")
    (y * 3).sum().backward()
    assert (str(y.device), x.grad.device.id) == ("gpu:1", 0)
    np.testing.assert_array_equal(x.grad.get(), [3, 3])


def test_everything_happens_on_the_device_of_the_tensor(gpus):
    """Also while another device is the current one: shared use, 0-d seeds and a second gradient are all added there."""
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True, device="gpu:1")
    for _ in range(2):
        y = x * 2 + x
        (functional.softmax(y) * y.exp()).mean().backward()
    assert x.grad.device.id == 1
    loss = functional.cross_entropy(x.reshape(2, 3), [0, 2])
    loss.backward()
    assert x.grad.device.id == 1
    z = Tensor(np.zeros((), np.float32), requires_grad=True, device="gpu:1")
    (z * z + z).backward()
    assert float(z.grad) == 1


def test_of_modules_parameters_and_buffers_go(gpus):
    layer = minnl.nn.BatchNorm3d(2)
    layer.to("gpu:1")
    places = {str(backend.device_of(a)) for a in layer.state_dict().values()}
    assert places == {"gpu:1"}


# Mixtures.


def test_mixtures_are_refused_by_name_device_and_shape(gpus):
    here, there = Tensor(np.ones((2, 3))), Tensor(np.ones((3, 4)), device="gpu")
    with pytest.raises(TypeError, match=r"matmul: .*\(2, 3\) on cpu, \(3, 4\) on gpu:0; move them with \.to\(device\)"):
        here @ there
    with pytest.raises(TypeError, match=r"add: .*\(3, 4\) on gpu:0, \(3, 4\) on gpu:1"):
        there + there.to("gpu:1")
    with pytest.raises(TypeError, match=r"mul: .*\(3, 4\) on gpu:0, \(4,\) on cpu"):
        there * np.ones(4)


def test_a_seed_from_elsewhere_is_refused(gpus):
    y = Tensor(np.ones(3), requires_grad=True, device="gpu") * 2
    with pytest.raises(TypeError, match=r"backward: .*\(3,\) on gpu:0, \(3,\) on cpu"):
        y.backward(np.ones(3))


def test_statistics_and_masks_from_elsewhere_are_refused(gpus):
    x = Tensor(np.ones((2, 4)), device="gpu")
    with pytest.raises(TypeError, match=r"batch_norm: .*\(2, 4\) on gpu:0, \(4,\) on cpu"):
        functional.batch_norm(x, np.zeros(4), np.ones(4))
    with pytest.raises(TypeError, match=r"where: .*\(2, 4\) on cpu, \(2, 4\) on gpu:0"):
        functional.where(np.ones((2, 4), bool), x, x)


def test_labels_and_indices_come_from_either_side(gpus):
    x = Tensor(np.eye(3), device="gpu")
    expected = functional.cross_entropy(Tensor(np.eye(3)), np.array([0, 1, 2])).item()
    for labels in ([0, 1, 2], np.array([0, 1, 2]), gpus.asarray(np.array([0, 1, 2]))):
        assert functional.cross_entropy(x, labels).item() == expected
        np.testing.assert_array_equal(x[labels].numpy(), np.eye(3))


# Threads and chance.


def test_set_threads_reaches_the_blas():
    before = [p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    threads = backend.threads()
    try:
        minnl.set_threads(1)
        assert {p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"} <= {1}
        assert backend.threads() == 1
    finally:
        minnl.set_threads(threads)
        threadpoolctl.threadpool_limits(limits=max(before, default=1), user_api="blas")


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_set_threads_of_nonsense(n, error):
    with pytest.raises(error, match="set_threads: n must be"):
        minnl.set_threads(n)


def test_chance_is_the_same_on_both_sides(gpus):
    x = np.ones((5, 7), np.float32)
    before = random.get_state()
    minnl.manual_seed(3)
    here = functional.dropout(Tensor(x))
    minnl.manual_seed(3)
    there = functional.dropout(Tensor(x, device="gpu"))
    random.set_state(before)
    np.testing.assert_array_equal(here.data, there.numpy())
    assert 0 < (here.data == 0).sum() < 35


@pytest.mark.parametrize(
    ("compiler", "amd", "expected"), [(False, False, False), (True, False, True), (True, True, False)]
)
def test_cuda_kernels_are_for_a_cupy_that_compiles_cuda(gpus, monkeypatch, compiler, amd, expected):
    """Not for the stand-in, which compiles nothing, and not for AMD's GPUs, whose warps are wider."""
    if compiler:
        monkeypatch.setattr(gpus, "RawModule", object, raising=False)
    monkeypatch.setattr(gpus.cuda.runtime, "is_hip", amd, raising=False)
    full, empty = gpus.ones((4, 3)), gpus.ones((0, 3))
    assert backend.compiles_cuda() == expected
    assert CudaKernel.suits(None, (full, full)) == expected
    assert not CudaKernel.suits(None, (empty, full))
