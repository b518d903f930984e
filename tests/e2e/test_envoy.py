"""Two replicas over one Redis behind the real Envoy, by the configuration that deploy/envoy offers."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.sync.client import connect

from tests.bundles import write_tiny_bundle
from tests.envoy import Envoy, Upstream, envoy_before
from tests.redis import redis_server
from tests.servers import RunningServer, serving
from tidegate.client import AsyncClient, AsyncSession, Client

MODEL = "tiny"
TEXT = "Hello World, how are you"
KEY = "tidegate-session"


class House(NamedTuple):
    """What runs: the replicas and Envoy before them."""

    replicas: list[RunningServer]
    envoy: Envoy

    @property
    def url(self) -> str:
        return f"http://{self.envoy.http}/v1"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    write_tiny_bundle(tmp_path / "bundles")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        flags = ("--store", redis.url, "--data-dir", str(tmp_path))
        replicas = [stack.enter_context(serving(tmp_path / "bundles", *flags)) for _ in range(2)]
        upstreams = [Upstream(replica.http.removeprefix("http://"), replica.grpc) for replica in replicas]
        yield House(replicas, stack.enter_context(envoy_before(upstreams)))


def steps_of(replica: RunningServer) -> int:
    """How many steps its models have run."""
    lines = httpx.get(f"{replica.http}/metrics").text
    return sum(int(float(number)) for number in re.findall(r"^tidegate_steps_total\{.*\} (\S+)$", lines, re.MULTILINE))


def open_sessions(house: House, number: int) -> list[str]:
    """Durable sessions, whose ids spread over both replicas the same way each time."""
    ids = [f"s-{index}" for index in range(number)]
    with Client(house.envoy.grpc) as client:
        for session in ids:
            client.open(MODEL, id=session, durable=True)
    return ids


def by_http(house: House, session: str) -> None:
    reply = httpx.post(f"{house.url}/sessions/{session}:step", json={"text": "H"}, headers={KEY: session})
    reply.raise_for_status()


def by_path(house: House, session: str) -> None:
    httpx.post(f"{house.url}/sessions/{session}:step", json={"text": "H"}).raise_for_status()


def by_web_socket(house: House, session: str) -> None:
    """As a browser does it: without a header of ours."""
    with connect(f"ws://{house.envoy.http}/v1/sessions/{session}/stream") as stream:
        stream.send(json.dumps({"text": "H"}))
        assert "prediction" in json.loads(stream.recv())


def by_call(house: House, session: str) -> None:
    with Client(house.envoy.grpc) as client:
        client.session(session).step("H")


def by_stream(house: House, session: str) -> None:
    with Client(house.envoy.grpc) as client, client.session(session).stream() as stream:
        stream.step("H")


WAYS: tuple[Callable[[House, str], None], ...] = (by_http, by_path, by_web_socket, by_call, by_stream)


def test_a_session_meets_one_replica_by_every_way_and_many_meet_both(house: House) -> None:
    met = []
    for session in open_sessions(house, 8):
        before = [steps_of(replica) for replica in house.replicas]
        for way in WAYS:
            way(house, session)
        counts = [steps_of(replica) - number for replica, number in zip(house.replicas, before, strict=True)]
        assert sorted(counts) == [0, len(WAYS)], session
        met.append(counts.index(len(WAYS)))
    assert set(met) == {0, 1}


def test_a_call_without_a_session_is_spread(house: House) -> None:
    body = {"sequences": [{"text": TEXT}]}
    for _ in range(32):
        httpx.post(f"{house.url}/models/{MODEL}:predict", json=body).raise_for_status()
    assert all(steps_of(replica) > 0 for replica in house.replicas)


def test_health_passes_through(house: House) -> None:
    assert httpx.get(f"http://{house.envoy.http}/readyz").json()["status"] == "ready"
    with grpc.insecure_channel(house.envoy.grpc) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_requests_for_a_replica_that_is_gone_reach_the_other_before_any_health_check(house: House) -> None:
    """Envoy repeats them itself, for callers that do not, from wherever on the ring of replicas their session stands.

    Of these sessions t-90 has more entries of the same replica after it than a few attempts pass.
    """
    sessions = [f"t-{index}" for index in range(80, 100)]
    with Client(house.envoy.grpc) as client:
        for session in sessions:
            client.open(MODEL, id=session, durable=True)
    end_first(house, signal.SIGKILL)
    house.replicas[0].wait()
    for session in sessions:
        by_http(house, session)
    assert steps_of(house.replicas[1]) == len(sessions)


def end_first(house: House, number: signal.Signals) -> None:
    house.replicas[0].tell(number)


async def step_through(
    house: House, session: AsyncSession, half_way: asyncio.Barrier, *, is_streaming: bool
) -> list[float]:
    """Step TEXT letter by letter; return the surprises. At half-way all wait for each other."""
    surprises = []
    stream = session.stream() if is_streaming else None
    for index, letter in enumerate(TEXT):
        if index == len(TEXT) // 2:
            await half_way.wait()
        reply = await (stream or session).step(letter)
        assert reply.prediction.surprise is not None
        surprises.append(reply.prediction.surprise.mean)
    if stream is not None:
        stream.close()
    return surprises


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_replica_that_goes_under_running_sessions_is_an_error_to_nobody(
    house: House, number: signal.Signals
) -> None:
    num_sessions = 16
    half_way = asyncio.Barrier(num_sessions + 1)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(house.envoy.grpc))
        sessions = [await client.open(MODEL, durable=True, id=f"s-{n}") for n in range(num_sessions)]
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(step_through(house, session, half_way, is_streaming=n % 2 == 0))
                for n, session in enumerate(sessions)
            ]
            await half_way.wait()
            end_first(house, number)
        whole = (await client.predict(MODEL, [TEXT], every_step=True)).predictions[0].surprise
        infos = [await client.session(session.id) for session in sessions]
    assert whole is not None
    for task in running:
        assert task.result() == pytest.approx(whole.steps, rel=1e-4, abs=1e-5)
    assert {info.position for info in infos} == {len(TEXT)}
    if number is signal.SIGTERM:
        assert house.replicas[0].wait() == 0
