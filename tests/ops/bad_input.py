"""Bad input, one mistake at a time, to every function of minnl.functional. What test_errors.py does with it: raise."""

import numpy as np

from minnl import Tensor


def t(*shape, dtype=np.float64):
    return Tensor(np.ones(shape, dtype), requires_grad=True)


def clip_of(*sizes, c=4):
    return t(2, *sizes, c)


X = clip_of(4, 5, 6)  # (N, T, H, W, C) with C = 4
ROWS = t(3, 4)
KERNEL = t(3, 3, 3, 4, 8)
STATS = (np.zeros(4), np.ones(4))
LABELS = np.array([0, 1, 2])
VALUE, TYPE = ValueError, TypeError

# function of minnl.functional, arguments, keywords, error, what the message must say besides the function's name
TABLE = [
    # not a tensor at all
    *[(name, (value,), {}, TYPE, f"{name}: x must be a Tensor, got {type(value).__name__}")
      for name in ("neg", "exp", "log", "sqrt", "tanh", "sigmoid", "relu", "abs", "sum", "mean", "var", "max", "min",
                   "transpose", "flip", "softmax", "log_softmax", "to", "dropout")
      for value in ([1.0, 2.0], "x", None)],
    *[(name, (np.arange(3),), {}, TYPE, "Tensor: data has dtype int64, float32 or float64 expected")
      for name in ("exp", "sum", "softmax")],
    # two inputs
    *[(name, (t(2, 3), t(2, 4)), {}, VALUE, rf"{name}: shapes \(2, 3\), \(2, 4\) do not broadcast together")
      for name in ("add", "sub", "mul", "div", "pow", "maximum", "minimum")],
    *[(name, (t(2), t(2, dtype=np.float32)), {}, TYPE,
       rf"{name}: inputs of different dtypes: \(2,\) float64, \(2,\) float32; convert one with \.to\(dtype=")
      for name in ("add", "sub", "mul", "div", "pow", "maximum", "minimum")],
    *[(name, (t(2), "two"), {}, TYPE, f"{name}: expected a Tensor, an array or a number, got str")
      for name in ("add", "sub", "mul", "div", "pow", "maximum", "minimum")],
    ("add", (1.0, 2.0), {}, TYPE, "add: at least one input must be a Tensor, got float, float"),
    ("add", (t(2), True), {}, TYPE, "add: expected a Tensor, an array or a number, got bool"),
    ("add", (t(2), [1.0, 2.0]), {}, TYPE, "add: expected a Tensor, an array or a number, got list"),
    ("where", ([True], t(1), t(1)), {}, TYPE, "where: condition must be a boolean array, got list"),
    ("where", (np.ones(2), t(2), t(2)), {}, TYPE, "where: condition must be a boolean array, got float64"),
    ("where", (t(2), t(2), t(2)), {}, TYPE, "where: condition must be a boolean array, got"),
    ("where", (np.ones(3, bool), t(2), t(2)), {}, VALUE, r"where: shapes \(3,\), \(2,\), \(2,\) do not broadcast"),
    ("clip", (ROWS,), {}, VALUE, "clip: give low, high or both"),
    ("clip", (ROWS, 2, 1), {}, VALUE, "clip: low 2.0 is above high 1.0"),
    ("clip", (ROWS, "0"), {}, TYPE, "clip: low must be a number, got str"),
    # axes
    *[(name, (ROWS, 2), {}, VALUE, f"{name}: axis 2 is out of range for a tensor of 2 axes")
      for name in ("sum", "mean", "var", "max", "min", "flip", "softmax", "log_softmax")],
    *[(name, (ROWS, (0, -2)), {}, VALUE, rf"{name}: axis \(0, -2\) names an axis twice")
      for name in ("sum", "mean", "var", "max", "min", "flip")],
    *[(name, (ROWS, 1.0), {}, TYPE, f"{name}: axis must be .*int.*, got 1.0")
      for name in ("sum", "mean", "var", "max", "min", "flip", "softmax", "log_softmax")],
    *[(name, (ROWS, None), {}, TYPE, f"{name}: axis must be one int, got None") for name in ("softmax", "log_softmax")],
    *[(name, (t(0, 3), 0), {}, VALUE, rf"{name}: .*no elements along axis 0.* shape \(0, 3\)")
      for name in ("mean", "var", "max", "min", "softmax", "log_softmax")],
    ("var", (t(1, 3), 0), {}, VALUE, "var: 1 values leave nothing to divide by with correction=1"),
    # shape
    ("reshape", (ROWS, (5, 2)), {}, VALUE, r"reshape: 12 elements of shape \(3, 4\) do not fill shape \(5, 2\)"),
    ("reshape", (ROWS, (-1, -1)), {}, VALUE, r"reshape: .* do not fill shape \(-1, -1\)"),
    ("reshape", (ROWS, (5, -1)), {}, VALUE, r"reshape: .* do not fill shape \(5, -1\)"),
    ("reshape", (ROWS, (-2, -6)), {}, VALUE, r"reshape: .* do not fill shape \(-2, -6\)"),
    ("reshape", (t(0, 3), (0, -1)), {}, VALUE, r"reshape: .* do not fill shape \(0, -1\)"),
    ("reshape", (ROWS, (6.0, 2)), {}, TYPE, r"reshape: shape must be ints, got \(6.0, 2\)"),
    ("reshape", ([1.0], (1,)), {}, TYPE, "reshape: x must be a Tensor, got list"),
    ("transpose", (ROWS, (0, 2)), {}, VALUE, r"transpose: axes \(0, 2\) is not an order of the 2 axes of x"),
    ("transpose", (ROWS, (0, 0)), {}, VALUE, r"transpose: axes \(0, 0\) is not an order of the 2 axes of x"),
    ("transpose", (ROWS, (0,)), {}, VALUE, r"transpose: axes \(0,\) is not an order of the 2 axes of x"),
    ("broadcast_to", (ROWS, (3, 5)), {}, VALUE, r"broadcast_to: shapes \(3, 4\), \(3, 5\) do not broadcast together"),
    ("broadcast_to", (ROWS, (4,)), {}, VALUE, r"broadcast_to: x of shape \(3, 4\) does not broadcast to \(4,\)"),
    ("concatenate", (ROWS,), {}, TYPE, "concatenate: expected a list of one tensor or more, got Tensor"),
    ("concatenate", ([],), {}, TYPE, "concatenate: expected a list of one tensor or more"),
    ("concatenate", ([ROWS, 1.0],), {}, TYPE, r"concatenate: xs\[1\] must be a Tensor, got float"),
    ("concatenate", ([ROWS, t(3, 5)], 0), {}, VALUE,
     r"concatenate: shapes \(3, 4\), \(3, 5\) differ off axis 0"),
    ("concatenate", ([ROWS, ROWS], 2), {}, VALUE, "concatenate: axis 2 is out of range for a tensor of 2 axes"),
    ("concatenate", ([ROWS, t(3, 4, dtype=np.float32)],), {}, TYPE, "concatenate: inputs of different dtypes"),
    ("stack", ([ROWS, t(3, 5)],), {}, VALUE, r"stack: shapes \(3, 4\), \(3, 5\) differ"),
    ("stack", (ROWS,), {}, TYPE, "stack: expected a list of one tensor or more, got Tensor"),
    ("stack", ([ROWS], 3), {}, VALUE, "stack: axis 3 is out of range for a tensor of 3 axes"),
    ("split", (ROWS, 3, 1), {}, VALUE, "split: axis 1 of size 4 does not divide into 3 equal parts; give sizes"),
    ("split", (ROWS, 0), {}, VALUE, "split: axis 0 of size 3 does not divide into 0 equal parts"),
    ("split", (ROWS, [1, 1]), {}, VALUE, r"split: sizes \(1, 1\) do not add up to 3, the size of axis 0"),
    ("split", (ROWS, [4, -1]), {}, VALUE, r"split: sizes \(4, -1\) do not add up to 3"),
    ("split", (ROWS, [1.5, 1.5]), {}, TYPE, "split: parts must be ints"),
    ("pad", (ROWS, ((1, 1),)), {}, VALUE,
     r"pad: widths must be 2 pairs \(before, after\) of 0 or more, got \(\(1, 1\),\)"),
    ("pad", (ROWS, ((1, 1), (0, -1))), {}, VALUE, r"pad: widths must be 2 pairs .*\(0, -1\)"),
    ("pad", (ROWS, ((1, 1), (0, 0.5))), {}, TYPE, "pad: widths must be ints"),
    ("pad", (ROWS, 1), {}, VALUE, r"pad: widths must be 2 pairs \(before, after\) of 0 or more, got \(\(1,\),\)"),
    ("pad", (ROWS, ((0, 0), (1, 1)), "0"), {}, TYPE, "pad: value must be a number, got str"),
    ("index", (ROWS, 3), {}, IndexError, r"index: index 3 is out of bounds .*x has shape \(3, 4\)"),
    ("index", (ROWS, np.array([0, 3])), {}, IndexError, r"index: index 3 is out of bounds .*x has shape \(3, 4\)"),
    ("index", (ROWS, (0, 0, 0)), {}, IndexError, r"index: too many indices .*x has shape \(3, 4\)"),
    ("index", (ROWS, np.ones((3, 3), bool)), {}, IndexError, r"index: boolean index did not.*x has shape \(3, 4\)"),
    ("index", (ROWS, [0.0]), {}, TYPE, "index: an index array must hold integers or be a boolean mask, got float64"),
    ("index", (ROWS, "0"), {}, TYPE, "index: cannot index with str '0'"),
    ("index", (ROWS, 1.0), {}, TYPE, "index: cannot index with float 1.0"),
    ("index", (ROWS, True), {}, TYPE, "index: cannot index with bool True"),
    ("to", (ROWS,), {"dtype": np.float16}, TYPE, "to: dtype must be float32 or float64, got float16"),
    ("to", (ROWS,), {"dtype": int}, TYPE, "to: dtype must be float32 or float64, got int64"),
    ("to", (ROWS, "cuda"), {}, VALUE, 'device: expected "cpu", "gpu" or "gpu:N", got \'cuda\''),
    # matrices
    ("matmul", (t(3), ROWS), {}, VALUE, r"matmul: both need two axes or more .*\(3,\) and \(3, 4\)"),
    ("matmul", (ROWS, ROWS), {}, VALUE, "matmul: a has 4 columns, b has 3 rows"),
    ("matmul", (t(2, 3, 4), t(3, 4, 5)), {}, VALUE, r"matmul: shapes \(2,\), \(3,\) do not broadcast together"),
    ("matmul", (ROWS, 2.0), {}, VALUE, "matmul: both need two axes or more"),
    ("linear", (ROWS, t(3, 5)), {}, VALUE, r"linear: weight takes 3 channels, x has shape \(3, 4\)"),
    ("linear", (t(), t(3, 5)), {}, VALUE, r"linear: weight takes 3 channels, x has shape \(\)"),
    ("linear", (ROWS, t(4)), {}, VALUE, r"linear: weight must have 2 axes \(in, out\), got shape \(4,\)"),
    ("linear", (ROWS, t(4, 5), t(4)), {}, VALUE, "linear: bias has 4 channels, weight gives 5"),
    ("linear", (ROWS, t(4, 5), t(1, 5)), {}, VALUE, r"linear: bias must have 1 axes \(out,\), got shape \(1, 5\)"),
    ("linear", (ROWS, t(4, 5, dtype=np.float32)), {}, TYPE, "linear: inputs of different dtypes"),
    # convolution
    ("conv3d", (t(2, 4, 5, 6), KERNEL), {}, VALUE,
     r"conv3d: x must have 5 axes \(N, T, H, W, C\), got shape \(2, 4, 5, 6\)"),
    ("conv3d", (X, t(3, 3, 4, 8)), {}, VALUE, r"conv3d: weight must have 5 axes \(kT, kH, kW, C // groups, K\), got"),
    ("conv3d", ([X], KERNEL), {}, TYPE, "conv3d: x must be a Tensor, got list"),
    ("conv3d", (X, t(3, 3, 3, 5, 8)), {}, VALUE,
     r"conv3d: weight has 5 input channels \(times groups=1 makes 5\), x has 4"),
    ("conv3d", (X, KERNEL), {"groups": 2}, VALUE,
     r"conv3d: weight has 4 input channels \(times groups=2 makes 8\), x has 4"),
    ("conv3d", (X, KERNEL), {"groups": 3}, VALUE,
     "conv3d: groups=3 must divide the 4 channels of x and the 8 of weight"),
    ("conv3d", (X, KERNEL), {"groups": 0}, VALUE, "conv3d: groups must be 1 or more, got 0"),
    ("conv3d", (X, KERNEL), {"groups": -1}, VALUE, "conv3d: groups must be 1 or more, got -1"),
    ("conv3d", (X, KERNEL), {"groups": 1.0}, TYPE, "conv3d: groups must be an int, got 1.0"),
    ("conv3d", (X, KERNEL, t(4)), {}, VALUE, "conv3d: bias has 4 channels, weight gives 8"),
    ("conv3d", (X, KERNEL, t(1, 8)), {}, VALUE, r"conv3d: bias must have 1 axes \(K,\), got shape \(1, 8\)"),
    ("conv3d", (X, KERNEL), {"stride": 0}, VALUE, "conv3d: stride must be 1 or more along every axis, got 0"),
    ("conv3d", (X, KERNEL), {"stride": (1, -1, 1)}, VALUE, r"conv3d: stride must be 1 or more .*got \(1, -1, 1\)"),
    ("conv3d", (X, KERNEL), {"stride": (1, 1)}, VALUE,
     r"conv3d: stride must be an int or three \(T, H, W\), got \(1, 1\)"),
    ("conv3d", (X, KERNEL), {"stride": 1.5}, TYPE, "conv3d: stride must be an int or three .*got 1.5"),
    ("conv3d", (X, KERNEL), {"dilation": 0}, VALUE, "conv3d: dilation must be 1 or more along every axis, got 0"),
    ("conv3d", (X, KERNEL), {"padding": -1}, VALUE, "conv3d: padding must be 0 or more along every axis, got -1"),
    ("conv3d", (X, KERNEL), {"padding": "full"}, VALUE, "conv3d: padding must be .*\"same\" or \"valid\", got 'full'"),
    ("conv3d", (X, KERNEL), {"padding": None}, TYPE, "conv3d: padding must be an int or three .*got None"),
    ("conv3d", (X, KERNEL), {"padding": "same", "stride": 2}, VALUE,
     r'conv3d: padding "same" needs stride 1, got \(2, 2, 2\)'),
    ("conv3d", (clip_of(2, 5, 6), KERNEL), {}, VALUE,
     r"conv3d: the window spans 3 along T \(kernel_size 3, dilation 1\), the padded input has 2; use a smaller kernel"),
    ("conv3d", (X, KERNEL), {"dilation": (1, 1, 3)}, VALUE,
     "conv3d: the window spans 7 along W .*the padded input has 6"),
    ("conv3d", (X, t(3, 0, 3, 4, 8)), {}, VALUE, r"conv3d: weight has an empty axis: shape \(3, 0, 3, 4, 8\)"),
    ("conv3d", (X, t(3, 3, 3, 4, 8, dtype=np.float32)), {}, TYPE, "conv3d: inputs of different dtypes"),
    # pooling
    *[(name, (ROWS, 2), {}, VALUE, rf"{name}: x must have 5 axes \(N, T, H, W, C\), got shape \(3, 4\)")
      for name in ("max_pool3d", "avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d")],
    *[(name, (None, 2), {}, TYPE, f"{name}: x must be a Tensor, got NoneType")
      for name in ("max_pool3d", "avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d")],
    *[(name, (X, *arguments), keywords, error, f"{name}: {message}")
      for name in ("max_pool3d", "avg_pool3d")
      for arguments, keywords, error, message in [
          ((0,), {}, VALUE, "kernel_size must be 1 or more along every axis, got 0"),
          ((2.0,), {}, TYPE, "kernel_size must be an int or three .*got 2.0"),
          (((2, 2),), {}, VALUE, r"kernel_size must be an int or three \(T, H, W\), got \(2, 2\)"),
          ((2,), {"stride": 0}, VALUE, "stride must be 1 or more along every axis, got 0"),
          ((2,), {"padding": -1}, VALUE, "padding must be 0 or more along every axis, got -1"),
          ((2,), {"padding": 2}, VALUE, r"padding must be at most half the kernel_size \(2, 2, 2\), got \(2, 2, 2\)"),
          ((2,), {"padding": "same"}, (TYPE, VALUE), "padding must be an int or three .*got 'same'"),
          ((5,), {}, VALUE, r"the window spans 5 along T \(kernel_size 5, dilation 1\), the padded input has 4"),
      ]],
    ("max_pool3d", (X, 2), {"dilation": 0}, VALUE, "max_pool3d: dilation must be 1 or more along every axis, got 0"),
    ("max_pool3d", (X, (4, 8, 8)), {}, VALUE, r"max_pool3d: kernel_size \(4, 8, 8\) has 256 taps, 255 at most"),
    ("avg_pool3d", (X, 2), {"divisor_override": 0}, VALUE, "avg_pool3d: divisor_override must not be 0"),
    ("avg_pool3d", (X, 2), {"divisor_override": 0.5}, TYPE, "avg_pool3d: divisor_override must be an int, got 0.5"),
    *[(name, (X, 0), {}, VALUE, f"{name}: output_size must be 1 or more along every axis, got 0")
      for name in ("adaptive_avg_pool3d", "adaptive_max_pool3d")],
    *[(name, (clip_of(4, 0, 6), 1), {}, VALUE, rf"{name}: x has no positions to pool, shape \(2, 4, 0, 6, 4\)")
      for name in ("adaptive_avg_pool3d", "adaptive_max_pool3d")],
    # normalisation
    *[(name, (x, *STATS), {}, VALUE, f"{name}: {message}")
      for name in ("batch_norm", "frozen_batch_norm")
      for x, message in [
          (t(4), r"x must have two axes or more \(..., C\), got shape \(4,\)"),
          (t(3, 5), r"running_mean has shape \(4,\), x has 5 channels"),
      ]],
    *[(name, (ROWS, *stats), {}, error, f"{name}: {message}")
      for name in ("batch_norm", "frozen_batch_norm")
      for stats, error, message in [
          ((np.zeros(4), np.ones(1)), VALUE, r"running_var has shape \(1,\), x has 4 channels"),
          ((np.zeros(4), np.ones(4, np.float32)), TYPE, "running_var is float32, x is float64"),
          ((None, None), TYPE, "running_mean must be an array .*got NoneType"),
          ((np.zeros(4), None), TYPE, "running_var must be an array .*got NoneType"),
          ((t(4), np.ones(4)), TYPE, "running_mean must be an array .*got Tensor"),
      ]],
    *[(name, (ROWS, *STATS), keywords, error, f"{name}: {message}")
      for name in ("batch_norm", "frozen_batch_norm")
      for keywords, error, message in [
          ({"weight": t(3)}, VALUE, "weight has 3 channels, x has 4"),
          ({"bias": t(1, 4)}, VALUE, r"bias must have 1 axes \(C,\), got shape \(1, 4\)"),
          ({"weight": 1.0}, TYPE, "weight must be a Tensor, got float"),
          ({"weight": t(4, dtype=np.float32)}, TYPE, "inputs of different dtypes"),
          ({"eps": -1e-5}, VALUE, "eps must be 0 or more, got -1e-05"),
          ({"eps": "small"}, TYPE, "eps must be a number, got str"),
          ({"residual": t(4)}, VALUE, r"residual has shape \(4,\), x has \(3, 4\); they must agree"),
          ({"residual": 1.0}, TYPE, "residual must be a Tensor, got float"),
          ({"residual": t(3, 4, dtype=np.float32)}, TYPE, "inputs of different dtypes"),
      ]],
    ("batch_norm", (ROWS, *STATS), {"training": True, "momentum": 1.5}, VALUE,
     "batch_norm: momentum must be from 0 to 1, got 1.5"),
    ("batch_norm", (t(1, 4), *STATS), {"training": True}, VALUE,
     r"batch_norm: training needs two values a channel or more, x has shape \(1, 4\)"),
    ("affine", (ROWS, t(3), t(4)), {}, VALUE, "affine: scale has 3 channels, x has 4"),
    ("affine", (ROWS, t(4), t(3)), {}, VALUE, "affine: shift has 3 channels, x has 4"),
    ("affine", (t(4), t(4), t(4)), {}, VALUE, r"affine: x must have two axes or more \(..., C\), got shape \(4,\)"),
    ("dropout", (ROWS, 1.0), {}, VALUE, r"dropout: p must be below 1"),
    ("dropout", (ROWS, -0.1), {}, VALUE, "dropout: p must be from 0 to 1, got -0.1"),
    ("dropout", (ROWS, "half"), {}, TYPE, "dropout: p must be a number, got str"),
    ("dropout", (t(4),), {"channels": True}, VALUE,
     r"dropout: channels=True needs x of shape \(N, ..., C\), got \(4,\)"),
    # losses
    ("cross_entropy", (ROWS, [0, 1, 4]), {}, VALUE,
     r"cross_entropy: label 4 is out of range, x has 4 classes \(0 to 3; ignore_index is -100\)"),
    ("cross_entropy", (ROWS, [0, -1, 2]), {}, VALUE, "cross_entropy: label -1 is out of range"),
    ("cross_entropy", (ROWS, [0, 1, -100]), {"ignore_index": -1}, VALUE, "cross_entropy: label -100 is out of range"),
    ("cross_entropy", (ROWS, np.array([0.0, 1.0, 2.0])), {}, TYPE,
     "cross_entropy: labels must be integers, got float64"),
    ("cross_entropy", (ROWS, np.array([True, False, True])), {}, TYPE,
     "cross_entropy: labels must be integers, got bool"),
    ("cross_entropy", (ROWS, t(3)), {}, TYPE, "cross_entropy: labels must be an integer array, got a Tensor"),
    ("cross_entropy", (ROWS, [0, 1]), {}, VALUE,
     r"cross_entropy: labels have shape \(2,\), x of shape \(3, 4\) needs \(3,\)"),
    ("cross_entropy", (ROWS, np.eye(3, 4, dtype=int)), {}, VALUE, r"cross_entropy: labels have shape \(3, 4\)"),
    ("cross_entropy", (t(3, 0), LABELS), {}, VALUE, r"cross_entropy: x must have shape \(..., classes\), got \(3, 0\)"),
    ("cross_entropy", (t(), 0), {}, VALUE, r"cross_entropy: x must have shape \(..., classes\), got \(\)"),
    ("cross_entropy", (ROWS, LABELS), {"weight": np.ones(3)}, VALUE,
     r"cross_entropy: weight has shape \(3,\).*needs \(4,\)"),
    ("cross_entropy", (ROWS, LABELS), {"weight": np.ones(4, np.float32)}, TYPE,
     "cross_entropy: weight is float32, x is float64"),
    ("cross_entropy", (ROWS, LABELS), {"reduction": "avg"}, VALUE,
     "cross_entropy: reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    ("cross_entropy", (ROWS, LABELS), {"label_smoothing": 1.5}, VALUE,
     "cross_entropy: label_smoothing must be from 0 to 1, got 1.5"),
    *[("binary_cross_entropy_with_logits", (ROWS, *arguments), keywords, error,
       f"binary_cross_entropy_with_logits: {message}")
      for arguments, keywords, error, message in [
          ((np.full((3, 4), 1.5),), {}, VALUE, r"target must be within \[0, 1\], got 1.5 to 1.5"),
          ((np.full((3, 4), np.nan),), {}, VALUE, r"target must be within \[0, 1\], got nan"),
          ((np.zeros(3),), {}, VALUE, r"target has shape \(3,\), x of shape \(3, 4\) needs \(3, 4\)"),
          ((np.zeros((3, 4), int),), {}, TYPE, "target is int64, x is float64"),
          ((None,), {}, TYPE, r"target must be a float array of shape \(3, 4\), got None"),
          ((np.zeros((3, 4)),), {"weight": np.ones(3)}, VALUE, r"shapes \(3,\), \(3, 4\) do not broadcast together"),
          ((np.zeros((3, 4)),), {"pos_weight": np.ones((2, 3, 4))}, VALUE, r"pos_weight of shape \(2, 3, 4\) does not"),
          ((np.zeros((3, 4)),), {"reduction": None}, VALUE, "reduction must be one of .*got None"),
      ]],
    # the non-local operation
    *[(name, (ROWS, X, *rest), {}, VALUE, rf"{name}: theta must have 5 axes \(N, T, H, W, C\), got shape \(3, 4\)")
      for name, rest in (("non_local", (X,)), ("attention", ([(0, 0, 0)],)))],
    *[(name, (X, clip_of(4, 5, 6, c=3), *rest), {}, VALUE, f"{name}: theta has 4 channels, phi has 3")
      for name, rest in (("non_local", (clip_of(4, 5, 6),)), ("attention", ([(0, 0, 0)],)))],
    *[(name, (X, X, *rest), {"mode": "cosine"}, VALUE,
       f"{name}: mode must be one of 'gaussian', 'embedded', 'dot', 'concat', got 'cosine'")
      for name, rest in (("non_local", (X,)), ("attention", ([(0, 0, 0)],)))],
    *[("non_local", arguments, keywords, error, f"non_local: {message}")
      for arguments, keywords, error, message in [
          ((X, X, clip_of(2, 5, 6)), {}, VALUE,
           r"phi and g must have the same positions, got \(2, 4, 5, 6\) and \(2, 2, 5, 6\)"),
          ((X, t(3, 4, 5, 6, 4), t(3, 4, 5, 6, 4)), {}, VALUE, "theta has a batch of 2, phi of 3"),
          ((X, clip_of(4, 0, 6), clip_of(4, 0, 6)), {}, VALUE, r"phi has no positions, shape \(2, 4, 0, 6, 4\)"),
          ((X, X, X), {"axes": "channels"}, VALUE, "axes must be one of 'spacetime', 'space', 'time', got 'channels'"),
          ((X, clip_of(2, 5, 6), clip_of(2, 5, 6)), {"axes": "space"}, VALUE,
           r'axes="space" needs as many frames in phi \(2\) as in theta \(4\)'),
          ((X, clip_of(4, 5, 3), clip_of(4, 5, 3)), {"axes": "time"}, VALUE,
           r'axes="time" needs one height and width in theta \(5, 6\) and phi \(5, 3\)'),
          ((X, X, X), {"mode": "dot", "scale": 0.5}, VALUE, "scale applies to the softmax modes, mode is 'dot'"),
          ((X, X, X), {"scale": "auto"}, TYPE, "scale must be a number, got str"),
          ((X, X, X), {"mode": "concat"}, VALUE, r'weight \(2I,\) belongs to mode "concat", mode is \'concat\''),
          ((X, X, X), {"weight": t(8)}, VALUE, r'weight \(2I,\) belongs to mode "concat", mode is \'embedded\''),
          ((X, X, X), {"mode": "concat", "weight": t(4)}, VALUE, r"weight must have 2 \* 4 elements, got 4"),
          ((X, X, t(2, 4, 5, 6, 4, dtype=np.float32)), {}, TYPE, "inputs of different dtypes"),
      ]],
    ("attention", (X, X, [(0, 5, 0)]), {}, VALUE,
     r"attention: position \(0, 5, 0\) lies outside of theta's \(4, 5, 6\)"),
    ("attention", (X, X, [(0, -1, 0)]), {}, VALUE, r"attention: position \(0, -1, 0\) lies outside"),
    ("attention", (X, X, [(0, 0)]), {}, TYPE,
     r"attention: positions must be a list of \(t, h, w\), got \(0, 0\) in it"),
    ("attention", (X, X, [(0, 0.5, 0)]), {}, TYPE,
     r"attention: positions must be a list of \(t, h, w\), got \(0, 0.5, 0\)"),
    ("attention", (X, X, (0, 0, 0)), {}, TYPE, r"attention: positions must be a list of \(t, h, w\), got 0 in it"),
]  # fmt: skip
