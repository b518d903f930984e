"""A core that remembers each session's last chunk, as ours does, and servers over it that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.service.fake_core import FakeCore, GenerateCall, StepCall, length, predict
from tests.service.grpc_server import GrpcServer
from tidegate.api import GeneratedToken, GenerationDone, Input, Sampling, StepOptions, StepResult
from tidegate.errors import NotFoundError, PositionConflictError


class Last(NamedTuple):
    """``result`` is a StepResult, or the tokens of a generation, which grow."""

    start: int
    asked: object
    result: StepResult | list[int]


@dataclass
class RememberingService(FakeCore):
    """Applies a chunk at the session's position, answers the last one again, and refuses others.

    With ``is_deaf`` steps are neither applied nor answered. A generation stops after ``hold_after`` tokens in all; with
    ``is_lingering`` its call does not end.
    """

    last: dict[str, Last] = field(default_factory=dict)
    applied: dict[str, list[Input]] = field(default_factory=dict)
    is_deaf: bool = False
    is_lingering: bool = False
    hold_after: int | None = None

    def step(
        self,
        session: str,
        source: Input,
        options: StepOptions = StepOptions(),  # noqa: B008 - the core's default
        position: int | None = None,
        deadline: float | None = None,
    ) -> asyncio.Future[StepResult]:
        last, asked = self.last.get(session), (source, options)
        if session not in self.sessions:
            raise NotFoundError(f"unknown session {session}", reason="UNKNOWN_SESSION")
        start = self.sessions[session].position
        future: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        if self.is_deaf:
            self.submitted.put_nowait(session)
            return future
        if last is not None and position == last.start and position != start:
            self.steps.append(StepCall(session, source, options, position, deadline))
            if asked != last.asked:
                raise PositionConflictError(f"the session is at {start}", position=start)
            assert isinstance(last.result, StepResult)
            future.set_result(last.result)
            return future
        future = super().step(session, source, options, position, deadline)
        if self.sessions[session].position != start:
            self.applied.setdefault(session, []).append(source)
            result = StepResult(session, start + length(source), predict(source, options, start))
            self.last[session] = Last(start, asked, result)
        return future

    async def generate_on_session(
        self,
        session: str,
        prompt: Input | None,
        sampling: Sampling,
        position: int | None = None,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> AsyncGenerator[GeneratedToken | GenerationDone, None]:
        self.generations.append(GenerateCall(prompt, sampling, position, deadline))
        self._fail(session)
        info, last, asked = self.sessions[session], self.last.get(session), (prompt, sampling)
        if last is None or position != last.start or position == info.position:
            if position not in {None, info.position}:
                raise PositionConflictError(f"the session is at {info.position}", position=info.position)
            last = self.last[session] = Last(info.position, asked, [])
        assert last.asked == asked
        assert isinstance(last.result, list)
        start, tokens = last.start + length(prompt), last.result
        for token in range(sampling.max_tokens):
            if token == len(tokens):
                if len(tokens) == self.hold_after:
                    await self._hold(session)
                tokens.append(token)
                self.applied.setdefault(session, []).append(Input(tokens=[token]))
                self.sessions[session] = info._replace(position=start + len(tokens))
            yield GeneratedToken(token, chr(97 + token), start + token + 1)
        text = "".join(chr(97 + token) for token in tokens)
        yield GenerationDone(text, list(tokens), "length", start + len(tokens))
        if self.is_lingering:
            await self._hold(session)


class Site:
    """A port, and the servers that listen on it one after the other."""

    def __init__(self, service: FakeCore) -> None:
        self.service = service
        self._server: GrpcServer | None = None
        self._port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def is_up(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        self._server = GrpcServer(self.service, self.address)
        self._port = self._server.port
        await self._server.start()

    async def stop(self) -> None:
        """Go down at once, with whatever is in flight."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop()

    async def drain(self) -> None:
        """Answer what is in flight, then go down."""
        assert self._server is not None
        await self._server.drain()
        await self.stop()


class Pauses(list[float]):
    """A client's sleep: remembers what was to be waited and waits not. A server that is down comes back meanwhile."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.is_server_to_come = True
        self._site = site
        self._loop = asyncio.get_running_loop()

    async def wait(self, seconds: float) -> None:
        self.append(seconds)
        if self.is_server_to_come and not self._site.is_up:
            await self._site.start()

    def block(self, seconds: float) -> None:
        """`wait` for a client in another thread."""
        asyncio.run_coroutine_threadsafe(self.wait(seconds), self._loop).result()
