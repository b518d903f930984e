"""A Redis server in a process of its own, that tests may kill, pause and start again."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from tests.programs import program


class RedisServer:
    """A Redis on a port of 127.0.0.1 that stays the same over restarts, as does its directory.

    Attributes:
        port: Where it listens.
        url: The same for a `RedisStore`.
        directory: What it keeps, and what is gone with the block.
        process: The running server.
    """

    process: subprocess.Popen[str]

    def __init__(self, directory: Path, options: tuple[str, ...], port: int) -> None:
        where = ("--dir", str(directory), "--bind", "127.0.0.1", "--logfile", "")
        self._command = [program("redis-server"), *where, *options]
        self.directory = directory
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self.start()

    def start(self) -> None:
        """Start it and wait until it has loaded what it kept."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.wait_for("Ready to accept connections")

    def wait_for(self, words: str) -> None:
        """Read its log up to a line with these words; AssertionError where it ends before."""
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if words in line:
                return
        self._end()
        raise AssertionError(f"no {words!r} in what Redis logged: {''.join(said)}")

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self._end()

    def restart(self) -> None:
        """End it with SIGKILL, then start it again on what it kept."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop its clock: connections stay open, nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def call(self, *command: str | bytes | float) -> Any:
        """Run a command in database 0 by a client of its own."""
        with redis.Redis(port=self.port) as client:
            return client.execute_command(*command)

    def run_for_ever(self) -> None:
        """Run a script without end, until another connection kills it."""
        with contextlib.suppress(redis.ResponseError):
            self.call("EVAL", "while true do end", 0)

    def is_busy(self) -> bool:
        """Whether it runs a script for longer than it may."""
        try:
            self.call("PING")
        except redis.ResponseError as error:
            return "BUSY" in str(error)
        return False

    def _end(self) -> None:
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def redis_server(
    *options: str, appendonly: bool = True, appendfsync: str = "always", port: int | None = None, tls: bool = False
) -> Iterator[RedisServer]:
    """Start Redis in a directory of its own; end it and remove that after the block, whatever happened there.

    Args:
        options: Further arguments of `redis-server`.
        appendonly: Whether it keeps what it was told in an append-only file; it makes no snapshots.
        appendfsync: When that file goes to the disk: always, everysec or no.
        port: Where to listen; a free one by default.
        tls: Whether it speaks nothing but TLS there; the options name the certificate.
    """
    port = port or free_port()
    listening = ("--port", "0", "--tls-port", str(port)) if tls else ("--port", str(port))
    kept = ("--save", "", "--appendonly", "yes" if appendonly else "no", "--appendfsync", appendfsync)
    with tempfile.TemporaryDirectory(prefix="tidegate-redis-") as directory:
        server = RedisServer(Path(directory), (*kept, *listening, *options), port)
        try:
            yield server
        finally:
            server.kill()


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
