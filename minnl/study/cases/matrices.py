"""Cases of matmul and linear."""

from minnl import functional as F
from minnl.study.cases.case import case, normal

CASES = [
    case("matmul/two-matrices", normal((2, 3), (3, 4))),
    case("matmul/square", normal((3, 3), (3, 3))),
    case("matmul/same-batches", normal((2, 2, 3), (2, 3, 2))),
    case("matmul/batch-left-only", normal((4, 2, 3), (3, 2))),
    case("matmul/batch-right-only", normal((2, 3), (4, 3, 2))),
    case("matmul/batches-broadcast-both", normal((2, 1, 2, 3), (4, 3, 2))),
    case("matmul/size-1-axes", normal((1, 1), (1, 3))),
    case("matmul/empty-batch", normal((0, 2, 3), (3, 4))),
    case("matmul/empty-inner", normal((2, 0), (0, 3))),
    case("matmul/operator", normal((2, 3), (3, 2)), lambda a, b: a @ b),
    case("matmul/transposed", normal((3, 2), (4, 3)), lambda a, b: F.matmul(a.T, b.T)),
    case("matmul/with-itself", normal((3, 3)), lambda a: F.matmul(a, a)),
    case("linear/plain", normal((4, 3), (3, 2), (2,))),
    case("linear/no-bias", normal((4, 3), (3, 2))),
    case("linear/square", normal((4, 3), (3, 3), (3,))),
    case("linear/one-row", normal((3,), (3, 2), (2,))),
    case("linear/five-axes", normal((2, 1, 2, 2, 3), (3, 2), (2,))),
    case("linear/empty-batch", normal((0, 3), (3, 2), (2,))),
    case("linear/non-contiguous", normal((3, 2, 2), (2, 3)), lambda x, w: F.linear(F.transpose(x), w.T)),
    case("linear/shared-weight", normal((4, 3), (3, 3)), lambda x, w: F.linear(F.tanh(F.linear(x, w)), w)),
]
