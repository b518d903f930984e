"""Where a peer is away, what may lie in the store is served here, and nothing is done that could be wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from grpc import aio

from tests.service.fake_core import FakeCore
from tidegate.api import Core, GenerationDone, Input, RestoreRequest, Sampling, SessionRequest, StepOptions
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.peers import Peers
from tidegate.cluster.router import Router
from tidegate.config import load_settings
from tidegate.errors import FailedPreconditionError, NotFoundError, UnavailableError
from tidegate.sessions.snapshot import Body, encode_snapshot

SNAPSHOT = encode_snapshot(Body(model="echo", version="2", position=5))
WORKER = WorkerInfo("test", 0, 2, Path("/nowhere"))
SESSION = next(name for i in count() if WORKER.owner(name := f"mine-{i}") == 1)
"""An id that a client might choose and that belongs to the worker that is away."""
OTHER = next(name for i in count() if WORKER.owner(name := f"other-{i}") == 1)


class Alone(NamedTuple):
    """``face`` is the first worker's; nobody is at the second's place."""

    face: Core
    core: FakeCore


@pytest.fixture(params=["sqlite"])
async def alone(request: pytest.FixtureRequest) -> AsyncIterator[Alone]:
    core = FakeCore(settings=load_settings({}).model_copy(update={"store": request.param}))
    peers = Peers(WORKER, core.settings, core.clock)
    routed = Router(core, peers)
    yield Alone(routed, core)
    await peers.close()


Call = Callable[["Core", str], Awaitable[Any]]


async def last_event(service: Core, session: str, position: int | None, *, is_streamed: bool = True) -> Any:
    sampling = Sampling(max_tokens=2)
    events = service.generate_on_session(session, None, sampling, position, is_streamed=is_streamed)
    return [event async for event in events][-1]


REPEATABLE: dict[str, Call] = {
    "get": lambda service, session: service.get_session(session),
    "step": lambda service, session: service.step(session, Input(text="x"), StepOptions(), 0),
    "generate": lambda service, session: last_event(service, session, 0),
    "generate at once": lambda service, session: last_event(service, session, 0, is_streamed=False),
    "checkpoint": lambda service, session: service.checkpoint_session(session, "here"),
    "rewind": lambda service, session: service.rewind_session(session, "start"),
    "upgrade": lambda service, session: service.upgrade_session(session),
    "snapshot": lambda service, session: service.snapshot_session(session),
    "fork": lambda service, session: service.fork_session(session, [OTHER]),
    "close": lambda service, session: service.close_session(session),
}
UNREPEATABLE: dict[str, Call] = {
    "step": lambda service, session: service.step(session, Input(text="x")),
    "generate": lambda service, session: last_event(service, session, None),
    "checkpoint": lambda service, session: service.checkpoint_session(session),
    "fork": lambda service, session: service.fork_session(session, count=2),
}
OPENING: dict[str, Call] = {
    "open": lambda service, session: service.open_session(SessionRequest("echo", id=session, durable=True)),
    "restore": lambda service, session: service.restore_session(SNAPSHOT, RestoreRequest(session, durable=True)),
}


def store(core: FakeCore, *sessions: str) -> None:
    core.add_sessions(*sessions)
    for session in sessions:
        core.sessions[session] = core.sessions[session]._replace(durable=True)
        core.checkpoints[session, "start"] = 0


async def away(call: Awaitable[Any]) -> None:
    with pytest.raises(UnavailableError) as caught:
        await call
    assert (caught.value.reason, caught.value.retry_after) == ("WORKER_AWAY", 1.0)


@pytest.mark.parametrize("name", REPEATABLE)
async def test_what_is_stored_is_served_here(alone: Alone, name: str) -> None:
    store(alone.core, SESSION)
    twin = FakeCore()
    store(twin, SESSION)
    assert await REPEATABLE[name](alone.face, SESSION) == await REPEATABLE[name](twin, SESSION)


async def test_a_durable_fork_is_made_here(alone: Alone) -> None:
    store(alone.core, "d~1")
    assert [fork.id for fork in await alone.face.fork_session("d~1", [OTHER, SESSION])] == [OTHER, SESSION]


@pytest.mark.parametrize("name", OPENING)
async def test_a_durable_session_is_opened_here(alone: Alone, name: str) -> None:
    assert (await OPENING[name](alone.face, SESSION)).id == SESSION
    assert alone.core.sessions[SESSION].durable


@pytest.mark.parametrize("name", UNREPEATABLE)
async def test_what_would_be_done_twice_is_not_done_here(alone: Alone, name: str) -> None:
    """The peer may have done it before it went away."""
    store(alone.core, SESSION)
    before = dict(alone.core.sessions)
    await away(UNREPEATABLE[name](alone.face, SESSION))
    assert alone.core.sessions == before


@pytest.mark.parametrize("name", REPEATABLE)
async def test_what_is_not_in_the_store_may_still_be_the_peer_s(alone: Alone, name: str) -> None:
    """An ephemeral session, say: here it is unknown, which is not to be told of it."""
    alone.core.failures[SESSION] = [NotFoundError("unknown", reason="UNKNOWN_SESSION")] * 2
    await away(REPEATABLE[name](alone.face, SESSION))


async def test_what_the_store_s_session_lacks_is_told(alone: Alone) -> None:
    store(alone.core, SESSION)
    with pytest.raises(NotFoundError) as missing:
        await alone.face.rewind_session(SESSION, "never")
    assert missing.value.reason == "UNKNOWN_CHECKPOINT"
    alone.core.failures[SESSION] = [FailedPreconditionError("gone", reason="MODEL_GONE")]
    with pytest.raises(FailedPreconditionError):
        await alone.face.step(SESSION, Input(text="x"), StepOptions(), 0)


@pytest.mark.parametrize("name", REPEATABLE)
async def test_an_ephemeral_session_waits_for_its_worker(alone: Alone, name: str) -> None:
    store(alone.core, "e~test-1~x")
    await away(REPEATABLE[name](alone.face, "e~test-1~x"))


async def test_an_ephemeral_session_is_not_opened_in_its_owner_s_place(alone: Alone) -> None:
    await away(alone.face.open_session(SessionRequest("echo", id=SESSION)))
    await away(alone.face.restore_session(SNAPSHOT, RestoreRequest(SESSION)))
    assert (alone.core.opened, alone.core.restored) == ([], [])


@pytest.mark.parametrize("alone", ["none"], indirect=True)
@pytest.mark.parametrize("call", [*REPEATABLE.values(), *OPENING.values()], ids=[*REPEATABLE, *OPENING])
async def test_without_a_store_there_is_nothing_to_look_into(alone: Alone, call: Call) -> None:
    store(alone.core, SESSION)
    await away(call(alone.face, SESSION))


async def test_steps_that_overlap_stay_in_order(alone: Alone) -> None:
    store(alone.core, SESSION)
    steps = [alone.face.step(SESSION, Input(tokens=[token]), StepOptions(), token) for token in range(20)]
    assert [(await step).position for step in steps] == list(range(1, 21))


async def test_a_generation_here_is_closed_with_its_caller(alone: Alone) -> None:
    store(alone.core, SESSION)
    alone.core.is_holding = True
    events = alone.face.generate_on_session(SESSION, None, Sampling(), 0)
    assert not isinstance(await anext(events), GenerationDone)
    await_next = asyncio.ensure_future(anext(events))
    await alone.core.submitted.get()
    await_next.cancel()
    assert await alone.core.cancelled.get() == SESSION


class Breaking(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Ends each call as gRPC does where a process stops in the middle of it: INTERNAL, and no word of the server's."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def end(_: bytes, context: Any) -> None:
            await context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")

        return grpc.unary_unary_rpc_method_handler(end)


async def test_a_peer_that_went_in_the_middle_of_a_call_is_away(tmp_path: Path) -> None:
    worker = WorkerInfo("test", 0, 2, tmp_path)
    server = aio.server()
    server.add_generic_rpc_handlers((Breaking(),))
    server.add_insecure_port(worker.address(1))
    await server.start()
    core = FakeCore(settings=load_settings({}).model_copy(update={"store": "sqlite"}))
    peers = Peers(worker, core.settings, core.clock)
    routed = Router(core, peers)
    try:
        await core.open_session(SessionRequest("echo", id=SESSION, durable=True))
        assert (await routed.step(SESSION, Input(text="x"), StepOptions(), 0)).session == SESSION
        with pytest.raises(UnavailableError) as caught:
            await routed.step(SESSION, Input(text="x"))
        assert caught.value.reason == "WORKER_AWAY"
    finally:
        await peers.close()
        await server.stop(None)
