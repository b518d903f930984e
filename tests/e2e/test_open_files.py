"""A server that has no file descriptor left says so, once, and serves on when it has some again."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.bundles import write_tiny_bundle
from tests.servers import serving
from tidegate.client import Client


@pytest.mark.parametrize("front", ["http", "grpc"])
def test_a_server_without_descriptors_says_so_and_recovers(tmp_path: Path, front: str) -> None:
    write_tiny_bundle(tmp_path / "bundles")
    with serving(tmp_path / "bundles") as server:
        pid = server.process.pid
        num_open = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_open + 12, num_open + 12))
        address = urlsplit(server.http if front == "http" else f"//{server.grpc}")
        with ExitStack() as idle:
            for _ in range(40):
                idle.enter_context(socket.create_connection((address.hostname or "", address.port or 0)))
            told = server.wait_for("out of file descriptors…")
            assert told["limit"] == num_open + 12
        server.wait_for("there are file descriptors again")
        assert httpx.get(f"{server.http}/readyz").status_code == 200
        with Client(server.grpc) as client:
            assert client.predict("tiny", ["Hello"]).predictions[0].length == 5
        assert server.process.poll() is None
        server.process.terminate()
        server.wait()
        out = [event for event in server.events if str(event["event"]).startswith("out of file descriptors")]
        assert len(out) == 1
