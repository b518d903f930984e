"""The stock clients' environment, which `make venv` makes beside the tests' own, and how to run what is in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.programs import leave_out, require

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
ENVIRONMENT = Path(sys.prefix) / "oip-clients"
_SECONDS = 200


def _binaries() -> Path:
    """The environment's commands; leave the test out if it is not what the requirements say."""
    installed = ENVIRONMENT / REQUIREMENTS.name
    if not installed.exists() or installed.read_text() != REQUIREMENTS.read_text():
        leave_out("the stock clients' environment", "make venv")
    return ENVIRONMENT / "bin"


def run_script(name: str, *arguments: str) -> str:
    """Run a script of this folder with the stock clients at hand, and return what it printed.

    Raises:
        AssertionError: It failed; with what it said.
    """
    return _run([str(_binaries() / "python"), str(HERE / name), *arguments], dict(os.environ))


def run_code(source: str) -> str:
    """Run Python source with the stock clients at hand, and return what it printed; AssertionError where it failed."""
    return _run([str(_binaries() / "python"), "-c", source], dict(os.environ))


def run_perf_analyzer(*arguments: str) -> str:
    """Run perf_analyzer, and return its report; AssertionError, with what it said, where it failed."""
    require("libb64")
    binaries = _binaries()
    (library,) = ENVIRONMENT.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib")
    return _run([str(binaries / "perf_analyzer"), *arguments], {**os.environ, "LD_LIBRARY_PATH": str(library)})


def _run(command: list[str], environment: dict[str, str]) -> str:
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
