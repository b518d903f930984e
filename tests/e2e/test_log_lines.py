"""With --log-format json every line that a server writes is an object, wherever it comes from and whatever happens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import pytest

from tests.bundles import write_tiny_bundle
from tests.servers import COMMAND, bare_environment

NOISE = [b"\x00\xff" * 50, b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64]


def make_noise(address: tuple[str, int]) -> None:
    """What port scanners send."""
    for noise in NOISE:
        with socket.create_connection(address) as connection:
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass


@pytest.mark.parametrize("workers", [1, 2])
def test_every_line_is_an_object_whatever_happens(tmp_path: Path, workers: int) -> None:
    write_tiny_bundle(tmp_path / "bundles")
    broken = write_tiny_bundle(tmp_path / "bundles", "broken")
    (broken / "model.onnx").write_bytes(b"half")
    where = ("--bundles", str(tmp_path / "bundles"), "--data-dir", str(tmp_path / "data"))
    ports = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--workers", str(workers))
    command = [*COMMAND, "serve", *where, *ports, "--log-format", "json", "--log-level", "debug", "--access-log"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=bare_environment()
    ) as process:
        assert process.stdout is not None
        events: list[dict[str, Any]] = []

        def wait_for(event: str) -> dict[str, Any]:
            for line in process.stdout or ():
                events.append(json.loads(line))
                if events[-1]["event"] == event:
                    return events[-1]
            raise AssertionError(f"no {event!r} in {events}")

        try:
            ready = wait_for("ready")
            while workers > 1 and "workers" not in ready:
                ready = wait_for("ready")
            http, rpc = urlsplit(ready["http"]), urlsplit(f"//{ready['grpc']}")
            for address in (http, rpc):
                make_noise((address.hostname or "", address.port or 0))
            assert httpx.post(f"{ready['http']}/v1/models/tiny:predict", content=b"{").status_code == 400
            with grpc.insecure_channel(ready["grpc"]) as channel:
                call = channel.unary_unary("/tidegate.v1.Models/List", lambda raw: raw, lambda raw: raw)
                with pytest.raises(grpc.RpcError):
                    call(b"\xff\xff\xff", timeout=60)
            if workers > 1:
                victim = next(iter(ready["workers"].values()))
                os.kill(victim, signal.SIGSEGV)  # the stack of its threads is logged line by line
                assert wait_for("worker ended")["code"] == -signal.SIGSEGV
                assert any("Segmentation fault" in event["event"] for event in events)
                wait_for("worker ready")
            process.send_signal(signal.SIGTERM)
            events += [json.loads(line) for line in process.stdout]
            assert process.wait() == 0
        finally:
            process.kill()
    assert any("broken" in event["event"] for event in events)
    assert {"event", "level", "logger", "timestamp"} <= set.intersection(*(set(event) for event in events))
