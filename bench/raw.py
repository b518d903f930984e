"""The raw runtime, measured in a process of its own: see bench/floors/raw.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.floors.raw import Rate
from bench.processes import BUNDLES, ROOT, environment
from bench.sessions import MODEL


def bundle_of(model: str = MODEL, bundles: Path = BUNDLES) -> Path:
    """The highest version's directory, which is the one that a server takes by default."""
    return max((bundles / model).iterdir(), key=lambda version: int(version.name))


def raw_steps(batch: int, seconds: float, *, length: int = 1, bundle: Path | None = None) -> Rate:
    """Step ``batch`` rows, ``length`` steps a run."""
    return _run(bundle or bundle_of(), "steps", seconds, "--batch", str(batch), "--length", str(length))


def raw_sequences(lengths: list[int], seconds: float, bundle: Path | None = None) -> Rate:
    """Whole sequences of these lengths in the best batches by hand."""
    return _run(bundle or bundle_of(), "sequences", seconds, "--lengths", ",".join(map(str, lengths)))


def _run(bundle: Path, what: str, seconds: float, *arguments: str) -> Rate:
    command = [sys.executable, "-m", "bench.floors.raw", what, "--bundle", str(bundle), "--seconds", str(seconds)]
    result = subprocess.run([*command, *arguments], cwd=ROOT, env=environment(), check=True, stdout=subprocess.PIPE)
    return Rate(**json.loads(result.stdout))
