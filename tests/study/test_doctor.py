"""The doctor: what it prints, what it finds wrong, the line that mends it, and that it never dies itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minnl import backend
from minnl.study import doctor
from tests import strict_cupy


@pytest.fixture
def machine(monkeypatch):
    """Say which CuPy wheels are there, and which CUDA the driver is for (None: no driver)."""

    def pretend(wheels, cuda):
        monkeypatch.setattr(backend, "installed_cupy", lambda: list(wheels))
        monkeypatch.setattr(doctor, "cuda_of_driver", lambda: cuda)
        monkeypatch.setattr(doctor, "cuda_of_cupy", lambda: None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return pretend


def test_report_of_a_machine_without_gpu(machine, capsys):
    machine([], None)
    assert doctor.main() == 0
    out = capsys.readouterr().out
    for line in (f"NumPy        {np.__version__}", "Python ", "cores ", "BLAS ", "thread(s)", "kernels "):
        assert line in out
    assert "CuPy         not installed" in out
    assert "driver       none" in out
    assert "nothing is wrong" in out


def test_runs_as_a_program():
    ran = subprocess.run(
        [sys.executable, "-m", "minnl", "doctor"],
        cwd=Path(doctor.__file__).parents[2], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "NumPy" in ran.stdout


@pytest.mark.parametrize(
    ("wheels", "cuda", "what", "mend"),
    [
        (["cupy-cuda12x", "cupy-cuda13x"], (13, 0), "cupy-cuda12x should go",
         'pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install "cupy-cuda13x[ctk]>=14"'),
        (["cupy-cuda12x", "cupy-cuda13x"], (12, 8), "cupy-cuda13x should go",
         'pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install "cupy-cuda12x[ctk]>=14"'),
        (["cupy-cuda13x", "cupy"], (13, 1), "cupy should go", 'pip install "cupy-cuda13x[ctk]>=14"'),
        ([], (12, 4), "no CuPy", 'pip install "cupy-cuda12x[ctk]>=14"'),
        ([], (13, 2), "no CuPy", 'pip install "cupy-cuda13x[ctk]>=14"'),
        ([], (14, 0), "no CuPy", 'pip install "cupy-cuda13x[ctk]>=14"'),
        (["cupy-cuda13x"], None, "no NVIDIA driver", "pip uninstall -y cupy-cuda13x"),
        (["cupy-cuda13x"], (12, 9), "needs a driver for CUDA 13, this one is for 12.9",
         'pip uninstall -y cupy-cuda13x && pip install "cupy-cuda12x[ctk]>=14"'),
        (["cupy-cuda12x"], (11, 8), "CUDA up to 11.8", "update the NVIDIA driver"),
    ],
)  # fmt: skip
def test_what_is_wrong_and_what_mends_it(machine, capsys, wheels, cuda, what, mend):
    machine(wheels, cuda)
    (problem,) = doctor.diagnose(wheels, cuda)
    assert what in problem.what
    assert mend in problem.mend
    assert doctor.main() == 2, "the CPU part is fine"
    out = capsys.readouterr().out
    assert f"wrong: {problem.what}\n mend: {problem.mend}" in out


@pytest.mark.parametrize(
    ("wheels", "cuda"),
    [([], None), ([], (11, 8)), (["cupy-cuda12x"], (12, 2)), (["cupy-cuda12x"], (13, 0)), (["cupy-cuda13x"], (13, 0)),
     (["cupy-rocm-7-0"], None), (["cupy"], None)],
)  # fmt: skip
def test_what_is_right(wheels, cuda):
    assert doctor.diagnose(wheels, cuda) == []


def test_a_gpu_that_works(machine, capsys):
    machine(["cupy-cuda13x"], (13, 0))
    with strict_cupy.installed(gpus=2):
        assert doctor.main() == 0
    out = capsys.readouterr().out
    assert "gpu:0        stand-in, 3.0 of 4.0 GiB free" in out
    assert "gpu:1 " in out
    assert "nothing is wrong" in out


def test_no_gpu_to_be_seen(machine, capsys, monkeypatch):
    machine(["cupy-cuda13x"], (13, 0))
    with strict_cupy.installed(gpus=0):
        doctor.main()
        assert "CuPy finds no GPU" in capsys.readouterr().out
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        doctor.main()
        assert "CUDA_VISIBLE_DEVICES='' hides the GPUs" in capsys.readouterr().out


def test_a_cupy_that_cannot_compute(machine, capsys):
    machine(["cupy-cuda13x"], (13, 0))
    with strict_cupy.installed() as cupy:
        cupy.sqrt = lambda x: 1 / 0
        assert doctor.main() == 2
    out = capsys.readouterr().out
    assert "CuPy finds gpu:0 but cannot compute on it: division by zero" in out
    assert 'mend: pip uninstall -y cupy-cuda13x && pip install "cupy-cuda13x[ctk]>=14"' in out


def test_a_cupy_that_cannot_load(machine, capsys, monkeypatch):
    def broken():
        raise RuntimeError("device: CuPy cannot be imported (libnvrtc.so.13 not found)")

    machine(["cupy-cuda13x"], (13, 0))
    monkeypatch.setattr(backend, "load_cupy", broken)
    assert doctor.main() == 2
    assert "libnvrtc.so.13 not found" in capsys.readouterr().out


def test_what_the_cpu_part_lacks_decides_the_status(machine, capsys, monkeypatch):
    machine([], None)
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("tqdm", "av") else real(name))
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "mend: pip install tqdm" in out
    assert "only for video files: pip install av" in out


def test_the_doctor_does_not_die(machine, capsys, monkeypatch):
    machine([], None)

    def dies():
        raise OSError("no such thing")

    monkeypatch.setattr(doctor.threadpoolctl, "threadpool_info", dies)
    monkeypatch.setattr(doctor, "cuda_of_driver", dies)
    assert doctor.main() == 2
    out = capsys.readouterr().out
    assert out.count("OSError('no such thing')") == 2
    assert "NumPy" in out


def test_a_driver_is_asked_for_its_cuda(monkeypatch):
    class Driver:
        def __init__(self, name):
            pass

        def cuDriverGetVersion(self, pointer):
            pointer._obj.value = 12080
            return 0

    monkeypatch.setattr(doctor.ctypes, "CDLL", Driver)
    assert doctor.cuda_of_driver() == (12, 8)
    monkeypatch.setattr(doctor, "LIBCUDA", ())
    assert doctor.cuda_of_driver() is None


def test_a_driver_that_only_cupy_finds(machine, capsys, monkeypatch):
    found = doctor.cuda_of_cupy
    machine(["cupy-cuda13x"], None)
    monkeypatch.setattr(doctor, "cuda_of_cupy", found)
    with strict_cupy.installed() as cupy:
        assert doctor.main() == 0
        out = capsys.readouterr().out
        assert "for CUDA 13.0 and older" in out and "gpu:0" in out and "nothing is wrong" in out
        cupy.cuda.runtime.driverGetVersion = lambda: 0
        doctor.main()
        assert "no NVIDIA driver" in capsys.readouterr().out


def test_a_gpu_that_computes_wrong(machine, capsys):
    machine(["cupy-cuda13x"], (13, 0))
    with strict_cupy.installed(gpus=2) as cupy:
        right = cupy.sqrt
        cupy.sqrt = lambda x: right(x) + x.device.id  # the second one only
        assert doctor.main() == 2
    out = capsys.readouterr().out
    assert "wrong: gpu:1 computes wrong: a batch norm\n" in out and "gpu:0 computes" not in out


def test_each_gpu_is_tried_with_all_that_has_kernels(machine, monkeypatch):
    """A convolution, a norm and a gather, forward and backward, and the first GPU's work is not that of the second."""
    calls = []

    def right(fn, device):
        calls.append((fn, device))
        return True

    machine(["cupy-cuda13x"], (13, 0))
    monkeypatch.setattr(doctor, "_right", right)
    with strict_cupy.installed(gpus=2):
        assert doctor.main() == 0
    assert calls == [(fn, device) for device in ("gpu:0", "gpu:1") for fn in doctor.TRIED.values()]
    assert list(doctor.TRIED) == ["a convolution", "a batch norm", "a gather"]


def test_a_cupy_that_is_too_old(machine, capsys):
    """CuPy 13, as Colab and Kaggle have it, computes much, but not with kernels that take structs."""
    machine(["cupy-cuda13x"], (13, 0))
    with strict_cupy.installed() as cupy:
        cupy.__version__ = "13.6.0"
        assert doctor.main() == 2
    out = capsys.readouterr().out
    assert "CuPy 13.6.0 is too old, minnl needs 14 or newer" in out
    assert 'mend: pip uninstall -y cupy-cuda13x && pip install "cupy-cuda13x[ctk]>=14"' in out


def test_nvidia_smi_says_the_version_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._driver_version() == ""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 580.65.06\n")
    smi.chmod(0o755)
    assert doctor._driver_version() == ", version 580.65.06"
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML'; exit 9\n")
    assert doctor._driver_version() == ""
