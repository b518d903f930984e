"""Whoever reads the log stops reading: the server serves on, and ends when it is told to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.bundles import write_tiny_bundle
from tests.servers import COMMAND, bare_environment

REQUESTS = 300
"""Each has a line in the access log: twenty times what the pipe holds."""


class StalledLog:
    """A server whose log is read only when somebody asks for lines."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._rest = b""
        self.events: list[dict[str, object]] = []
        while not any(event["event"] == "ready" for event in self.events):
            self._read()
        self.http = str(next(event["http"] for event in self.events if event["event"] == "ready"))

    def read_to_the_end(self) -> list[dict[str, object]]:
        while self._read():
            pass
        assert self._rest == b""
        return self.events

    def close(self) -> None:
        self._file.close()

    def _read(self) -> bool:
        data = self._file.read(4096)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.events += map(json.loads, lines)
        return bool(data)


@contextlib.contextmanager
def serving_to_a_small_pipe(bundles: Path, data: Path, *flags: str) -> Iterator[StalledLog]:
    """Standard output and standard error are one pipe of a page, as where a container runtime reads both."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    where = ("--bundles", str(bundles), "--data-dir", str(data), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    command = [*COMMAND, "serve", *where, "--log-format", "json", "--access-log", *flags]
    with subprocess.Popen(command, stdout=writer, stderr=writer, env=bare_environment()) as process:
        os.close(writer)
        try:
            with contextlib.closing(StalledLog(process, reader)) as server:
                yield server
        finally:
            process.kill()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_log_that_nobody_reads_stops_neither_requests_nor_the_end(tmp_path: Path, workers: str) -> None:
    write_tiny_bundle(tmp_path / "bundles")
    with serving_to_a_small_pipe(tmp_path / "bundles", tmp_path / "data", "--workers", workers) as server:
        with httpx.Client(base_url=server.http) as client:
            client.post("/v1/sessions", json={"model": "tiny", "id": "s"}).raise_for_status()
            for position in range(REQUESTS):
                reply = client.post("/v1/sessions/s:step", json={"text": "H", "position": position})
                assert reply.status_code == 200
            assert client.get("/livez").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 0
        events = server.read_to_the_end()
    assert all(isinstance(event, dict) for event in events), "each line that was written is whole"
    assert sum(event["event"] == "request" for event in events) > 0
