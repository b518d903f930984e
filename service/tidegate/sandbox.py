"""Runs a function in a process of its own, with limits of time and memory: a graph may never end, ask for all memory,
or crash onnxruntime.

Knows processes and their limits, not what is done inside. What goes in and what comes out is JSON.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

from tidegate.errors import BundleError

Json = Any

OUT_OF_MEMORY = "OUT_OF_MEMORY"
TIME_LIMIT = "TIME_LIMIT"
CRASHED = "CRASHED"

MEMORY_MB = 8192
SECONDS = 600.0


class ResourceLimits(NamedTuple):
    """What the process may take: MiB of memory, and seconds."""

    memory_mb: int = MEMORY_MB
    seconds: float = SECONDS


def run_limited(function: str, argument: Json, limits: ResourceLimits, *, is_quiet: bool = True) -> Json:
    """Return what ``function``, as ``module:name``, makes of ``argument`` in a process of its own.

    Args:
        function: Takes and returns what JSON can hold.
        argument: What it is given.
        limits: Of its process.
        is_quiet: Whether what it prints goes nowhere; else it goes where this process prints.

    Raises:
        BundleError: The function's own; or reason TIME_LIMIT, OUT_OF_MEMORY or CRASHED.
    """
    with TemporaryFile() as reply, TemporaryFile() as printed:
        command = [sys.executable, "-P", "-m", "tidegate.sandbox", function, str(reply.fileno())]
        process = subprocess.Popen(
            [*command, str(limits.memory_mb), str(limits.seconds)],
            stdin=subprocess.PIPE,
            stdout=printed if is_quiet else None,
            stderr=printed if is_quiet else None,
            pass_fds=[reply.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} if is_quiet else None,
        )
        with process:
            try:
                process.communicate(json.dumps(argument).encode(), timeout=limits.seconds)
            except subprocess.TimeoutExpired:
                raise _too_late(limits) from None
            finally:
                process.kill()
        return _result(process.returncode, reply, printed, limits)


def _result(code: int, reply: IO[bytes], printed: IO[bytes], limits: ResourceLimits) -> Json:
    if code == -signal.SIGXCPU:
        raise _too_late(limits)
    if code == -signal.SIGKILL:
        raise BundleError("it was killed: the machine ran out of memory, most likely", reason=OUT_OF_MEMORY)
    if code < 0:
        raise BundleError(
            f"it crashed ({signal.Signals(-code).name}): the graph is damaged, or asks for more than --memory-limit "
            f"({limits.memory_mb} MiB)",
            reason=CRASHED,
        )
    reply.seek(0)
    try:
        document = json.load(reply)
    except ValueError:
        printed.seek(0)
        last = (printed.read().decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise BundleError(f"it failed: {last}", reason=CRASHED) from None
    if "error" not in document:
        return document["result"]
    message, reason = document["error"]
    if reason == OUT_OF_MEMORY:
        message = f"{message} (--memory-limit: {limits.memory_mb} MiB)"
    raise BundleError(message, reason=reason)


def _too_late(limits: ResourceLimits) -> BundleError:
    return BundleError(
        f"the graph does not come to an end within {limits.seconds:g} seconds (--time-limit)", reason=TIME_LIMIT
    )


# ---- inside


def _run_inside(function: Callable[[Json], Json]) -> Json:
    try:
        return {"result": function(json.load(sys.stdin))}
    except BundleError as error:
        return {"error": [error.message, error.reason]}
    except MemoryError:
        return {"error": ["the graph asks for more memory than there is", OUT_OF_MEMORY]}


def _limit(memory_mb: int, seconds: float) -> None:
    """Limit this process. Its memory is what it may write to: libraries reserve addresses that they never use."""
    _lower(resource.RLIMIT_DATA, memory_mb << 20)
    _lower(resource.RLIMIT_CORE, 0)
    # Whoever started it ends it before; and where that one is no more, this does.
    _lower(resource.RLIMIT_CPU, math.ceil(seconds + 1) * (os.cpu_count() or 1))
    with contextlib.suppress(OSError):  # where memory runs out all the same, it is this process that goes
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _lower(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def main() -> None:
    """Run what the arguments name, within the limits that they say."""
    function, descriptor, memory_mb, seconds = sys.argv[1:]
    _limit(int(memory_mb), float(seconds))
    module, _, name = function.partition(":")
    result = _run_inside(getattr(import_module(module), name))
    with open(int(descriptor), "w", encoding="utf-8") as reply:  # noqa: PTH123 - of a descriptor
        json.dump(result, reply)


if __name__ == "__main__":
    main()
