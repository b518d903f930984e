"""Two workers with real cores over one store: whichever is asked, and when the other is gone."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.bundles import write_tiny_bundle
from tests.service.grpc_server import GrpcServer
from tests.service.serving import serving
from tidegate.api import Core, Input, RestoreRequest, SessionRequest, StepOptions
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.peers import Peers
from tidegate.cluster.router import Router
from tidegate.errors import AlreadyExistsError, PositionConflictError, UnavailableError

TEXT = "ROMEO: what light"
EVERY = StepOptions(1, every_step=True)


class Workers(NamedTuple):
    """The faces of two workers, and the sockets at which each answers the other."""

    faces: list[Core]
    sockets: list[GrpcServer]
    infos: list[WorkerInfo]

    def chosen(self, number: int, prefix: str = "mine") -> str:
        """An id that a client might choose and that belongs to worker ``number``."""
        return next(name for i in count() if self.infos[0].owner(name := f"{prefix}-{i}") == number)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    write_tiny_bundle(tmp_path)
    found = Workers([], [], [])
    async with AsyncExitStack() as stack:
        # Not pytest's folder: a Unix socket's path has at most 107 bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number in range(2):
            info = WorkerInfo("test", number, 2, folder)
            core = serving(tmp_path, data_dir=tmp_path / "data", store="sqlite", replica=info.name)
            local = await stack.enter_async_context(core)
            socket = GrpcServer(local, info.address(number))
            await socket.start()
            stack.push_async_callback(socket.stop)
            peers = Peers(info, local.settings, local.clock)
            routed = Router(local, peers)
            stack.push_async_callback(peers.close)
            found.faces.append(routed)
            found.sockets.append(socket)
            found.infos.append(info)
        yield found


async def whole(service: Core, text: str = TEXT) -> list[float]:
    """What the model says of the uncut sequence, step by step."""
    result = await service.predict("tiny", None, [Input(text=text)], EVERY)
    return steps_of(result.predictions[0].surprise)


def steps_of(surprise: object) -> list[float]:
    steps = getattr(surprise, "steps", None)
    assert steps is not None
    return list(steps)


async def say(face: Core, session: str, text: str, position: int | None = None) -> list[float]:
    return steps_of((await face.step(session, Input(text=text), EVERY, position)).prediction.surprise)


@pytest.mark.parametrize("number", [None, 0, 1])
async def test_a_durable_session_is_stepped_by_both(workers: Workers, number: int | None) -> None:
    near, far = workers.faces
    chosen = None if number is None else workers.chosen(number)
    session = (await near.open_session(SessionRequest("tiny", durable=True, id=chosen))).id
    told: list[float] = []
    for position, letter in enumerate(TEXT):
        told += await say((near, far)[position % 2], session, letter, position)
    assert told == pytest.approx(await whole(near), rel=1e-4, abs=1e-5)
    assert [info.id for info in (await near.list_sessions()).sessions] == [session]
    assert (await far.get_session(session)).position == len(TEXT)


async def test_a_durable_session_outlives_its_owner(workers: Workers) -> None:
    near, _ = workers.faces
    session = workers.chosen(1)
    await near.open_session(SessionRequest("tiny", durable=True, id=session))
    told = await say(near, session, TEXT[:8], 0)
    kept = await near.checkpoint_session(session, "here")
    await workers.sockets[1].stop()
    assert await say(near, session, TEXT[:8], 0) == told
    told += await say(near, session, TEXT[8:], 8)
    assert told == pytest.approx(await whole(near), rel=1e-4, abs=1e-5)
    assert (await near.rewind_session(session, "here")).position == kept.position == 8
    with pytest.raises(PositionConflictError):
        await near.step(session, Input(text="x"), position=9)
    with pytest.raises(UnavailableError) as unsafe:
        await near.step(session, Input(text="x"))
    assert unsafe.value.reason == "WORKER_AWAY"
    await near.close_session(session)


async def test_forks_of_a_durable_session_are_spread_and_alike(workers: Workers) -> None:
    near, far = workers.faces
    session = (await near.open_session(SessionRequest("tiny", durable=True))).id
    await say(near, session, TEXT[:8])
    ids = [workers.chosen(1), workers.chosen(0), workers.chosen(1, "other")]
    forks = await near.fork_session(session, ids)
    assert [(fork.id, fork.position, fork.durable) for fork in forks] == [(id_, 8, True) for id_ in ids]
    again = await far.fork_session(session, ids)
    assert [fork.id for fork in again] == ids
    assert [fork.created_at for fork in again] == pytest.approx([fork.created_at for fork in forks], abs=1e-5, rel=0)
    expected = (await whole(near))[8:]
    for face, id_ in zip((near, far, near), ids, strict=True):
        assert await say(face, id_, TEXT[8:], 8) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("asked", [0, 1])
async def test_forks_of_an_ephemeral_session_are_found_from_both(workers: Workers, asked: int) -> None:
    near, _ = workers.faces
    session = (await near.open_session(SessionRequest("tiny"))).id
    await say(near, session, TEXT[:8])
    ids = [workers.chosen(1), workers.chosen(0)]
    forks = await workers.faces[asked].fork_session(session, ids)
    assert [(fork.id, fork.position, fork.durable) for fork in forks] == [(id_, 8, False) for id_ in ids]
    expected = (await whole(near))[8:]
    for face, id_ in zip(workers.faces, ids, strict=True):
        assert await say(face, id_, TEXT[8:], 8) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_snapshot_taken_far_away_is_restored_far_away(workers: Workers, durable: bool) -> None:
    near, far = workers.faces
    session = (await far.open_session(SessionRequest("tiny", durable=durable))).id
    await say(far, session, TEXT[:8])
    snapshot = await near.snapshot_session(session)
    info = await near.restore_session(snapshot, RestoreRequest(workers.chosen(1), durable=durable))
    expected = (await whole(near))[8:]
    assert await say(near, info.id, TEXT[8:]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


async def test_an_id_is_taken_for_both_kinds_and_both_workers(workers: Workers) -> None:
    near, far = workers.faces
    session = workers.chosen(1)
    await near.open_session(SessionRequest("tiny", id=session))
    parent = (await near.open_session(SessionRequest("tiny", durable=True))).id
    for face in (near, far):
        with pytest.raises(AlreadyExistsError):
            await face.open_session(SessionRequest("tiny", durable=True, id=session))
        with pytest.raises(AlreadyExistsError):
            await face.fork_session(parent, [session])
