"""perf_analyzer, Triton's own load generator, pointed at a server: its figures, or why there are none.

It comes inside `tritonclient` on PyPI, and is looked for on the PATH and in the environment that the tests of stock
clients make. Knows its flags and its report.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.processes import Running
from bench.sessions import MODEL

BESIDE = Path(sys.prefix) / "oip-clients" / "bin"
"""Where `tests/e2e/oip` installs it."""

SEQUENCE_LENGTH = 2000
MOST_SECONDS = 60.0
_FIGURES = {
    "perf_analyzer_per_s": r"Throughput: ([\d.]+) infer/sec",
    "perf_analyzer_avg_us": r"Avg latency: (\d+) usec",
    "perf_analyzer_p50_us": r"p50 latency: (\d+) usec",
    "perf_analyzer_p99_us": r"p99 latency: (\d+) usec",
}


def figures(target: Running, concurrency: int, seconds: float, *way: str) -> dict[str, Any]:
    """What it sees with ``concurrency`` sequences of single steps over gRPC; ``way`` are flags of its own.

    Where it is missing, or fails, ``perf_analyzer`` says why.
    """
    program = shutil.which("perf_analyzer", path=os.pathsep.join([os.environ.get("PATH", ""), str(BESIDE)]))
    if program is None:
        return {"perf_analyzer": "absent: not installed (docs/oip.md says how)"}
    try:
        report = _run([program, *_flags(target, concurrency, seconds), *way])
    except (subprocess.SubprocessError, OSError) as error:
        return {"perf_analyzer": f"absent: {error}"}
    return parse(report)


def parse(report: str) -> dict[str, Any]:
    """Read its report: steps per second and latencies in µs, as the client sees them."""
    found = {name: re.search(pattern, report) for name, pattern in _FIGURES.items()}
    told = {name: float(match[1]) for name, match in found.items() if match is not None}
    return told or {"perf_analyzer": "absent: its report has no figures"}


def _flags(target: Running, concurrency: int, seconds: float) -> Sequence[str]:
    # It measures three windows of this length, and is to call them alike however they are.
    return (
        *("-m", MODEL, "-u", f"127.0.0.1:{target.port('grpc')}", "-i", "grpc", "--shape=tokens:1", "--input-data=zero"),
        *(f"--concurrency-range={concurrency}", f"--sequence-length={SEQUENCE_LENGTH}"),
        *("-p", str(round(seconds * 1000)), "-r", "3", "-s", "999"),
    )


def _run(command: list[str]) -> str:
    libraries = Path(command[0]).parents[1].glob("lib/python*/site-packages/nvidia/cuda_runtime/lib")
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=MOST_SECONDS,
        check=True,
    )  # fmt: skip
    return done.stdout
