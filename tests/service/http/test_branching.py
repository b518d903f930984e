"""Branching over HTTP: what reaches the core, what comes back, and what is refused before it gets there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.service.http.scripted import SESSION_JSON, SNAPSHOT, ScriptedCore
from tidegate import errors
from tidegate.api import RestoreRequest
from tidegate.config import load_settings

Json = Any

AT = "/v1/sessions/s-1"
RESTORE = "/v1/sessions:restore"
LIMIT = 2**20


@pytest.mark.parametrize(
    ("body", "ids", "count", "num_forks"),
    [
        ({"ids": ["a", "b~2"]}, ["a", "b~2"], None, 2),
        ({"count": 3}, None, 3, 3),
        ({"ids": None, "count": 2}, None, 2, 2),
        ({}, None, None, 1),
    ],
)
async def test_a_fork(
    client: httpx.AsyncClient, service: ScriptedCore, body: Json, ids: Json, count: Json, num_forks: int
) -> None:
    reply = await client.post(f"{AT}:fork", json=body)
    assert (reply.status_code, reply.json()) == (200, {"sessions": [SESSION_JSON] * num_forks})
    assert service.calls == [("fork", "s-1", ids, count)]


@pytest.mark.parametrize(("body", "name", "told"), [({"name": "x.1"}, "x.1", "x.1"), ({}, None, "c-3")])
async def test_a_checkpoint(
    client: httpx.AsyncClient, service: ScriptedCore, body: Json, name: str | None, told: str
) -> None:
    reply = await client.post(f"{AT}:checkpoint", json=body)
    assert (reply.status_code, reply.json()) == (200, {"checkpoint": told, "position": 3})
    assert service.calls == [("checkpoint", "s-1", name)]


async def test_a_rewind(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    reply = await client.post(f"{AT}:rewind", json={"checkpoint": "c-1"})
    assert (reply.status_code, reply.json()) == (200, SESSION_JSON)
    assert service.calls == [("rewind", "s-1", "c-1")]


@pytest.mark.parametrize(("body", "version"), [({"version": "3"}, "3"), ({}, None)])
async def test_an_upgrade(client: httpx.AsyncClient, service: ScriptedCore, body: Json, version: str | None) -> None:
    reply = await client.post(f"{AT}:upgrade", json=body)
    assert (reply.status_code, reply.json()) == (200, SESSION_JSON)
    assert service.calls == [("upgrade", "s-1", version)]


async def test_a_snapshot_is_a_file_of_bytes(client: httpx.AsyncClient) -> None:
    reply = await client.get("/v1/sessions/a~%22b/snapshot")
    assert (reply.status_code, reply.content) == (200, SNAPSHOT)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-disposition"] == 'attachment; filename="a~%22b.snapshot"'


@pytest.mark.parametrize(
    ("query", "wish"),
    [
        ("", RestoreRequest()),
        ("?id=new&durable=true", RestoreRequest("new", durable=True)),
        ("?drift=false", RestoreRequest(drift=False)),
        ("?ttl_seconds=60&idle_seconds=1.5", RestoreRequest(ttl_seconds=60, idle_seconds=1.5)),
    ],
)
async def test_a_restoration_is_created_at_its_place(
    client: httpx.AsyncClient, service: ScriptedCore, query: str, wish: RestoreRequest
) -> None:
    reply = await client.post(RESTORE + query, content=SNAPSHOT)
    assert (reply.status_code, reply.json()) == (201, SESSION_JSON)
    assert reply.headers["location"] == AT
    assert service.calls == [("restore", SNAPSHOT, wish)]


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("id=a%2Fb", "id: "),
        ("durable=perhaps", "durable: "),
        ("ttl_seconds=0", "ttl_seconds: "),
        ("ttl_seconds=inf", "ttl_seconds: "),
        ("idle_seconds=soon", "idle_seconds: "),
        ("seed=7", "unknown key 'seed'"),
    ],
)
async def test_a_bad_query_is_named(
    client: httpx.AsyncClient, service: ScriptedCore, query: str, complaint: str
) -> None:
    reply = await client.post(f"{RESTORE}?{query}", content=SNAPSHOT)
    assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_INPUT")
    assert reply.json()["detail"].startswith(complaint)
    assert service.calls == []


@pytest.mark.parametrize("verb", ["fork", "checkpoint", "upgrade"])
async def test_who_wishes_for_nothing_needs_no_body(
    client: httpx.AsyncClient, service: ScriptedCore, verb: str
) -> None:
    assert (await client.post(f"{AT}:{verb}")).status_code == 200
    assert set(service.calls[0][2:]) == {None}


BAD_BODIES: list[tuple[str, Json, str]] = [
    ("fork", {"ids": []}, "ids: "),
    ("fork", {"ids": ["a", "b/c"]}, "ids.1: "),
    ("fork", {"ids": "a"}, "ids: "),
    ("fork", {"count": 0}, "count: "),
    ("fork", {"count": 2.0}, "count: "),
    ("fork", {"count": 2**32}, "count: "),
    ("checkpoint", {"name": ""}, "name: "),
    ("checkpoint", {"name": 3}, "name: "),
    ("rewind", {}, "checkpoint: "),
    ("upgrade", {"version": 2}, "version: "),
    *((verb, {"sise": 1}, "unknown key 'sise'") for verb in ("fork", "checkpoint", "upgrade")),
]


@pytest.mark.parametrize(("verb", "body", "complaint"), BAD_BODIES)
async def test_a_bad_body_is_named(
    client: httpx.AsyncClient, service: ScriptedCore, verb: str, body: Json, complaint: str
) -> None:
    reply = await client.post(f"{AT}:{verb}", json=body)
    assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_INPUT")
    assert reply.json()["detail"].startswith(complaint)
    assert service.calls == []


REQUESTS = [
    *(("POST", f"{AT}:{verb}", b"{}") for verb in ("fork", "checkpoint", "upgrade")),
    ("POST", f"{AT}:rewind", b'{"checkpoint": "c-1"}'),
    ("GET", f"{AT}/snapshot", b""),
    ("POST", RESTORE, SNAPSHOT),
]


# What each class of errors becomes is test_errors.py's business.
@pytest.mark.parametrize(("method", "path", "content"), REQUESTS)
async def test_each_route_tells_the_error_of_the_core(
    client: httpx.AsyncClient, service: ScriptedCore, method: str, path: str, content: bytes
) -> None:
    service.error = errors.UnavailableError("m", reason="STORE_AWAY", retry_after=2.5)
    reply = await client.request(method, path, content=content)
    assert (reply.status_code, reply.json()["reason"]) == (503, "STORE_AWAY")
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["retry-after"] == "3"


@pytest.mark.parametrize("path", [f"{AT}:fork", RESTORE])
class TestSizeLimit:
    """A document that may be missing, and a body that is none."""

    @pytest.fixture
    async def service(self) -> ScriptedCore:
        return ScriptedCore(load_settings({"max_message_mb": 1}))

    async def test_at_the_limit_is_read(self, client: httpx.AsyncClient, service: ScriptedCore, path: str) -> None:
        reply = await client.post(path, content=b"{}".ljust(LIMIT))
        assert reply.status_code in {200, 201}
        assert len(service.calls) == 1

    async def test_a_declared_size_is_refused_unread(
        self, client: httpx.AsyncClient, service: ScriptedCore, path: str
    ) -> None:
        reply = await client.post(path, content=b" " * (LIMIT + 1))
        assert (reply.status_code, reply.json()["reason"]) == (413, "TOO_LARGE")
        assert service.calls == []

    async def test_an_undeclared_size_is_refused_while_reading(
        self, client: httpx.AsyncClient, service: ScriptedCore, path: str
    ) -> None:
        num_sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal num_sent
            while True:
                num_sent += 1
                yield b" " * 65_536

        reply = await client.post(path, content=endless())
        assert reply.status_code == 413
        assert num_sent <= LIMIT // 65_536 + 2
        assert service.calls == []
