"""The comparison of test_cases.py is checked: a mistake put into a CUDA source has to be found by it.

Some case of the op's must give each mistake away, on the kernels that are compiled from the broken source.
"""

import numpy as np
import pytest

from minnl.kernels.batch_norm.cuda import NORM
from minnl.kernels.conv3d.cuda_direct import DIRECT
from minnl.kernels.conv3d.cuda_im2col import GATHER
from minnl.kernels.non_local.cuda import NON_LOCAL
from minnl.kernels.pointwise.cuda import POINTWISE
from minnl.kernels.pooling.cuda import POOL
from minnl.kernels.runtime.row_tiles import SUMS
from minnl.kernels.softmax.cuda import SOFTMAX
from tests.gpu.device import TOLERANCE, broken, close, outcome
from tests.gpu.test_cases import TABLE, right

# One a line: the source, its file or common.cuh, how the names of the cases begin, the code, the mistake that replaces
# the code (none reads or writes outside of an array)
MISTAKES = [
    (NORM, "common.cuh", "batch_norm", "mean += delta / count;", "mean += delta / (count + 1);"),
    (NORM, "common.cuh", "batch_norm", "squares += delta * (x - mean);", "squares += delta * delta;"),
    (NORM, "common.cuh", "batch_norm", "mean += delta * share;", "mean += delta / 2;"),
    (NORM, "common.cuh", "batch_norm", "delta * delta * count * share", "0"),
    (NORM, "common.cuh", "batch_norm", "if (other.count == 0) return;", "if (other.count <= 1) return;"),
    (NORM, "common.cuh", "batch_norm", "half = blockDim.y / 2; half > 0", "half = blockDim.y / 2; half > 1"),
    (NORM, "common.cuh", "batch_norm", "b += other.b;", ""),
    (NORM, "batch_norm.cu", "batch_norm", "x[i * channels + c] - shift", "x[i * channels + c]"),
    (NORM, "batch_norm.cu", "batch_norm", "all.squares / (all.count - 1)", "all.squares / all.count"),
    (NORM, "batch_norm.cu", "batch_norm", "all.squares / all.count + T(eps)", "all.squares / all.count"),
    (NORM, "batch_norm.cu", "batch_norm", "centred(x[at]) * scale + b", "centred(x[at]) * scale"),
    (NORM, "batch_norm.cu", "batch_norm", "if (residual) z += residual[at];", ""),
    (NORM, "batch_norm.cu", "batch_norm", "relu && z < 0", "z < 0"),
    (NORM, "batch_norm.cu", "batch_norm", "sums.a += gz;", "sums.a += gy[at];"),
    (NORM, "batch_norm.cu", "batch_norm", "sums.b += gz * (centred(x[at]) * r)", "sums.b += gz * (x[at] * r)"),
    (NORM, "batch_norm.cu", "batch_norm", "(gz - constant - ", "(gz - "),
    (NORM, "batch_norm.cu", "batch_norm", "gweight[c] / rows * r", "gweight[c] / rows"),
    (NORM, "batch_norm.cu", "batch_norm", "scale = weight[c] * r;", "scale = r;"),
    (NORM, "batch_norm.cu", "batch_norm", "gresidual[at] = gz;", "gresidual[at] = gy[at];"),
    (NORM, "batch_norm.cu", "frozen_batch_norm", "sqrt(var[c] + T(eps))", "sqrt(var[c])"),
    (NORM, "batch_norm.cu", "frozen_batch_norm", "if (gx) gx[at] = (gz", "if (gx) gx[at] = (gy[at]"),
    (POINTWISE, "pointwise.cu", "dropout", "x *= 0x7feb352d;", "x *= 0x7feb352f;"),
    (POINTWISE, "pointwise.cu", "dropout", "round == 0 ? low : high", "low"),
    (POINTWISE, "pointwise.cu", "dropout", "x ^= x >> 15;", ""),
    (POINTWISE, "pointwise.cu", "dropout", "T(keep) * T(scale)", "T(keep)"),
    (POINTWISE, "pointwise.cu", "dropout", "T(mask[i]) * T(scale)", "T(scale)"),
    (POINTWISE, "pointwise.cu", "dropout", "mask[i / positions * channels + c]", "mask[c]"),
    (POINTWISE, "pointwise.cu", "dropout", "channels + c]) * T(scale)", "channels + c])"),
    (POINTWISE, "pointwise.cu", "affine", "* s + b;", "* s;"),
    (POINTWISE, "pointwise.cu", "affine", "s = scale[c], b = shift[c];", "s = scale[0], b = shift[c];"),
    (POINTWISE, "pointwise.cu", "index", "low = middle + 1;", "low = middle + 2;"),
    (POINTWISE, "pointwise.cu", "index", "sum += gy[", "sum = gy["),
    (POINTWISE, "pointwise.cu", "relu", "y[i] <= 0 ?", "y[i] < 0 ?"),
    (POINTWISE, "pointwise.cu", "sigmoid", "exp(-fabs(x[i]))", "exp(x[i])"),
    (POINTWISE, "pointwise.cu", "sigmoid", "x[i] >= 0 ? T(1) : e", "T(1)"),
    (POINTWISE, "pointwise.cu", "sigmoid", "gy[i] * y[i] * (1 - y[i])", "gy[i] * (1 - y[i])"),
    (POINTWISE, "pointwise.cu", "tanh", "(1 - y[i] * y[i])", "(1 - y[i])"),
    (POOL, "pooling.cu", "max_pool3d", "if (window.step == 1) return offset;", "return offset / window.step;"),
    (POOL, "pooling.cu", "max_pool3d", "= (index_t(i) * h.count + j) * w.count;", "= index_t(i) * h.count + j;"),
    (POOL, "pooling.cu", "max_pool3d", "+ h.start + j * h.step) *", "+ h.start + j) *"),
    (POOL, "pooling.cu", "max_pool3d", "f(row + k * w.step,", "f(row + k,"),
    (POOL, "pooling.cu", "max_pool3d", "(other == value && sooner)", "other == value"),
    (POOL, "pooling.cu", "max_pool3d", "sooner != LAST_NAN", "true"),
    (POOL, "pooling.cu", "max_pool3d", "!nan || sooner", "sooner"),
    (POOL, "pooling.cu", "max_pool3d", "(index_t(t.first) * h.count + h.first) * w.count + w.first)", "0)"),
    (POOL, "pooling.cu", "max_pool3d", "if (blockDim.y > 1) all = merge_rows(all);", ""),
    (POOL, "pooling.cu", "max_pool3d", "(index_t(t_tap) * h.count + h_tap)", "(index_t(t_tap) + h_tap)"),
    (POOL, "pooling.cu", "adaptive_max_pool3d", "sample * out_frames + i", "i"),
    (POOL, "pooling.cu", "adaptive_max_pool3d", "else if (w_tap >= 0 &&", "else if (w_tap > 0 &&"),
    (POOL, "pooling.cu", "avg_pool3d", "sum += other.sum;", ""),
    (POOL, "pooling.cu", "avg_pool3d", "return sum / count;", "return sum;"),
    (POOL, "pooling.cu", "avg_pool3d", "gy[at] / T(index_t(t.count) * h.count * w.count)", "gy[at] / T(w.count)"),
    (POOL, "pooling.cu", "adaptive_avg_pool3d", "for (int k = ws.first;", "for (int k = ws.last - 1;"),
    (SOFTMAX, "common.cuh", "softmax", "mask = width / 2", "mask = width / 4"),
    (SOFTMAX, "softmax.cu", "softmax", "return own ? own[k * (blockDim.x * blockDim.y)]", "return own ? own[0]"),
    (SOFTMAX, "softmax.cu", "softmax", "+= exp(cache.reload(x + i, k) - top);", "+= exp(cache.reload(x + i, k));"),
    (SOFTMAX, "softmax.cu", "softmax", "exp(v) / total", "exp(v)"),
    (SOFTMAX, "softmax.cu", "log_softmax", "v - log_total", "v"),
    (SOFTMAX, "softmax.cu", "softmax", "y[i] * (gy[i] - sum)", "y[i] * gy[i]"),
    (SOFTMAX, "softmax.cu", "log_softmax", "exp(y[i]) * sum", "sum"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "k == label ? hit + rest : rest", "k == label ? hit : rest"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "weight ? weight[k] : T(1)", "T(1)"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "return counts ? weight_of(k)", "return true ? weight_of(k)"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "i, k) - top - log_total)", "i, k) - top)"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "mean ? sum / total : sum", "sum"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "gy[each ? row : 0]", "gy[0]"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "/ (divisor ? *divisor : T(1))", ""),
    (SOFTMAX, "softmax.cu", "cross_entropy", "* scale - target(k)", "* scale"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "scale = sum / totals[row]", "scale = 1 / totals[row]"),
    (SOFTMAX, "common.cuh", "softmax", "value = lane < warps ? of_warp[lane]", "value = lane < warps ? of_warp[0]"),
    (SOFTMAX, "common.cuh", "softmax", "if (lane == 0) of_warp[warp] = value;", "of_warp[warp] = neutral;"),
    (NON_LOCAL, "common.cuh", "non_local/embedded", "mask = width / 2", "mask = width / 4"),
    (NON_LOCAL, "non_local.cu", "non_local/embedded", "total += exp(s_row[j] - top);", "total += exp(s_row[j]);"),
    (NON_LOCAL, "non_local.cu", "non_local/embedded", "exp(s_row[j] - top) * scale;", "exp(s_row[j] - top);"),
    (NON_LOCAL, "non_local.cu", "non_local/embedded", "remainder += p * (gp", "remainder += (gp"),
    (NON_LOCAL, "non_local.cu", "non_local/embedded", "j] = s_row[j] * (gp", "j] = (gp"),
    (NON_LOCAL, "non_local.cu", "non_local/large", "s_row[j] = p = exp", "p = exp"),
    (NON_LOCAL, "non_local.cu", "non_local/large", "scales[2 * row] = top;", "scales[2 * row] = 0;"),
    (NON_LOCAL, "non_local.cu", "non_local/large", "scales[2 * row + 1] = scale;", "scales[2 * row + 1] = 1;"),
    (GATHER, "common.cuh", "conv3d", "o * stride - padding", "o * stride"),
    (GATHER, "common.cuh", "conv3d", "(unsigned)i < (unsigned)size", "i > 0 && i < size"),
    (GATHER, "im2col.cu", "conv3d", "unravel(group, w.taps) * w.dilation", "unravel(group, w.taps)"),
    (GATHER, "im2col.cu", "conv3d", "unravel(group, h.taps) * h.dilation", "unravel(group, h.taps)"),
    (GATHER, "im2col.cu", "conv3d", "unravel(group, t.taps) * t.dilation", "unravel(group, t.taps)"),
    (GATHER, "im2col.cu", "conv3d/large-groups", "+ group * channels + c;", "+ c;"),
    (GATHER, "im2col.cu", "conv3d", "first() < groups * width / N;", "first() < groups * width / N - 1;"),
    (GATHER, "im2col.cu", "conv3d/large", "= begin + start + i;", "= begin + i;"),
    (GATHER, "im2col.cu", "conv3d", "sample * t.size + frame", "frame"),
    (GATHER, "im2col.cu", "conv3d", "Pack<T, N> pack = {};", "Pack<T, N> pack = {1};"),
    (DIRECT, "common.cuh", "conv3d/groups", "+ k * dilation;", "+ k;"),
    (DIRECT, "direct.cu", "conv3d/groups", "= bias ? bias[k] : T(0)", "= T(0)"),
    (DIRECT, "direct.cu", "conv3d/groups", "k / (width / (int)groups) * each", "k % (int)groups * each"),
    (DIRECT, "direct.cu", "conv3d/large", "frame + kt * t.dilation", "frame"),
    (DIRECT, "direct.cu", "conv3d/large", "top + kh * h.dilation", "top + kh"),
    (DIRECT, "direct.cu", "conv3d/groups", "left + i * w.stride", "left + i"),
    (DIRECT, "direct.cu", "conv3d/groups", "at_w * all + c] * factor", "at_w * all] * factor"),
    (DIRECT, "direct.cu", "conv3d/groups", "k / (outputs / groups) * channels + c", "c"),
    (DIRECT, "direct.cu", "conv3d/groups", "w.at(o, kw + i)", "w.at(o, kw)"),
    (DIRECT, "direct.cu", "conv3d/large", "(w.taps + TAPS - 1) / TAPS) * TAPS", "(w.taps + TAPS - 1) / TAPS)"),
    (DIRECT, "direct.cu", "conv3d/large", "line += row_stride()", "line += row_stride() + 1"),
    (DIRECT, "direct.cu", "conv3d/large", "sums[i] += other.sums[i]", "sums[i] += 0"),
    (SUMS, "column_sums.cu", "conv3d", "value += other.value;", ""),
    (SUMS, "column_sums.cu", "conv3d", "sum.value += x[", "sum.value = x["),
    (SUMS, "column_sums.cu", "conv3d", "i += row_stride()", "i += row_stride() + 1"),
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
    path = "runtime/common.cuh" if file == "common.cuh" else code.file
    assert path.endswith(f"/{file}")
    broken(monkeypatch, code, path, old, new)
    assert any(found(name) for name in TABLE if name.startswith(cases))
