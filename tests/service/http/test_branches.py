"""Branching over the real core: a branch goes on like the uncut sequence, and each refusal tells its reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.bundles import write_tiny_bundle
from tests.service.serving import serving
from tidegate.config import load_settings
from tidegate.service import Service
from tidegate.transports.http.app import create_app

Json = Any

TEXT, REST = "ROMEO: what ", "light"


@pytest.fixture
def store() -> str:
    return "sqlite"


@pytest.fixture
async def core(tmp_path: Path, store: str) -> AsyncIterator[Service]:
    write_tiny_bundle(tmp_path)
    write_tiny_bundle(tmp_path, version="2", seed=1)
    write_tiny_bundle(tmp_path, version="3", seed=2, hidden=8)
    async with serving(tmp_path, data_dir=tmp_path / "data", store=store, store_timeout=30) as service:
        yield service


@pytest.fixture
def app(core: Service) -> FastAPI:
    return create_app(core)


@pytest.fixture(params=[False, True], ids=["ephemeral", "durable"])
async def session(client: httpx.AsyncClient, request: pytest.FixtureRequest) -> str:
    """A session of version 1 after TEXT."""
    name = await opened(client, durable=request.param)
    await step(client, name, TEXT)
    return name


async def opened(client: httpx.AsyncClient, **wishes: Json) -> str:
    reply = await client.post("/v1/sessions", json={"model": "tiny", "version": "1", **wishes})
    assert reply.status_code == 201
    return str(reply.json()["id"])


async def step(client: httpx.AsyncClient, session: str, text: str) -> Json:
    reply = await client.post(f"/v1/sessions/{session}:step", json={"text": text, "every_step": True})
    assert reply.status_code == 200
    return reply.json()


async def surprises(client: httpx.AsyncClient, session: str) -> list[float]:
    """What a session that is after TEXT says of REST."""
    reply = await step(client, session, REST)
    assert reply["position"] == len(TEXT + REST)
    return list(reply["prediction"]["surprise"]["steps"])


async def expected(client: httpx.AsyncClient) -> Json:
    """The same, of the uncut sequence."""
    body = {"sequences": [{"text": TEXT + REST}], "every_step": True, "version": "1"}
    reply = await client.post("/v1/models/tiny:predict", json=body)
    steps = reply.json()["predictions"][0]["surprise"]["steps"]
    return pytest.approx(steps[len(TEXT) :], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("wish", [{"ids": ["a", "b"]}, {"count": 2}])
async def test_forks_go_on_each_by_itself(client: httpx.AsyncClient, session: str, wish: Json) -> None:
    reply = await client.post(f"/v1/sessions/{session}:fork", json=wish)
    forks = [fork["id"] for fork in reply.json()["sessions"]]
    assert len({session, *forks}) == 3
    for name in (*forks, session):
        assert await surprises(client, name) == await expected(client)


async def test_a_fork_is_repeated_by_its_ids(client: httpx.AsyncClient, session: str) -> None:
    first = await client.post(f"/v1/sessions/{session}:fork", json={"ids": ["a"]})
    await step(client, session, REST)
    again = await client.post(f"/v1/sessions/{session}:fork", json={"ids": ["a"]})
    assert (again.status_code, again.json()) == (200, first.json())


async def test_a_session_goes_back_to_where_it_was(client: httpx.AsyncClient, session: str) -> None:
    kept = (await client.post(f"/v1/sessions/{session}:checkpoint")).json()
    assert kept["position"] == len(TEXT)
    await step(client, session, "?")
    back = (await client.post(f"/v1/sessions/{session}:rewind", json={"checkpoint": kept["checkpoint"]})).json()
    assert (back["position"], back["checkpoints"]) == (len(TEXT), [kept["checkpoint"]])
    assert await surprises(client, session) == await expected(client)


@pytest.mark.parametrize("durable", ["true", "false"])
async def test_a_snapshot_goes_on_as_another_session(client: httpx.AsyncClient, session: str, durable: str) -> None:
    snapshot = (await client.get(f"/v1/sessions/{session}/snapshot")).content
    await step(client, session, "?")
    wishes = {"id": "again", "durable": durable, "ttl_seconds": "60"}
    reply = await client.post("/v1/sessions:restore", params=wishes, content=snapshot)
    assert (reply.status_code, reply.headers["location"]) == (201, "/v1/sessions/again")
    assert (reply.json()["position"], reply.json()["durable"]) == (len(TEXT), durable == "true")
    repeat = await client.post("/v1/sessions:restore", params=wishes, content=snapshot)
    assert (repeat.status_code, repeat.json()) == (201, reply.json())
    assert await surprises(client, "again") == await expected(client)


async def test_a_version_of_the_same_layout_takes_over(client: httpx.AsyncClient, session: str) -> None:
    reply = await client.post(f"/v1/sessions/{session}:upgrade", json={"version": "2"})
    assert (reply.status_code, reply.json()["version"], reply.json()["position"]) == (200, "2", len(TEXT))
    assert (await client.get(f"/v1/sessions/{session}")).json()["version"] == "2"
    assert await surprises(client, session) != await expected(client)


REFUSALS = [
    ("fork", {"ids": ["a"], "count": 2}, 400, "BAD_FORK"),
    ("fork", {"ids": ["a", "a"]}, 400, "BAD_FORK"),
    ("fork", {"count": 1_000_000}, 400, "BAD_FORK"),
    ("fork", {"ids": ["d~mine"]}, 400, "BAD_SESSION_ID"),
    ("fork", {"ids": ["taken"]}, 409, "SESSION_EXISTS"),
    ("rewind", {"checkpoint": "never"}, 404, "UNKNOWN_CHECKPOINT"),
    ("upgrade", {"version": "3"}, 412, "LAYOUT_DIFFERS"),
    ("upgrade", {}, 412, "LAYOUT_DIFFERS"),
    ("upgrade", {"version": "4"}, 404, "UNKNOWN_VERSION"),
]


@pytest.mark.parametrize(("verb", "body", "status", "reason"), REFUSALS)
async def test_a_refusal_tells_its_reason_and_leaves_the_session(
    client: httpx.AsyncClient, session: str, verb: str, body: Json, status: int, reason: str
) -> None:
    await opened(client, id="taken")
    reply = await client.post(f"/v1/sessions/{session}:{verb}", json=body)
    assert (reply.status_code, reply.json()["reason"]) == (status, reason)
    assert (await client.get(f"/v1/sessions/{session}")).json()["version"] == "1"
    assert await surprises(client, session) == await expected(client)


BRANCHING = [("fork", {}), ("checkpoint", {}), ("rewind", {"checkpoint": "c"}), ("upgrade", {}), ("snapshot", None)]


async def branch(client: httpx.AsyncClient, session: str, verb: str, body: Json) -> httpx.Response:
    if body is None:
        return await client.get(f"/v1/sessions/{session}/{verb}")
    return await client.post(f"/v1/sessions/{session}:{verb}", json=body)


@pytest.mark.parametrize(("verb", "body"), BRANCHING)
async def test_what_is_over_stays_over(client: httpx.AsyncClient, session: str, verb: str, body: Json) -> None:
    await client.delete(f"/v1/sessions/{session}")
    reply = await branch(client, session, verb, body)
    assert (reply.status_code, reply.json()["reason"]) == (410, "SESSION_CLOSED")


@pytest.mark.parametrize(("verb", "body"), BRANCHING)
@pytest.mark.parametrize("name", ["nobody", "d~nobody"])
async def test_what_never_was_is_unknown(client: httpx.AsyncClient, name: str, verb: str, body: Json) -> None:
    reply = await branch(client, name, verb, body)
    assert (reply.status_code, reply.json()["reason"]) == (404, "UNKNOWN_SESSION")


@pytest.mark.parametrize(
    ("altered", "status", "reason"),
    [
        (lambda data: b"", 400, "BAD_SNAPSHOT"),  # noqa: ARG005 - one of several
        (lambda data: data[:-1], 400, "BAD_SNAPSHOT"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), 400, "BAD_SNAPSHOT"),
        (lambda data: data + b"\0", 400, "BAD_SNAPSHOT"),
        (lambda data: data[:8] + b"\xff\xff" + data[10:], 412, "NEWER_FORMAT"),
    ],
    ids=["empty", "cut off", "altered", "longer", "newer"],
)
async def test_a_bad_snapshot_opens_nothing(
    client: httpx.AsyncClient, session: str, altered: Any, status: int, reason: str
) -> None:
    snapshot = (await client.get(f"/v1/sessions/{session}/snapshot")).content
    reply = await client.post("/v1/sessions:restore?id=again", content=altered(snapshot))
    assert (reply.status_code, reply.json()["reason"]) == (status, reason)
    assert (await client.get("/v1/sessions/again")).status_code == 404


async def test_a_snapshot_needs_its_model(client: httpx.AsyncClient, session: str, tmp_path: Path) -> None:
    """It travels to a server whose model of that name and version is another one."""
    snapshot = (await client.get(f"/v1/sessions/{session}/snapshot")).content
    elsewhere = tmp_path / "elsewhere"
    write_tiny_bundle(elsewhere, seed=7)
    other = Service(load_settings({"bundles": elsewhere, "store": "none"}))
    await other.start()
    transport = httpx.ASGITransport(create_app(other))
    async with httpx.AsyncClient(transport=transport, base_url="http://other") as stranger:
        reply = await stranger.post("/v1/sessions:restore", content=snapshot)
    await other.stop()
    assert (reply.status_code, reply.json()["reason"]) == (412, "MODEL_GONE")


@pytest.mark.parametrize("store", ["none"])
async def test_without_a_store_nothing_is_durable(client: httpx.AsyncClient) -> None:
    session = await opened(client)
    snapshot = (await client.get(f"/v1/sessions/{session}/snapshot")).content
    reply = await client.post("/v1/sessions:restore?durable=true", content=snapshot)
    assert (reply.status_code, reply.json()["reason"]) == (412, "NO_DURABLE_STORE")


@pytest.mark.parametrize("store", ["redis://127.0.0.1:1/0"])
@pytest.mark.parametrize(("verb", "body"), BRANCHING)
async def test_a_store_that_is_away_is_told_with_a_time(client: httpx.AsyncClient, verb: str, body: Json) -> None:
    reply = await branch(client, "d~somebody", verb, body)
    assert (reply.status_code, reply.json()["reason"]) == (503, "STORE_AWAY")
    assert int(reply.headers["retry-after"]) >= 1
