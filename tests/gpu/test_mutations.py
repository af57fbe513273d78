"""The comparison of test_cases.py is checked: a mistake put into a CUDA source has to be found by it.

Some case of the op's must give each mistake away, on the kernels that are compiled from the broken source.
"""

import numpy as np
import pytest
from minnl.kernels.non_local.cuda_concat import CONCAT

from minnl.kernels.batch_norm.cuda import NORM
from minnl.kernels.conv3d.cuda_direct import DIRECT
from minnl.kernels.conv3d.cuda_im2col import GATHER
from minnl.kernels.non_local.cuda import NON_LOCAL
from minnl.kernels.pointwise.cuda import POINTWISE
from minnl.kernels.pointwise.cuda_dropout import DROPOUT
from minnl.kernels.pointwise.cuda_index import INDEX
from minnl.kernels.pooling.cuda import POOL
from minnl.kernels.runtime.column_sums import SUMS
from minnl.kernels.softmax.cuda import SOFTMAX
from tests.gpu.device import TOLERANCE, broken, close, outcome
from tests.gpu.test_cases import TABLE, right

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
    (NORM, "norm.cu", "batch_norm", "centre.off(x[at]) * scale + b", "centre.off(x[at]) * scale"),
    (NORM, "norm.cu", "batch_norm", "if (residual) z += residual[at];", ""),
    (NORM, "norm.cu", "batch_norm", "relu && z < 0", "z < 0"),
    (NORM, "norm.cu", "batch_norm", "seen.a += gz;", "seen.a += gy[at];"),
    (NORM, "norm.cu", "batch_norm", "seen.b += gz * (centre.off(x[at]) * r)", "seen.b += gz * (x[at] * r)"),
    (NORM, "norm.cu", "batch_norm", "(gz - constant - ", "(gz - "),
    (NORM, "norm.cu", "batch_norm", "gweight[c] / rows * r", "gweight[c] / rows"),
    (NORM, "norm.cu", "batch_norm", "scale = weight[c] * r;", "scale = r;"),
    (NORM, "norm.cu", "batch_norm", "gresidual[at] = gz;", "gresidual[at] = gy[at];"),
    (NORM, "norm.cu", "frozen_batch_norm", "sqrt(var[c] + T(eps))", "sqrt(var[c])"),
    (NORM, "norm.cu", "frozen_batch_norm", "if (gx) gx[at] = (gz", "if (gx) gx[at] = (gy[at]"),
    (DROPOUT, "dropout.cu", "dropout", "x *= 0x7feb352d;", "x *= 0x7feb352f;"),
    (DROPOUT, "dropout.cu", "dropout", "round == 0 ? low : high", "low"),
    (DROPOUT, "dropout.cu", "dropout", "x ^= x >> 15;", ""),
    (DROPOUT, "dropout.cu", "dropout", "T(stay) * T(scale)", "T(stay)"),
    (DROPOUT, "dropout.cu", "dropout", "T(stays[i]) * T(scale)", "T(scale)"),
    (DROPOUT, "dropout.cu", "dropout", "stays[i / positions * channels + c]", "stays[c]"),
    (DROPOUT, "dropout.cu", "dropout", "channels + c]) * T(scale)", "channels + c])"),
    (POINTWISE, "pointwise.cu", "affine", "* s + b;", "* s;"),
    (POINTWISE, "pointwise.cu", "affine", "s = scale[c], b = shift[c];", "s = scale[0], b = shift[c];"),
    (INDEX, "index.cu", "index", "low = middle + 1;", "low = middle + 2;"),
    (INDEX, "index.cu", "index", "sum += gy[", "sum = gy["),
    (POINTWISE, "pointwise.cu", "relu", "y[i] <= 0 ?", "y[i] < 0 ?"),
    (POINTWISE, "pointwise.cu", "sigmoid", "exp(-fabs(x[i]))", "exp(x[i])"),
    (POINTWISE, "pointwise.cu", "sigmoid", "x[i] >= 0 ? T(1) : e", "T(1)"),
    (POINTWISE, "pointwise.cu", "sigmoid", "gy[i] * y[i] * (1 - y[i])", "gy[i] * (1 - y[i])"),
    (POINTWISE, "pointwise.cu", "tanh", "(1 - y[i] * y[i])", "(1 - y[i])"),
    (POOL, "pool.cu", "max_pool3d", "if (window.step == 1) return off;", "return off / window.step;"),
    (POOL, "pool.cu", "max_pool3d", "= (index_t(i) * h.count + j) * w.count;", "= index_t(i) * h.count + j;"),
    (POOL, "pool.cu", "max_pool3d", "+ h.start + j * h.step) *", "+ h.start + j) *"),
    (POOL, "pool.cu", "max_pool3d", "f(row + k * w.step,", "f(row + k,"),
    (POOL, "pool.cu", "max_pool3d", "(other == value && sooner)", "other == value"),
    (POOL, "pool.cu", "max_pool3d", "sooner != LAST_NAN", "true"),
    (POOL, "pool.cu", "max_pool3d", "!nan || sooner", "sooner"),
    (POOL, "pool.cu", "max_pool3d", "(index_t(t.first) * h.count + h.first) * w.count + w.first}", "0}"),
    (POOL, "pool.cu", "max_pool3d", "if (blockDim.y > 1) best = merge_rows(best);", ""),
    (POOL, "pool.cu", "max_pool3d", "(index_t(t_tap) * h.count + h_tap)", "(index_t(t_tap) + h_tap)"),
    (POOL, "pool.cu", "adaptive_max_pool3d", "sample * out_frames + i", "i"),
    (POOL, "pool.cu", "adaptive_max_pool3d", "else if (w_tap >= 0 &&", "else if (w_tap > 0 &&"),
    (POOL, "pool.cu", "avg_pool3d", "sum += other.sum;", ""),
    (POOL, "pool.cu", "avg_pool3d", "total.sum / (index_t(t.count) * h.count * w.count)", "total.sum / w.count"),
    (POOL, "pool.cu", "avg_pool3d", "gy[at] / T(index_t(t.count) * h.count * w.count)", "gy[at] / T(w.count)"),
    (POOL, "pool.cu", "adaptive_avg_pool3d", "for (int k = ws.first;", "for (int k = ws.last - 1;"),
    (SOFTMAX, "softmax.cu", "softmax", "line / inner * n * inner + line % inner", "line / inner * n * inner"),
    (SOFTMAX, "softmax.cu", "softmax", "mask = blockDim.x / 2", "mask = blockDim.x / 4"),
    (SOFTMAX, "softmax.cu", "softmax", "half = blockDim.y / 2; half > 0", "half = blockDim.y / 2; half > 1"),
    (SOFTMAX, "softmax.cu", "softmax", "return mine ? mine[k * (blockDim.x * blockDim.y)]", "return mine ? mine[0]"),
    (SOFTMAX, "softmax.cu", "softmax", "i * inner, k) - top);", "i * inner, k));"),
    (SOFTMAX, "softmax.cu", "softmax", "exp(v) / total", "exp(v)"),
    (SOFTMAX, "softmax.cu", "log_softmax", "v - log_total", "v"),
    (SOFTMAX, "softmax.cu", "softmax", "y[here] * (gy[here] - sum)", "y[here] * gy[here]"),
    (SOFTMAX, "softmax.cu", "log_softmax", "exp(y[here]) * sum", "sum"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "k == label ? hit + rest : rest", "k == label ? hit : rest"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "weight ? weight[k] : T(1)", "T(1)"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "return counts ? weight_of(k)", "return true ? weight_of(k)"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "i, k) - top - log_total)", "i, k) - top)"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "mean ? sum / total : sum", "sum"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "gy[each ? row : 0]", "gy[0]"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "/ (divisor ? *divisor : T(1))", ""),
    (SOFTMAX, "softmax.cu", "cross_entropy", "* scale - target(i)", "* scale"),
    (SOFTMAX, "softmax.cu", "cross_entropy", "scale = sum / totals[row]", "scale = 1 / totals[row]"),
    (SOFTMAX, "common.cuh", "softmax", "value = lane < warps ? of_warp[lane]", "value = lane < warps ? of_warp[0]"),
    (SOFTMAX, "common.cuh", "softmax", "if (lane == 0) of_warp[warp] = value;", "of_warp[warp] = neutral;"),
    (NON_LOCAL, "non_local.cu", "non_local/embedded", "mask = blockDim.x / 2", "mask = blockDim.x / 4"),
    (NON_LOCAL, "non_local.cu", "non_local/embedded", "total += exp(of_row[j] - top);", "total += exp(of_row[j]);"),
    (NON_LOCAL, "non_local.cu", "non_local/embedded", "exp(of_row[j] - top) * scale;", "exp(of_row[j] - top);"),
    (NON_LOCAL, "non_local.cu", "non_local/embedded", "left += p * (gp", "left += (gp"),
    (NON_LOCAL, "non_local.cu", "non_local/embedded", "j] = of_row[j] * (gp", "j] = (gp"),
    (NON_LOCAL, "non_local.cu", "non_local/large", "of_row[j] = p = exp", "p = exp"),
    (NON_LOCAL, "non_local.cu", "non_local/large", "scales[2 * row] = top;", "scales[2 * row] = 0;"),
    (NON_LOCAL, "non_local.cu", "non_local/large", "scales[2 * row + 1] = scale;", "scales[2 * row + 1] = 1;"),
    (CONCAT, "non_local_concat.cu", "non_local/concat", ": -a[", ": a["),
    (CONCAT, "non_local_concat.cu", "non_local/concat", "const T value = x[row * channels + c];", "const T value = 1;"),
    (CONCAT, "non_local_concat.cu", "non_local/concat", "T(before.a), T(before.b)}", "T(before.a), T(0)}"),
    (CONCAT, "non_local_concat.cu", "non_local/concat", "keys_give ? slices - 1 - k : k", "k"),
    (CONCAT, "non_local_concat.cu", "non_local/concat", "keys_give ? start + end - 1 - k : k", "k"),
    (CONCAT, "non_local_concat.cu", "non_local/concat", "if (live) earlier =", "if (live && unit == 0) earlier ="),
    (CONCAT, "non_local_concat.cu", "non_local/concat", "(own[row] * sum + weighted)", "(own[row] * sum)"),
    (CONCAT, "non_local_concat.cu", "non_local/concat", "c] * sum * T(share)", "c] * sum"),
    (CONCAT, "non_local_concat.cu", "non_local/concat", "mask = LANES / 2; mask > 0", "mask = LANES / 2; mask > 1"),
    (CONCAT, "non_local_concat.cu", "non_local/concat", "dots[blockIdx.x * batch", "dots[0 * batch"),
    (GATHER, "common.cuh", "conv3d", "o * stride - before", "o * stride"),
    (GATHER, "common.cuh", "conv3d", "(unsigned)i < (unsigned)size", "i > 0 && i < size"),
    (GATHER, "conv_columns.cu", "conv3d", "take(rest, w.taps) * w.dilation", "take(rest, w.taps)"),
    (GATHER, "conv_columns.cu", "conv3d", "take(rest, h.taps) * h.dilation", "take(rest, h.taps)"),
    (GATHER, "conv_columns.cu", "conv3d", "take(rest, t.taps) * t.dilation", "take(rest, t.taps)"),
    (GATHER, "conv_columns.cu", "conv3d/large-groups", "+ group * channels + c;", "+ c;"),
    (GATHER, "conv_columns.cu", "conv3d", "first() < groups * row / N;", "first() < groups * row / N - 1;"),
    (GATHER, "conv_columns.cu", "conv3d/large", "= begin + top + i;", "= begin + i;"),
    (GATHER, "conv_columns.cu", "conv3d", "sample * t.size + frame", "frame"),
    (GATHER, "conv_columns.cu", "conv3d", "Pack<T, N> seen = {};", "Pack<T, N> seen = {1};"),
    (DIRECT, "common.cuh", "conv3d/groups", "+ k * dilation;", "+ k;"),
    (DIRECT, "conv_direct.cu", "conv3d/groups", "= bias ? bias[k] : T(0)", "= T(0)"),
    (DIRECT, "conv_direct.cu", "conv3d/groups", "k / (width / (int)groups) * each", "k % (int)groups * each"),
    (DIRECT, "conv_direct.cu", "conv3d/large", "frame + kt * t.dilation", "frame"),
    (DIRECT, "conv_direct.cu", "conv3d/large", "upper + kh * h.dilation", "upper + kh"),
    (DIRECT, "conv_direct.cu", "conv3d/groups", "left + i * w.stride", "left + i"),
    (DIRECT, "conv_direct.cu", "conv3d/groups", "at_w * all + c] * factor", "at_w * all] * factor"),
    (DIRECT, "conv_direct.cu", "conv3d/groups", "k / (outputs / groups) * channels + c", "c"),
    (DIRECT, "conv_direct.cu", "conv3d/groups", "w.at(o, kw + i)", "w.at(o, kw)"),
    (DIRECT, "conv_direct.cu", "conv3d/large", "(w.taps + TAPS - 1) / TAPS) * TAPS", "(w.taps + TAPS - 1) / TAPS)"),
    (DIRECT, "conv_direct.cu", "conv3d/large", "line += row_stride()", "line += row_stride() + 1"),
    (DIRECT, "conv_direct.cu", "conv3d/large", "of[i] += other.of[i]", "of[i] += 0"),
    (SUMS, "column_sums.cu", "conv3d", "value += other.value;", ""),
    (SUMS, "column_sums.cu", "conv3d", "seen.value += x[", "seen.value = x["),
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
    broken(monkeypatch, code, file, old, new)
    assert any(found(name) for name in TABLE if name.startswith(cases))
