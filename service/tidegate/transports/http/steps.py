"""uvicorn's HTTP protocol, with a short cut for steps: no task, no ASGI and no router between the socket and the core.

A small ``:step`` request is submitted as soon as its body is here, and its reply is written when the core's future is
done. Whatever is not recognized as one is handed on to uvicorn as if nobody had looked, and the route of the same name
answers it the same. Middleware sees nothing of what takes the short cut: what concerns every request belongs here too.

Knows the callbacks of httptools and what uvicorn keeps of a request (its *cycle*). Knows nothing of what bodies mean.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, cast

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tidegate.core import StepResult
from tidegate.faults import conceal
from tidegate.limits import LARGE_JSON_BYTES
from tidegate.observe.requests import CANCELLED, OK, Begun, Requests, outcome_of
from tidegate.slices import in_slices
from tidegate.transports.http import convert
from tidegate.transports.http.errors import PROBLEM, problem
from tidegate.transports.http.exchange import JSON, TIMEOUT, dump, max_bytes, parse, seconds
from tidegate.transports.http.large_json import write

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tidegate.service import Service

# An id that needs no decoding; any other is the router's to look at.
STEP = re.compile(rb"/v1/sessions/([A-Za-z0-9._~-]+):step")
CONTENT_TYPE = JSON.encode()
UNUSUAL = frozenset({b"expect", b"upgrade", b"transfer-encoding"})


class Exchange:
    """What uvicorn looks at in a cycle, for a step that is under way; one a connection, used again and again."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self) -> None:
        self.disconnected = False
        self.keep_alive = True
        self.message_event = asyncio.Event()
        self.response_complete = True


class StepProtocol(HttpToolsProtocol):
    """One client's connection. At most one step takes the short cut at a time; what is pipelined behind it waits."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        state = cast("FastAPI", config.app).state
        self._service: Service = state.service
        self._requests: Requests = state.requests
        self._watched = self._requests.method("http", "Step")
        # Of the step that is under way.
        self._begun: Begun = None
        self._stepped = ""
        self._max_body = min(LARGE_JSON_BYTES, max_bytes(self._service.settings))
        self._exchange = Exchange()
        self.cycle = cast("RequestResponseCycle", self._exchange)
        self._answer_to: asyncio.Future[Any] | None = None
        self._common: list[tuple[bytes, bytes]] | None = None
        self._common_head = b""
        # Of the request that is being read.
        self._url = self._body = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._session: str | None = None
        self._timeout: bytes | None = None

    # ---- what httptools calls

    def on_message_begin(self) -> None:
        self._url = self._body = b""
        self._fields = []
        self._session = None

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._session = self._recognized()
        if self._session is None:
            self._hand_on()
            return
        exchange = self._exchange
        exchange.response_complete = False
        exchange.keep_alive = self.parser.should_keep_alive()
        self.cycle = cast("RequestResponseCycle", exchange)

    def on_body(self, body: bytes) -> None:
        if self._session is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        if self._session is None:
            super().on_message_complete()
        else:
            self._submit(self._session)

    # ---- the short cut

    def _recognized(self) -> str | None:
        """The session that this request steps, None where it is to go the long way."""
        match = STEP.fullmatch(self._url)
        if match is None or self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        if self.flow.write_paused or not self.cycle.response_complete:
            return None
        # Reversed, so that the first of equal names counts, as on the long way.
        fields = {name.lower(): value for name, value in reversed(self._fields)}
        if not UNUSUAL.isdisjoint(fields) or int(fields.get(b"content-length", 0)) > self._max_body:
            return None
        self._timeout = fields.get(TIMEOUT)
        return match[1].decode()

    def _hand_on(self) -> None:
        super().on_message_begin()
        super().on_url(self._url)
        for name, value in self._fields:
            super().on_header(name, value)
        super().on_headers_complete()

    def _submit(self, session: str) -> None:
        self._begun, self._stepped = self._requests.begin(self._fields, session), session
        try:
            chunk, ask, position = convert.parse_step(parse(self._body))
            until = self._service.clock.monotonic() + seconds(self._timeout, self._service.settings)
            future = self._service.step(session, chunk, ask, position, until)
        except Exception as error:  # noqa: BLE001 - the client is told, whatever it is
            self._refuse(error)
            return
        self._answer_to = future
        future.add_done_callback(self._answer)

    def _answer(self, future: asyncio.Future[Any]) -> None:
        """Answer with a step's result, or, where that is large, with what was written of it in slices."""
        self._answer_to = None
        if future.cancelled():  # by the client's leaving; or the server goes down
            self._watched.end(self._begun, CANCELLED, self._stepped)
            self.transport.close()
            return
        try:
            body = future.result()
            if isinstance(body, StepResult):
                if body.prediction.is_large:
                    self._answer_to = asyncio.ensure_future(in_slices(write(convert.step_json(body))))
                    self._answer_to.add_done_callback(self._answer)
                    return
                body = dump(convert.step_json(body))
        except Exception as error:  # noqa: BLE001 - the client is told, whatever it is
            self._refuse(error)
        else:
            self._watched.end(self._begun, OK, self._stepped)
            self._write(200, CONTENT_TYPE, body)

    def _refuse(self, error: Exception) -> None:
        told = conceal(error)
        answer = problem(told)
        self._watched.end(self._begun, outcome_of(told), self._stepped)
        fields = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        self._write(answer.status, PROBLEM.encode(), answer.body, fields.encode())

    def _write(self, status: int, content_type: bytes, body: bytes, fields: bytes = b"") -> None:
        if self.transport.is_closing():  # The client left when its step was done.
            return
        exchange = self._exchange
        if not exchange.keep_alive:
            fields += b"connection: close\r\n"
        self.transport.write(
            b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b"
            % (STATUS_LINE[status], self._head(), content_type, len(body), fields, body)
        )
        exchange.response_complete = True
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _head(self) -> bytes:
        """The header fields of every reply, as lines. uvicorn makes a new list of them once a second, for the date."""
        common = self.server_state.default_headers
        if common is not self._common:
            self._common = common
            self._common_head = b"".join(b"%b: %b\r\n" % field for field in common)
        return self._common_head

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._answer_to is not None:
            self._answer_to.cancel()
