"""Runs an import in a process of its own: any file may ask for all memory, loop forever, or crash onnxruntime.

Knows processes and their limits, not what is done inside.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate_export.importing.command import Said

_MODULE = "tidegate_export.importing"


def run_limited(said: Said, *, memory_mb: int, seconds: float) -> tuple[str, bool]:
    """Run the import; return what to tell, and whether there is a bundle.

    Args:
        said: The command line.
        memory_mb: Address space that the import may take, in MiB.
        seconds: After so long it is ended.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", _MODULE],
            input=json.dumps(said),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env=environment,
            preexec_fn=partial(_limit, memory_mb << 20),
        )
    except subprocess.TimeoutExpired:
        return f"the graph does not come to an end within {seconds:g} seconds (--seconds)", False
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"onnxruntime crashed on this graph ({name}): it is damaged, or asks for more than --memory-mb", False
    try:
        reply = json.loads(done.stdout.rpartition("\n{")[2].join(("{", "")) if "\n{" in done.stdout else done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"the import failed: {last}", False
    return reply["told"], reply["is_done"]


def _limit(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
