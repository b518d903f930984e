"""The seams of the HTTP transport: the fake core with answers from a script, and clients that speak plain ASGI.

httpx's transport and Starlette's test client neither hang up in mid-request nor share the event loop with a WebSocket:
tests that need that drive the application themselves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tests.service.fake_core import FakeCore
from tidegate.api import (
    Candidate,
    CheckpointInfo,
    ColumnInfo,
    Drift,
    DriftReport,
    Events,
    GeneratedToken,
    GenerationDone,
    Input,
    ModelInfo,
    ModelPage,
    Prediction,
    PredictResult,
    Refusal,
    ReloadReport,
    RestoreRequest,
    Rows,
    Sampling,
    SessionInfo,
    SessionPage,
    SessionRequest,
    SettingInfo,
    StepOptions,
    StepResult,
    Surprise,
    SurpriseReport,
    Tensor,
    TensorInfo,
)
from tidegate.config import Settings, load_settings
from tidegate.transports.asgi import cancel_on_disconnect
from tidegate.v1.predictor_pb2 import StreamReply

if TYPE_CHECKING:
    from fastapi import FastAPI

Json = Any
Message = MutableMapping[str, Any]

MODEL = ModelInfo(
    name="tiny",
    version="2",
    versions=["1", "2"],
    task="next_token",
    cell="lstm",
    inputs=[TensorInfo("tokens", "int64", ["batch", "time"], None, "letters")],
    outputs=[TensorInfo("logits", "float32", ["batch", "time", "65"])],
    features=[],
    state_bytes=256,
    surprise_unit="bits",
    batch_invariant=True,
    sha256="ab" * 32,
    provider="CPUExecutionProvider",
    surprise=SurpriseReport(2.25, 640),
    drift=DriftReport("warning", 2.5, 5, 128, 2.0, 0.25, (1.75, 2.25), (1.5, 2.75)),
    settings=[SettingInfo("limit", "float32", [], [6.0], "dB", "at most so much is taken away")],
    sample_rate=16000.0,
    frame_length=512,
    columns=[ColumnInfo("load", "MW", None)],
)
MODEL_JSON = {
    "name": "tiny",
    "version": "2",
    "versions": ["1", "2"],
    "task": "next_token",
    "cell": "lstm",
    "inputs": [{"name": "tokens", "dtype": "int64", "axes": ["batch", "time"], "unit": None, "description": "letters"}],
    "outputs": [
        {"name": "logits", "dtype": "float32", "axes": ["batch", "time", "65"], "unit": None, "description": None}
    ],
    "features": [],
    "state_bytes": 256,
    "surprise_unit": "bits",
    "batch_invariant": True,
    "sha256": "ab" * 32,
    "provider": "CPUExecutionProvider",
    "surprise": {"mean": 2.25, "steps": 640},
    "drift": {
        "state": "warning",
        "ewma": 2.5,
        "blocks": 5,
        "block": 128,
        "mean": 2.0,
        "spread": 0.25,
        "warning": [1.75, 2.25],
        "drift": [1.5, 2.75],
    },
    "settings": [
        {
            "name": "limit",
            "dtype": "float32",
            "shape": [],
            "default": [6.0],
            "unit": "dB",
            "description": "at most so much is taken away",
        }
    ],
    "sample_rate": 16000.0,
    "frame_length": 512,
    "columns": [{"name": "load", "unit": "MW", "description": None}],
}
CHARTED = Drift("warning", 2.25, 7)
SESSION = SessionInfo("s-1", "tiny", "2", 3, False, 1_700_000_000.25, None, 256, ("c-1", "c-2"), "oip", CHARTED)
SESSION_JSON = {
    "id": "s-1",
    "model": "tiny",
    "version": "2",
    "position": 3,
    "durable": False,
    "created_at": "2023-11-14T22:13:20.250000Z",
    "expires_at": None,
    "state_bytes": 256,
    "checkpoints": ["c-1", "c-2"],
    "origin": "oip",
    "drift": {"state": "warning", "ewma": 2.25, "blocks": 7},
}
SNAPSHOT = b"\x00state\xff\r\n"
PREDICTION = Prediction(1, next=[[Candidate("R", 5, 0.5)]], surprise=Surprise(1.5, "bits"))
NUM_LARGE = 400


def _made(ids: Tensor) -> list[Sequence[Candidate]]:
    return [[Candidate("R", int(each), 0.25) for each in step] for step in ids]


LARGE_PREDICTION = Prediction(
    NUM_LARGE,
    every_step=True,
    next=Rows(_made, np.arange(NUM_LARGE * 10).reshape(NUM_LARGE, 10)),
    surprise=Surprise(1.5, "bits", Rows(np.ndarray.tolist, np.full(NUM_LARGE, 0.5))),
)
LARGE_PREDICTION_JSON = {
    "length": NUM_LARGE,
    "next": [
        [{"token": "R", "id": 10 * step + rank, "probability": 0.25} for rank in range(10)] for step in range(NUM_LARGE)
    ],
    "surprise": {"mean": 1.5, "unit": "bits", "steps": [0.5] * NUM_LARGE},
}
PREDICTION_JSON = {
    "length": 1,
    "next": [{"token": "R", "id": 5, "probability": 0.5}],
    "surprise": {"mean": 1.5, "unit": "bits"},
}
EVENTS = (GeneratedToken(5, "R", 4), GenerationDone("R", [5], "length", 4))
DONE_JSON = {"text": "R", "tokens": [5], "finish_reason": "length", "position": 4}


class ScriptedCore(FakeCore):
    """Answers at once with canned results, or with ``error``; ``calls`` tells what was asked.

    With ``is_held``, steps wait in ``held`` and generations wait in mid-way until the test lets them go.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings=settings or load_settings({}))
        self.error: Exception | None = None
        self.prediction = PREDICTION
        self.calls: list[tuple[Any, ...]] = []
        self.deadlines: list[float | None] = []
        self.is_holding = False
        self.held: list[asyncio.Future[StepResult]] = []
        self.has_asked = asyncio.Event()
        self.is_cancelled = asyncio.Event()
        self.events: Sequence[GeneratedToken | GenerationDone | Exception] = EVENTS
        self.page = SessionPage([SESSION], "s-1")

    def _note(self, *call: Any, deadline: float | None = None) -> None:
        self.calls.append(call)
        self.deadlines.append(deadline)
        self.has_asked.set()
        if self.error is not None:
            raise self.error

    def models(self, limit: int = 0, page_token: str = "") -> ModelPage:
        self._note("models", limit, page_token)
        return ModelPage([MODEL], "")

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        self._note("model", name, version)
        return MODEL

    async def reload(self) -> ReloadReport:
        self._note("reload")
        return ReloadReport(["tiny/2"], ["tiny/1"], [Refusal("bad/1", "BAD_BUNDLE", "checksum differs")])

    async def predict(
        self,
        model: str,
        version: str | None,
        sequences: Sequence[Input],
        options: StepOptions,
        deadline: float | None = None,
    ) -> PredictResult:
        self._note("predict", model, version, list(sequences), options, deadline=deadline)
        await self._wait_if_held()
        return PredictResult(model, "2", [self.prediction] * len(sequences))

    async def _wait_if_held(self) -> None:
        try:
            if self.is_holding:
                await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.is_cancelled.set()
            raise

    async def generate(
        self,
        model: str,
        version: str | None,
        prompt: Input | None,
        sampling: Sampling,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> Events:
        assert isinstance(is_streamed, bool)
        self._note("generate", model, version, prompt, sampling, deadline=deadline)
        async for event in self._generated():
            yield event

    async def generate_on_session(
        self,
        session: str,
        prompt: Input | None,
        sampling: Sampling,
        position: int | None = None,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> Events:
        assert isinstance(is_streamed, bool)
        self._note("generate_on_session", session, prompt, sampling, position, deadline=deadline)
        async for event in self._generated():
            yield event

    async def _generated(self) -> Events:
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event
            await self._wait_if_held()

    async def open_session(self, request: SessionRequest) -> SessionInfo:
        self._note("open", request)
        return SESSION

    async def get_session(self, session: str) -> SessionInfo:
        self._note("get", session)
        return SESSION

    async def list_sessions(self, limit: int = 0, page_token: str = "") -> SessionPage:
        self._note("list", limit, page_token)
        return self.page

    async def close_session(self, session: str) -> None:
        self._note("close", session)

    async def fork_session(
        self, session: str, ids: Sequence[str] | None = None, count: int | None = None
    ) -> list[SessionInfo]:
        self._note("fork", session, ids, count)
        return [SESSION] * (count or len(ids or "1"))

    async def checkpoint_session(self, session: str, name: str | None = None) -> CheckpointInfo:
        self._note("checkpoint", session, name)
        return CheckpointInfo(name or "c-3", 3)

    async def rewind_session(self, session: str, checkpoint: str) -> SessionInfo:
        self._note("rewind", session, checkpoint)
        return SESSION

    async def upgrade_session(self, session: str, version: str | None = None) -> SessionInfo:
        self._note("upgrade", session, version)
        return SESSION

    async def snapshot_session(self, session: str) -> bytes:
        self._note("snapshot", session)
        return SNAPSHOT

    async def restore_session(self, snapshot: bytes, request: RestoreRequest) -> SessionInfo:
        self._note("restore", snapshot, request)
        return SESSION

    def step(
        self,
        session: str,
        source: Input,
        options: StepOptions = StepOptions(),  # noqa: B008 - the core's default
        position: int | None = None,
        deadline: float | None = None,
    ) -> asyncio.Future[StepResult]:
        self._note("step", session, source, options, position, deadline=deadline)
        future: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: self.is_cancelled.set() if done.cancelled() else None)
        self.held.append(future)
        if not self.is_holding:
            self.answer(future)
        return future

    def answer(self, future: asyncio.Future[StepResult]) -> None:
        """Let a step go; its position tells which it was, counting from 1."""
        future.set_result(StepResult("s-1", self.held.index(future) + 1, self.prediction))


class Call:
    """One HTTP request whose client can hang up."""

    def __init__(self, app: FastAPI, path: str, body: Json, **scope: Any) -> None:
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})
        self.sent: list[Message] = []
        self.has_sent_body = asyncio.Event()
        answering = cancel_on_disconnect(app)({**http_scope(path), **scope}, self._inbox.get, self._send)
        self.task = asyncio.ensure_future(answering)

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.has_sent_body.set()

    def hang_up(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})


def http_scope(path: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": list(headers),
        "query_string": b"",
        "root_path": "",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
    }


class Socket:
    """A WebSocket's client in the application's own event loop.

    Args:
        app: The application.
        path: Where the client asks for a WebSocket.
        headers: The handshake's.
        subprotocols: That the client offers.
    """

    def __init__(
        self,
        app: FastAPI,
        path: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        subprotocols: Sequence[str] = (),
    ) -> None:
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self.subprotocol: str | None = None
        scope = {**http_scope(path, headers), "type": "websocket", "scheme": "ws", "subprotocols": list(subprotocols)}
        del scope["method"]
        self.task = asyncio.create_task(app(scope, self._to_app.get, self._from_app.put))
        self._to_app.put_nowait({"type": "websocket.connect"})

    async def __aenter__(self) -> Self:
        accepted = await self.receive()
        assert accepted["type"] == "websocket.accept"
        self.subprotocol = accepted["subprotocol"]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hang_up()
        await self.task

    def send(self, frame: Json) -> None:
        self.send_raw(text=json.dumps(frame))

    def send_raw(self, **frame: str | bytes) -> None:
        self._to_app.put_nowait({"type": "websocket.receive", **frame})

    async def receive(self) -> Message:
        return await asyncio.wait_for(self._from_app.get(), 60)

    async def answer(self) -> Json:
        message = await self.receive()
        assert message["type"] == "websocket.send"
        return json.loads(message["text"])

    async def message(self) -> StreamReply:
        """The answer to a message of the stream."""
        message = await self.receive()
        assert message["type"] == "websocket.send"
        return StreamReply.FromString(message["bytes"])

    def hang_up(self) -> None:
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": 1000})
