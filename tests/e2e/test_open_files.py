"""A server whose connections are all taken; one without descriptors says so once, and recovers."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.bundles import write_tiny_bundle
from tests.servers import RunningServer, serving
from tidegate.client import Client


@contextmanager
def idle_connections(server: RunningServer, front: str) -> Iterator[None]:
    """Forty of them, at one of the server's addresses."""
    address = urlsplit(server.http if front == "http" else f"//{server.grpc}")
    with ExitStack() as idle:
        for _ in range(40):
            idle.enter_context(socket.create_connection((address.hostname or "", address.port or 0)))
        yield


def check_serving(server: RunningServer) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(retries=10)) as http:
        assert http.get(f"{server.http}/readyz").status_code == 200
    with Client(server.grpc) as client:
        assert client.predict("tiny", ["Hello"]).predictions[0].length == 5


@pytest.mark.parametrize("front", ["http", "grpc"])
def test_who_takes_all_connections_of_an_address_takes_no_other(tmp_path: Path, front: str) -> None:
    write_tiny_bundle(tmp_path / "bundles")
    with serving(tmp_path / "bundles", "--max-connections", "8") as server:
        other = f"http://{server.grpc}" if front == "http" else server.http
        with idle_connections(server, front):
            assert httpx.get(f"{other}/readyz").status_code == 200
        check_serving(server)


@pytest.mark.parametrize("front", ["http", "grpc"])
def test_a_server_without_descriptors_says_so_and_recovers(tmp_path: Path, front: str) -> None:
    write_tiny_bundle(tmp_path / "bundles")
    with serving(tmp_path / "bundles") as server:
        pid = server.process.pid
        num_open = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
        # At its start it would have let in fewer connections.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_open + 12, num_open + 12))
        with idle_connections(server, front):
            server.wait_for("all connections are lost…")
        check_serving(server)
        assert server.process.poll() is None
        server.process.terminate()
        assert server.wait() == 0
        told = [event for event in server.events if str(event["event"]).startswith("all connections are lost")]
        assert len(told) == 1
