"""Sessions for loads: opened before, closed after, over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from grpc import aio

from bench.floors.replies import SESSION
from bench.processes import Running
from tidegate.v1 import predictor_pb2, predictor_pb2_grpc, sessions_pb2, sessions_pb2_grpc

MODEL = "shakespeare-lstm"
AT_ONCE = 64
LANES = 1000


@contextlib.contextmanager
def sessions(target: Running, count: int, model: str = MODEL, *, durable: bool = False) -> Iterator[list[str]]:
    """The ids of ``count`` sessions that end with the block."""
    ids = asyncio.run(_open(target, count, model, durable))
    try:
        yield ids
    finally:
        asyncio.run(_close(target, ids))


def open_sessions(target: Running, count: int, model: str = MODEL, *, durable: bool = False) -> list[str]:
    """The ids of ``count`` sessions that stay open."""
    return asyncio.run(_open(target, count, model, durable))


def step_once(target: Running, ids: list[str], position: int = 0) -> None:
    """Make one step of each session, in columns; all are at ``position``."""
    asyncio.run(_step_once(target, ids, position))


def state_bytes(target: Running, model: str = MODEL) -> int:
    """The bytes of a session's state, by the server's own account."""
    with sessions(target, 1, model) as ids:
        return asyncio.run(_get(target, ids[0])).state_bytes


def echoed(count: int) -> list[str]:
    """Names of ``count`` sessions for an echo, which keeps none."""
    return [SESSION] * count


def numbered(count: int) -> list[str]:
    """Ids of ``count`` sequences of the Open Inference Protocol: a start ends what runs under them."""
    return [str(number) for number in range(1, count + 1)]


async def _open(target: Running, count: int, model: str, durable: bool = False) -> list[str]:
    async with _channel(target) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one() -> str:
            async with gate:
                return str((await stub.Open(sessions_pb2.OpenRequest(model=model, durable=durable))).id)

        return list(await asyncio.gather(*(one() for _ in range(count))))


async def _get(target: Running, name: str) -> sessions_pb2.Session:
    async with _channel(target) as channel:
        return await sessions_pb2_grpc.SessionsStub(channel).Get(sessions_pb2.GetSessionRequest(session=name))


async def _step_once(target: Running, ids: list[str], position: int) -> None:
    async with _channel(target) as channel:
        for start in range(0, len(ids), LANES):
            names = ids[start : start + LANES]
            columns = predictor_pb2.Columns(lanes=range(len(names)), tokens=[1] * len(names))
            asked = [
                predictor_pb2.StreamRequest(attach=predictor_pb2.Attach(sessions=names)),
                predictor_pb2.StreamRequest(columns=columns),
            ]
            replies = [reply async for reply in predictor_pb2_grpc.PredictorStub(channel).Stream(iter(asked))]
            assert list(replies[-1].columns.positions) == [position + 1] * len(names), replies[-1]


async def _close(target: Running, ids: list[str]) -> None:
    async with _channel(target) as channel:
        stub = sessions_pb2_grpc.SessionsStub(channel)
        for start in range(0, len(ids), AT_ONCE):
            names = ids[start : start + AT_ONCE]
            await asyncio.gather(*(stub.Close(sessions_pb2.CloseRequest(session=name)) for name in names))


def _channel(target: Running) -> aio.Channel:
    return aio.insecure_channel(f"127.0.0.1:{target.port('grpc')}")
