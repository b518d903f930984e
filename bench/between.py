"""What a change of the service costs: two source trees of it, served side by side, loaded in turns.

    git archive COMMIT service bundles | tar x -C /tmp/before
    python -m bench.between /tmp/before . --rounds 9

Each figure is the processor time of a step, and the median of the rounds' ratios with their spread: what disturbs the
machine for a while disturbs both.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.client import Figures, Mode, build, drive
from bench.measure import interleaved
from bench.processes import Running, server
from bench.sessions import MODEL, numbered, sessions


class Load(NamedTuple):
    """How steps are sent: ``connections`` at once, each with ``lanes`` sessions in a message."""

    mode: Mode
    connections: int
    lanes: int = 1

    @property
    def options(self) -> dict[str, float | str]:
        lanes = {"lanes": self.lanes} if self.lanes > 1 else {}
        return {"connections": self.connections, "model": MODEL, **lanes}

    def named(self, target: Running) -> AbstractContextManager[list[str]]:
        """What is stepped: sequences where it is the Open Inference Protocol that is spoken."""
        count = self.connections * self.lanes
        return nullcontext(numbered(count)) if self.mode.startswith("infer") else sessions(target, count)


LOADS = (
    Load("unary", 64), Load("stream", 64), Load("http", 64), Load("websocket", 64), Load("columnar", 2, 256),
    Load("infer", 64), Load("infer-stream", 64),
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="tree with service/ and bundles/")
    parser.add_argument("after", type=Path, help="tree with service/ and bundles/")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--loads", nargs="*", default=[load.mode for load in LOADS])
    asked = parser.parse_args()
    build()
    with ExitStack() as stack:
        trees = {name: stack.enter_context(_serving(getattr(asked, name))) for name in ("before", "after")}
        print("| load | before, µs a step | after | ratio of rounds, median (least, greatest) |")  # noqa: T201
        print("| --- | ---: | ---: | ---: |")  # noqa: T201
        for load in (load for load in LOADS if load.mode in asked.loads):
            print(_row(load, trees, asked.rounds, asked.seconds), flush=True)  # noqa: T201


def _row(load: Load, trees: dict[str, Running], rounds: int, seconds: float) -> str:
    drives = {name: partial(_drive, load, running, seconds) for name, running in trees.items()}
    found = interleaved(rounds, drives)
    before, after = (found.median(name, lambda figures: figures.server_us_per_step) for name in ("before", "after"))
    ratio = found.ratio("after", "before", lambda figures: figures.server_us_per_step)
    name = f"{load.mode}, {load.connections}" + (f" × {load.lanes}" if load.lanes > 1 else "")
    return f"| {name} | {before:.1f} | {after:.1f} | {ratio.median:.3f} ({ratio.low:.3f}, {ratio.high:.3f}) |"


def _drive(load: Load, running: Running, seconds: float) -> Figures:
    with load.named(running) as ids:
        return drive(load.mode, running, {"warmup": 0.3, "seconds": seconds, **load.options}, ids)


@contextlib.contextmanager
def _serving(tree: Path) -> Iterator[Running]:
    """The service of that tree, whatever is installed."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str((tree / "service").resolve())
    try:
        with (
            tempfile.TemporaryDirectory(prefix="tidegate-bench-") as data,
            server("--data-dir", data, bundles=(tree / "bundles").resolve()) as running,
        ):
            yield running
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


if __name__ == "__main__":
    main()
