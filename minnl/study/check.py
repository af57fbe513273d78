"""``python -m minnl check``: the gradient check, or the float32 check, over the table of cases, on a device."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from minnl import backend
from minnl.engine import Tensor
from minnl.study.cases import CASES
from minnl.study.float32 import float32check
from minnl.study.gradcheck import gradcheck

HEAD = f"{'case':52} {'input':8} {'shape':18} {'floor':>8} {'kinks':>5}  verdict"


def main(ops: Sequence[str] = (), device: str | backend.Device = "cpu") -> int:
    """Check the gradients of the named ops (of all ops by default), print the table, and return the exit status.

    Raises
    ------
    ValueError
        If an op is not in the table.
    """
    cases = chosen(ops)
    target = backend.device(device)
    print(HEAD)
    failed, inputs, worst = 0, 0, 0.0
    for case in cases:
        result = check(case, target)
        for found in result.inputs:
            print(
                f"{case.name:52} {found.name:8} {found.shape!s:18} {found.floor:8.0e} {found.kinks:5}  {found.verdict}",
                flush=True,
            )
            if found.verdict != "pass":
                print(f"    {found.explain()}")
        failed += sum(found.verdict != "pass" for found in result.inputs)
        inputs += len(result.inputs)
        worst = max([worst, *(found.floor for found in result.inputs)])
    verdict = f"{failed} failed" if failed else "all pass"
    print(f"{len(cases)} cases, {inputs} inputs on {target}: {verdict}; the highest floor is {worst:.0e} (1e-8 passes)")
    return 1 if failed else 0


def float32(ops: Sequence[str] = (), device: str | backend.Device = "cpu") -> int:
    """Compare float32 with float64 likewise, for the output and the gradients of each case."""
    cases = chosen(ops)
    target = backend.device(device)
    print(f"{'case':52} {'result':8} {'shape':18} {'error':>8} {'textbook':>8}  verdict")
    failed = 0
    for case in cases:
        for found in float32check(case.fn, inputs_of(case, target)).results:
            print(
                f"{case.name:52} {found.name:8} {found.shape!s:18} {found.error:8.0e} {found.textbook:8.0e}  "
                f"{found.verdict}",
                flush=True,
            )
            failed += found.verdict != "pass"
    print(f"{len(cases)} cases in float32 beside float64 on {target}: {f'{failed} failed' if failed else 'all pass'}")
    return 1 if failed else 0


def check(case, target):
    """The gradient check of a case on a device."""
    return gradcheck(case.fn, inputs_of(case, target))


def inputs_of(case, target):
    return [Tensor(x, device=target) for x in case.inputs(np.random.default_rng(0))]


def chosen(ops):
    """The cases of the named ops, in the order of the table."""
    known = sorted({case.op for case in CASES.values()})
    for op in ops:
        if op not in known:
            close = difflib.get_close_matches(op, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"check: no op {op!r}; {hint}known are {', '.join(known)}")
    return [case for case in CASES.values() if not ops or case.op in ops]
