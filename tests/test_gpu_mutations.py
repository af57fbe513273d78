"""The comparison of test_gpu.py is checked: a mistake put into a CUDA source has to be found by it.

Some case of the op's must give each mistake away, on the kernels that are compiled from the broken source.
"""

import numpy as np
import pytest

from minnl.kernels.cuda import source
from minnl.kernels.cuda.norm import NORM
from tests.gpu import TOLERANCE, close, outcome
from tests.test_gpu import TABLE, right

# one a line: the source, its file, what the names of the cases begin with, what stands there, what stands there by
# mistake (nothing that reads or writes outside of an array)
MISTAKES = [
    (NORM, "common.cuh", "batch_norm", "mean += off / count;", "mean += off / (count + 1);"),
    (NORM, "common.cuh", "batch_norm", "squares += off * (x - mean);", "squares += off * off;"),
    (NORM, "common.cuh", "batch_norm", "mean += off * share;", "mean += off / 2;"),
    (NORM, "common.cuh", "batch_norm", "off * off * count * share", "0"),
    (NORM, "common.cuh", "batch_norm", "if (other.count == 0) return;", "if (other.count <= 1) return;"),
    (NORM, "common.cuh", "batch_norm", "half = blockDim.y / 2; half > 0", "half = blockDim.y / 2; half > 1"),
    (NORM, "common.cuh", "batch_norm", "b += other.b;", ""),
    (NORM, "norm.cu", "batch_norm", "x[i * channels + c] - shift", "x[i * channels + c]"),
    (NORM, "norm.cu", "batch_norm", "seen.squares / (seen.count - 1)", "seen.squares / seen.count"),
    (NORM, "norm.cu", "batch_norm", "seen.squares / seen.count + T(eps)", "seen.squares / seen.count"),
    (NORM, "norm.cu", "batch_norm", "(x[at] - m) * scale + b", "(x[at] - m) * scale"),
    (NORM, "norm.cu", "batch_norm", "if (residual) z += residual[at];", ""),
    (NORM, "norm.cu", "batch_norm", "relu && z < 0", "z < 0"),
    (NORM, "norm.cu", "batch_norm", "seen.a += gz;", "seen.a += gy[at];"),
    (NORM, "norm.cu", "batch_norm", "seen.b += gz * ((x[at] - m) * r)", "seen.b += gz * (x[at] * r)"),
    (NORM, "norm.cu", "batch_norm", "(gz - constant - ", "(gz - "),
    (NORM, "norm.cu", "batch_norm", "gweight[c] / rows * r", "gweight[c] / rows"),
    (NORM, "norm.cu", "batch_norm", "scale = weight[c] * r;", "scale = r;"),
    (NORM, "norm.cu", "batch_norm", "gresidual[at] = gz;", "gresidual[at] = gy[at];"),
    (NORM, "norm.cu", "frozen_batch_norm", "sqrt(var[c] + T(eps))", "sqrt(var[c])"),
    (NORM, "norm.cu", "frozen_batch_norm", "if (gx) gx[at] = (gz", "if (gx) gx[at] = (gy[at]"),
]  # fmt: skip


def found(case_name):
    case = TABLE[case_name]
    got, _ = outcome(case.fn, case.inputs(np.random.default_rng(0)), "float64")
    try:
        close(got, right(case_name, "float64"), TOLERANCE["float64"])
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(("code", "file", "cases", "old", "new"), MISTAKES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_mistake_in_a_kernel_is_found(monkeypatch, code, file, cases, old, new):
    original = source.read

    def mistaken(name):
        text = original(name)
        if name != file:
            return text
        assert text.count(old) == 1, f"{file} has changed: {old!r} is there {text.count(old)} times"
        return text.replace(old, new)

    monkeypatch.setattr(source, "read", mistaken)
    monkeypatch.setattr(code, "compiled", {})
    assert any(found(name) for name in TABLE if name.startswith(cases))
