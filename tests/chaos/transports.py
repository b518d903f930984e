"""The ways to ask a replica: gRPC calls, gRPC streams, HTTP, and tidegate's own client.

Each sends one request and tells one answer; none but tidegate's client repeats anything. Errors are those of
`tidegate.errors`, whatever the transport.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, assert_never, cast

import grpc
import httpx
import numpy as np
from grpc import aio
from grpc_status import rpc_status

from tests.chaos.history import Asked, At, Keep, Read, Reply, Rewind, Step, Told
from tidegate.client import AsyncClient, AsyncSession, AsyncSessionStream
from tidegate.errors import (
    DeadlineExceededError,
    OverloadedError,
    PositionConflictError,
    SessionEndedError,
    TidegateError,
    UnavailableError,
)
from tidegate.v1 import predictor_pb2, predictor_pb2_grpc, sessions_pb2, sessions_pb2_grpc, types_pb2
from tidegate.wire import SESSION_KEY
from tidegate.wire.errors import decode_error, decode_status

SECONDS = 2.0
"""What one request may take: a paused replica answers nothing."""

PATIENT_SECONDS = 60.0
"""The same before there are any faults, on a machine that may be busy."""

RETRY_SECONDS = 0.2

# A channel whose server died would wait up to two minutes before it looks again.
CHANNEL = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))


class Transport(Protocol):
    """A way to one replica."""

    async def ask(self, session: str, asked: Asked) -> Told:
        """Send a request; return its answer, or raise a TidegateError."""

    async def close(self) -> None: ...


class Calls:
    """gRPC, a call a request."""

    def __init__(self, address: str) -> None:
        self._channel = aio.insecure_channel(address, options=CHANNEL)
        self._sessions: Any = sessions_pb2_grpc.SessionsStub(self._channel)

    async def ask(self, session: str, asked: Asked) -> Told:
        try:
            return await self._ask(session, asked)
        except grpc.RpcError as error:
            raise _meaning(error) from error

    async def open(self, session: str, model: str) -> None:
        """Open a durable session, or find it open; a store that is away on a busy machine comes back."""
        request = sessions_pb2.OpenRequest(model=model, id=session, durable=True)
        async with asyncio.timeout(PATIENT_SECONDS):
            while True:
                try:
                    await self._call(self._sessions.Open, request, session, PATIENT_SECONDS)
                except aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    return

    async def close(self) -> None:
        await self._channel.close(None)

    async def _ask(self, session: str, asked: Asked) -> Told:
        match asked:
            case Step():
                return _reply(await self._call(self._sessions.Step, step_request(session, asked), session))
            case Read():
                request = sessions_pb2.GetSessionRequest(session=session)
                return At((await self._call(self._sessions.Get, request, session)).position)
            case Keep(name):
                kept = sessions_pb2.CheckpointRequest(session=session, name=name)
                return At((await self._call(self._sessions.Checkpoint, kept, session)).position)
            case Rewind(name):
                back = sessions_pb2.RewindRequest(session=session, checkpoint=name)
                return At((await self._call(self._sessions.Rewind, back, session)).position)
        assert_never(asked)

    async def _call(self, method: Any, request: Any, session: str, seconds: float = SECONDS) -> Any:
        return await method(request, timeout=seconds, metadata=((SESSION_KEY, session),))


_BROKEN = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN})


def _meaning(error: grpc.RpcError) -> TidegateError:
    """What ended a call. tidegate says more than a code; gRPC itself says these where a server ends while it answers,
    and the outcome is unknown.
    """
    ended = cast("grpc.Call", error)  # errors of grpc.aio have its methods
    code = ended.code()
    if code in _BROKEN and rpc_status.from_call(ended) is None:
        return UnavailableError(f"gRPC itself says {code.name}", reason=f"GRPC_{code.name}")
    return decode_status(error)


class Streams(Calls):
    """gRPC, steps on a stream for each session; an error of the stream opens another for the next step."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._predictor: Any = predictor_pb2_grpc.PredictorStub(self._channel)
        self._streams: dict[str, Any] = {}

    async def _ask(self, session: str, asked: Asked) -> Told:
        if not isinstance(asked, Step):
            return await super()._ask(session, asked)
        # Taken out while it is used: who asks at the same time gets a stream of its own.
        stream = self._streams.pop(session, None) or self._predictor.Stream(metadata=((SESSION_KEY, session),))
        try:
            answer = await asyncio.wait_for(_over(stream, step_request(session, asked)), SECONDS)
        except TimeoutError:
            stream.cancel()
            raise DeadlineExceededError("no answer on the stream") from None
        self._streams[session] = stream
        if answer.HasField("error"):
            raise decode_error(answer.error)
        return _reply(answer.step)


async def _over(stream: Any, request: sessions_pb2.StepRequest) -> predictor_pb2.StreamReply:
    try:
        await stream.write(predictor_pb2.StreamRequest(step=request))
    except (asyncio.InvalidStateError, grpc.RpcError):
        # It had ended before this step, or ends now: gRPC may put INTERNAL in the place of the reason.
        raise UnavailableError("the stream has ended", reason="STREAM_ENDED") from None
    answer = await stream.read()
    if answer is aio.EOF:  # type: ignore[attr-defined]
        raise UnavailableError("the stream has ended", reason="STREAM_ENDED")
    assert isinstance(answer, predictor_pb2.StreamReply)
    return answer


class Http:
    """JSON over HTTP."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=f"{url}/v1/sessions", timeout=SECONDS)

    async def ask(self, session: str, asked: Asked) -> Told:
        document = await self._document(session, asked)
        if not isinstance(asked, Step):
            return At(document["position"])
        prediction = document["prediction"]
        best = prediction["next"][0]
        return Reply(
            document["position"],
            float(np.float32(prediction["surprise"]["mean"])),
            best["id"],
            float(np.float32(best["probability"])),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def _document(self, session: str, asked: Asked) -> dict[str, Any]:
        method, path, body = _http_request(session, asked)
        try:
            answer = await self._client.request(method, path, json=body, headers={SESSION_KEY: session})
        except httpx.TimeoutException:
            raise DeadlineExceededError("no answer over HTTP") from None
        except httpx.TransportError as error:
            raise UnavailableError(f"{type(error).__name__}: {error}", reason="CONNECTION_LOST") from None
        document: dict[str, Any] = answer.json()
        if answer.is_error:
            raise _http_error(answer.status_code, document)
        return document


def _http_request(session: str, asked: Asked) -> tuple[str, str, dict[str, Any] | None]:
    match asked:
        case Step(start, tokens):
            return "POST", f"/{session}:step", {"tokens": tokens, "position": start}
        case Read():
            return "GET", f"/{session}", None
        case Keep(name):
            return "POST", f"/{session}:checkpoint", {"name": name}
        case Rewind(name):
            return "POST", f"/{session}:rewind", {"checkpoint": name}
    assert_never(asked)


_HTTP_ERRORS: dict[int, type[TidegateError]] = {
    410: SessionEndedError,
    429: OverloadedError,
    503: UnavailableError,
    504: DeadlineExceededError,
}


def _http_error(status: int, document: dict[str, Any]) -> TidegateError:
    if status == 409 and "position" in document:
        return PositionConflictError(document["detail"], position=document["position"])
    return _HTTP_ERRORS.get(status, TidegateError)(document["detail"], reason=document["reason"])


class Library(Calls):
    """tidegate's client for asyncio, which repeats and reconnects by itself: steps by calls or on a stream."""

    def __init__(self, address: str, *, is_streaming: bool) -> None:
        super().__init__(address)
        self._client = AsyncClient(address, timeout=SECONDS)
        self._is_streaming = is_streaming
        self._found: dict[str, tuple[AsyncSession, AsyncSessionStream | None]] = {}

    async def close(self) -> None:
        for _, stream in self._found.values():
            if stream is not None:
                stream.close()
        await self._client.close()
        await super().close()

    async def _ask(self, session: str, asked: Asked) -> Told:
        if not isinstance(asked, Step):
            return await super()._ask(session, asked)
        # Found anew after an error, as a client does that starts again.
        found, stream = self._found.pop(session) if session in self._found else await self._find(session)
        found.position = asked.start
        result = await (stream or found).step(tokens=asked.tokens)
        self._found[session] = found, stream
        assert result.prediction.next is not None
        assert result.prediction.surprise is not None
        best = result.prediction.next[0][0]
        return Reply(result.position, result.prediction.surprise.mean, best.id, best.probability)

    async def _find(self, session: str) -> tuple[AsyncSession, AsyncSessionStream | None]:
        found = await self._client.session(session)
        return found, found.stream() if self._is_streaming else None


def step_request(session: str, step: Step) -> sessions_pb2.StepRequest:
    return sessions_pb2.StepRequest(session=session, position=step.start, tokens=step.tokens)


def _reply(message: sessions_pb2.StepReply) -> Reply:
    prediction: types_pb2.Prediction = message.prediction
    best = prediction.next[0].candidates[0]
    return Reply(message.position, prediction.surprise.mean, best.id, best.probability)
