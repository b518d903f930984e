"""What every test shares: reproducible property tests, and closing lines that name what was left out.

`--hypothesis-profile=explore` looks for new examples, `--hypothesis-profile=quick` at a few (`make quick`).
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

import tidegate.errors  # noqa: F401 - onnxruntime's telemetry is off from here on, whichever test imports it first
from tests.programs import LEFT_OUT, LeftOut

# Services that a test starts within its own process keep nothing on the disk unless it asks for it. Servers that are
# started as users start them do not see this (tests/servers.py).
os.environ["TIDEGATE_STORE"] = "none"

# Each worker of a parallel run, and each server that a test starts, compiles the same modules: once is enough.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A loaded machine is no failure, hence no deadline and no complaint of slowness; the same examples on every run, hence
# derandomize.
settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=10)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("ci")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates that a test printed or logged: a worker of pytest-xdist sends its report in UTF-8."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that were left out for want of a program, each once whatever its parameters."""
    tests: defaultdict[LeftOut, dict[str, None]] = defaultdict(dict)
    for report in terminalreporter.getreports("skipped"):
        _, _, reason = report.longrepr
        if (found := LEFT_OUT.get(reason.removeprefix("Skipped: "))) is not None:
            tests[found].setdefault(report.nodeid.partition("[")[0])
    if tests:
        terminalreporter.section("tests that were left out")
    for (missing, remedy), names in tests.items():
        terminalreporter.write_line(f"{missing} is missing; this brings it: {remedy}")
        for name in names:
            terminalreporter.write_line(f"    {name}")
