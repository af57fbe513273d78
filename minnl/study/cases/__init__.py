"""The table of cases: every op of minnl.functional with inputs and arguments that are likely to show mistakes.

``python -m minnl check`` runs the gradient check on the table. The tests compare it with PyTorch and with plain loops,
and run it on the strict substitute for CuPy. Cases of a new op in minnl.functional belong only here.
"""

from minnl.study.cases import elementwise, matrices, movements, non_local, normalisation, reductions, windows
from minnl.study.cases.case import Case

_FAMILIES = (elementwise, reductions, movements, matrices, windows, normalisation, non_local)

CASES: dict[str, Case] = {case.name: case for family in _FAMILIES for case in family.CASES}
