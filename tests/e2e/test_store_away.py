"""A store that answers and cannot be written: readiness, health, metrics, the log and every refusal say the same, and
the server recovers by itself.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.bundles import write_tiny_bundle
from tests.disk import fill, small_disk
from tests.redis import RedisServer, redis_server
from tests.servers import RunningServer, serving

MODEL = "tiny"
MB = 2**20
AWAY, BACK = "the store is away", "the store is back"

Trouble = Callable[[], Callable[[], object]]
"""Makes the store one that cannot be written; what it returns takes that back."""


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "bundles", MODEL)
    return tmp_path / "bundles"


def told(server: RunningServer) -> tuple[object, ...]:
    """What /readyz, gRPC health of all and of one service, /v2 and the metrics say."""
    with httpx.Client(base_url=server.http) as http, grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        checked = [
            health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
            for name in ("", "tidegate.v1.Sessions")
        ]
        ready, open_ready = http.get("/readyz"), http.get("/v2/health/ready")
        figures = dict(
            line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if not line.startswith("#")
        )
        up = next(value for name, value in figures.items() if name.startswith("tidegate_store_up"))
    return (
        ready.status_code,
        ready.json()["status"],
        open_ready.status_code,
        *checked,
        float(up),
        float(figures["tidegate_ready"]),
    )


STATUS = health_pb2.HealthCheckResponse
UP = (200, "ready", 200, STATUS.SERVING, STATUS.SERVING, 1.0, 1.0)
DOWN = (503, "store away", 503, STATUS.NOT_SERVING, STATUS.NOT_SERVING, 0.0, 0.0)


def check(server: RunningServer, trouble: Trouble, reason: str) -> None:
    with httpx.Client(base_url=server.http, timeout=30) as http:

        def open_session(**wish: object) -> httpx.Response:
            return http.post("/v1/sessions", json={"model": MODEL, **wish})

        def step(session: str, position: int) -> httpx.Response:
            return http.post(f"/v1/sessions/{session}:step", json={"tokens": [1], "position": position})

        alone = open_session().json()["id"]
        assert open_session(id="s", durable=True).status_code == 201
        assert step("s", 0).json()["position"] == 1
        assert told(server) == UP
        take_back = trouble()
        for _ in range(2):
            refused = step("s", 1)
            assert (refused.status_code, refused.json()["reason"]) == (503, reason)
            assert told(server) == DOWN
        assert open_session(id="t").json()["reason"] == reason
        assert step(alone, 0).json()["position"] == 1
        take_back()
        server.wait_for(f"{BACK}…")
        assert told(server) == UP
        assert step("s", 1).json()["position"] == 2
    warnings = [event["event"] for event in server.events if "store is" in event["event"]]
    assert [AWAY in warnings[0], BACK in warnings[1], len(warnings)] == [True, True, 2]


@contextlib.contextmanager
def on_redis(bundles: Path, *options: str) -> Iterator[tuple[RedisServer, RunningServer]]:
    with redis_server(*options) as redis, serving(bundles, "--store", redis.url, "--store-timeout", "1") as server:
        yield redis, server


def configured(redis: RedisServer, name: str, value: int, usual: int) -> Trouble:
    def make() -> Callable[[], object]:
        redis.call("CONFIG", "SET", name, value)
        return lambda: redis.call("CONFIG", "SET", name, usual)

    return make


def test_a_primary_that_became_a_replica(bundles: Path) -> None:
    with on_redis(bundles) as (redis, server):

        def demote() -> Callable[[], object]:
            redis.call("REPLICAOF", "127.0.0.1", "9")
            return lambda: redis.call("REPLICAOF", "NO", "ONE")

        check(server, demote, "STORE_AWAY")


@pytest.mark.parametrize(
    ("name", "value", "usual", "reason"),
    [("maxmemory", 1, 0, "STORE_FULL"), ("min-replicas-to-write", 1, 0, "STORE_AWAY")],
)
def test_a_redis_that_takes_no_writes(bundles: Path, name: str, value: int, usual: int, reason: str) -> None:
    with on_redis(bundles) as (redis, server):
        check(server, configured(redis, name, value, usual), reason)


def test_a_user_who_may_write_no_more(bundles: Path) -> None:
    with on_redis(bundles) as (redis, server):

        def forbid() -> Callable[[], object]:
            redis.call("ACL", "SETUSER", "default", "-evalsha")
            return lambda: redis.call("ACL", "SETUSER", "default", "+evalsha")

        check(server, forbid, "STORE_AWAY")


def test_a_foreign_process_that_holds_the_file_locked(bundles: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(bundles, "--data-dir", str(data), "--store-timeout", "0.5") as server:

        def lock() -> Callable[[], object]:
            connection = sqlite3.connect(data / "sessions.sqlite3", isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            return connection.close

        check(server, lock, "STORE_AWAY")


def test_a_disk_without_room(bundles: Path, tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 8 * MB) as disk,
        serving(bundles, "--data-dir", str(disk)) as server,
    ):
        check(server, lambda: fill(disk, 0).unlink, "STORE_FULL")
