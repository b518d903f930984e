"""A server in a process of its own, as users start it; its log tells what happened, so nobody sleeps or polls."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

COMMAND = (sys.executable, "-c", "from tidegate.cli import main; main()")

Event = dict[str, Any]


class RunningServer:
    """A started server.

    Attributes:
        ready: The event that it told when it was ready. Others may come before it and after it.
        http: Its URL; ``grpc``: HOST:PORT.
        events: All that were read so far, whichever was waited for.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self._log: IO[str] = process.stdout
        self.events: list[Event] = []
        self.ready = self.wait_for("ready")
        self.http: str = self.ready["http"]
        self.grpc: str = self.ready["grpc"]

    def wait_for(self, event: str) -> Event:
        """The next log line of that event, or of one that begins so where it ends in …; AssertionError where the log
        ends before.
        """
        for line in self._log:
            found: Event = json.loads(line)
            self.events.append(found)
            if found["event"] == event or (event.endswith("…") and found["event"].startswith(event[:-1])):
                return found
        raise AssertionError(f"no {event!r} in {self.events}")

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Read the log to its end; return the exit code."""
        self.events += [json.loads(line) for line in self._log]
        return self.process.wait()


@contextlib.contextmanager
def serving(bundles: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[RunningServer]:
    """Start `tidegate serve` on free ports and end it after the block, whatever happened there."""
    where = ("--bundles", str(bundles), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--log-format", "json")
    with (
        tempfile.TemporaryDirectory() as data,
        subprocess.Popen(
            [*COMMAND, "serve", *where, "--data-dir", data, *flags],
            stdout=subprocess.PIPE,
            text=True,
            env=bare_environment() if environment is None else environment,
        ) as process,
    ):
        try:
            yield RunningServer(process)
        finally:
            process.kill()


def run_tidegate(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    environment = {**bare_environment(), **variables}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=200, env=environment
    )


def bare_environment() -> dict[str, str]:
    """The environment without settings of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
