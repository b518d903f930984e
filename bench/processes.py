"""Servers and floors as processes of their own: started, waited for by their log, asked what they cost, ended.

Knows command lines and /proc. Knows nothing of load or of what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUNDLES = ROOT / "bundles"

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Running:
    """A process that is ready: its id, what it said when it was, and after how many seconds."""

    pid: int
    event: Event
    ready_after: float

    def port(self, protocol: str) -> int:
        """Where it listens for ``http`` or ``grpc``; a floor has one port."""
        address = self.event.get(protocol, self.event.get("port"))
        return int(str(address).rsplit(":", 1)[-1])

    @property
    def resident_bytes(self) -> int:
        """Memory that the process occupies now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def server(*flags: str, bundles: Path = BUNDLES) -> Iterator[Running]:
    """``tidegate serve`` on free ports."""
    # Through the interpreter and not the installed script, so that there is one process whose id is known.
    command = [sys.executable, "-c", "from tidegate.cli import main; main()", "serve", "--bundles", str(bundles)]
    where = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--log-format", "json", "--log-level", "info")
    with _started([*command, *where, *flags]) as running:
        yield running


@contextlib.contextmanager
def floor(name: str, *arguments: str) -> Iterator[Running]:
    """``bench/floors/<name>.py``."""
    with _started([sys.executable, "-m", f"bench.floors.{name}", *arguments]) as running:
        yield running


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator[Running]:
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        # Read to the end, for a process whose pipes are full stands still. Nobody looks at it.
        readers = [threading.Thread(target=deque, args=(stream, 0)) for stream in (process.stdout, process.stderr)]
        try:
            event = _wait_ready(process)
            ready_after = time.perf_counter() - begin
            for reader in readers:
                reader.start()
            yield Running(process.pid, event, ready_after)
        finally:
            process.kill()
            for reader in readers:
                if reader.ident is not None:
                    reader.join()


def _wait_ready(process: subprocess.Popen[str]) -> Event:
    assert process.stdout is not None
    for line in process.stdout:
        event: Event = json.loads(line)
        if event["event"] == "ready":
            return event
    assert process.stderr is not None
    raise RuntimeError(f"{process.args!r} ended before it was ready: {process.stderr.read()[-2000:]}")


def environment() -> dict[str, str]:
    """The environment without settings of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
