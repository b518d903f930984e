"""Branching over gRPC: what reaches the core, what comes back, and each reason as a client sees it."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc import aio

from tests.service.fake_core import FakeCore
from tests.service.grpc.conftest import Stubs
from tidegate import errors
from tidegate.api import RestoreRequest
from tidegate.v1 import sessions_pb2
from tidegate.wire import SESSION_KEY
from tidegate.wire.errors import decode_status


async def ended(call: aio.UnaryUnaryCall[Any, Any]) -> errors.TidegateError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return decode_status(caught.value)


async def test_a_fork_under_ids(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a")
    reply = await stubs.sessions.Fork(sessions_pb2.ForkRequest(session="a", ids=["b", "c"]))
    assert [(fork.id, fork.model, fork.origin) for fork in reply.sessions] == [("b", "echo", "v1"), ("c", "echo", "v1")]
    assert service.branched == [("fork", "a", ["b", "c"], None)]


@pytest.mark.parametrize(("count", "asked"), [(3, 3), (0, None)])
async def test_a_fork_by_number(stubs: Stubs, service: FakeCore, count: int, asked: int | None) -> None:
    service.add_sessions("a")
    reply = await stubs.sessions.Fork(sessions_pb2.ForkRequest(session="a", count=count))
    assert len({fork.id for fork in reply.sessions}) == (count or 1)
    assert service.branched == [("fork", "a", None, asked)]


async def test_there_and_back(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a")
    await stubs.sessions.Step(sessions_pb2.StepRequest(session="a", tokens=[1, 2]))
    kept = await stubs.sessions.Checkpoint(sessions_pb2.CheckpointRequest(session="a", name="here"))
    assert (kept.checkpoint, kept.position) == ("here", 2)
    again = await stubs.sessions.Checkpoint(sessions_pb2.CheckpointRequest(session="a"))
    assert service.branched[-1] == ("checkpoint", "a", None)
    await stubs.sessions.Step(sessions_pb2.StepRequest(session="a", tokens=[3]))
    session = await stubs.sessions.Rewind(sessions_pb2.RewindRequest(session="a", checkpoint="here"))
    assert (session.id, session.position) == ("a", 2)
    assert list(session.checkpoints) == ["here", again.checkpoint]


async def test_an_upgrade(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a")
    assert (await stubs.sessions.Upgrade(sessions_pb2.UpgradeRequest(session="a", version="1"))).version == "1"
    assert (await stubs.sessions.Upgrade(sessions_pb2.UpgradeRequest(session="a"))).version == "2"
    assert service.branched == [("upgrade", "a", "1"), ("upgrade", "a", None)]


async def test_a_snapshot_is_restored(stubs: Stubs, service: FakeCore) -> None:
    service.add_sessions("a")
    await stubs.sessions.Step(sessions_pb2.StepRequest(session="a", tokens=[1, 2]))
    snapshot = (await stubs.sessions.Snapshot(sessions_pb2.SnapshotRequest(session="a"))).snapshot
    wish = sessions_pb2.RestoreRequest(
        snapshot=snapshot, id="b", durable=True, ttl_seconds=60, idle_seconds=5, drift=False
    )
    session = await stubs.sessions.Restore(wish)
    assert (session.id, session.position, session.durable) == ("b", 2, True)
    await stubs.sessions.Restore(sessions_pb2.RestoreRequest(snapshot=snapshot))
    assert service.restored == [
        (snapshot, RestoreRequest("b", durable=True, ttl_seconds=60, idle_seconds=5, drift=False)),
        (snapshot, RestoreRequest()),
    ]


async def test_an_oversized_snapshot_is_refused_unread(stubs: Stubs, service: FakeCore) -> None:
    snapshot = b"x" * (5 * 1024 * 1024)
    error = await ended(stubs.sessions.Restore(sessions_pb2.RestoreRequest(snapshot=snapshot)))
    assert isinstance(error, errors.TooLargeError)
    assert service.restored == []


REQUESTS: dict[str, Any] = {
    "Fork": sessions_pb2.ForkRequest(session="a"),
    "Checkpoint": sessions_pb2.CheckpointRequest(session="a"),
    "Rewind": sessions_pb2.RewindRequest(session="a", checkpoint="c"),
    "Upgrade": sessions_pb2.UpgradeRequest(session="a"),
    "Snapshot": sessions_pb2.SnapshotRequest(session="a"),
    "Restore": sessions_pb2.RestoreRequest(snapshot=b"x"),
}


@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "Restore"])
async def test_the_session_may_stand_in_the_metadata(stubs: Stubs, service: FakeCore, name: str) -> None:
    service.add_sessions("routed")
    service.checkpoints["routed", "c"] = 0
    request = type(REQUESTS[name])()
    request.CopyFrom(REQUESTS[name])
    request.session = ""
    await getattr(stubs.sessions, name)(request, metadata=aio.Metadata((SESSION_KEY, "routed")))
    assert service.branched[0][:2] == (name.lower(), "routed")


# What each class of errors becomes is test_errors.py's business.
@pytest.mark.parametrize("name", REQUESTS)
async def test_each_method_tells_the_error_of_the_core(stubs: Stubs, service: FakeCore, name: str) -> None:
    error = errors.UnavailableError("m", reason="STORE_AWAY", retry_after=2.5)
    service.failures["a"] = service.failures["restore"] = [error]
    call = getattr(stubs.sessions, name)(REQUESTS[name])
    raised = await ended(call)
    assert (type(raised), raised.reason, raised.retry_after) == (type(error), error.reason, error.retry_after)
    assert await call.code() == grpc.StatusCode.UNAVAILABLE
