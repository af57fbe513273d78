"""In CI (MINNL_CI=1) a test may be skipped only for want of a GPU or of data that is not part of the project.

Where CI runs the tests of the GPU (MINNL_CI=gpu) there is one, and want of it is no reason either.

Elsewhere a test that finds no PyTorch or no PyAV skips, and that is right. In CI these are installed, and a comparison
with PyTorch that quietly does not run is a failure.

All tests run with poisoned memory (docs/kernels/runtime.md), their subprocesses too; with MINNL_POISON=0 they do not.
"""

import os

import pytest

os.environ.setdefault("MINNL_POISON", "1")  # before anything imports minnl, which reads it then

ALLOWED = {"1": ("needs a GPU", "needs ../shared/data"), "gpu": ("needs ../shared/data",)}


def refuse(report):
    """Turn the report of a skip that CI does not allow into a failure."""
    allowed = ALLOWED.get(os.environ.get("MINNL_CI"))
    if allowed is None or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not reason.startswith(allowed):
        report.outcome = "failed"
        report.longrepr = f"skipped ({reason}), but in CI only {' or '.join(map(repr, allowed))} may be a reason"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    refuse(report)
    return report
