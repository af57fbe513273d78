"""The one table of cases: every op of minnl.functional with inputs and arguments that have gone wrong somewhere.

``python -m minnl check`` runs the gradient check over it; the tests run it against PyTorch, against plain loops, and
through the strict stand-in for CuPy. An op that is new in minnl.functional gets its cases here and nowhere else.
"""

from minnl.study.cases import elementwise, matrices, movements, non_local, normalisation, reductions, windows
from minnl.study.cases.case import Case

_FAMILIES = (elementwise, reductions, movements, matrices, windows, normalisation, non_local)

CASES: dict[str, Case] = {case.name: case for family in _FAMILIES for case in family.CASES}
