"""What the figures were taken on: the machine and the versions, for a reader who compares."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from bench.processes import ROOT

PACKAGES = ("onnxruntime", "numpy", "grpcio", "protobuf", "fastapi", "starlette", "uvicorn", "uvloop", "websockets")


def describe() -> dict[str, str]:
    """Names and values, in the order in which they are printed."""
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "compiler of the client": _first_line("g++", "--version"),
        "revision": _first_line("git", "describe", "--always", "--dirty"),
        **{package: version(package) for package in PACKAGES},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(*command: str) -> str:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.stderr.write(result.stderr)
        return "unknown"
    return result.stdout.splitlines()[0]
