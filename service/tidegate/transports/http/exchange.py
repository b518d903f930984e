"""One request and its reply: the body read within its bound, the deadline, the client watched, JSON written.

Knows ASGI. Knows nothing of routes and of what bodies mean.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from fastapi.routing import APIRoute
from pydantic_core import from_json, to_json
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from tidegate.errors import InvalidInputError, TooLargeError, shown
from tidegate.limits import LARGE_JSON_BYTES
from tidegate.slices import in_slices
from tidegate.transports.http import large_json

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tidegate.config import Settings
    from tidegate.service import Service

Json = Any

JSON = "application/json"
TIMEOUT = b"tidegate-timeout"
MEBIBYTE = 2**20

OUTCOME = "tidegate.outcome"
"""The scope's key for how a request ended, where the status does not say it all."""


class NameConvertor(Convertor[str]):
    """A path's segment without a colon, for a verb may follow one: ``/v1/sessions/{session:name}:step``."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("name", NameConvertor())


class RawRoute(APIRoute):
    """A documented route whose endpoint gets the request as it is, and so reads and checks the body itself.

    FastAPI's own way reads bodies without bound and costs about 40 µs more a request; what a route declares by
    ``openapi_extra`` and ``responses`` is in the document all the same.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, **request.path_params)
            return response

        return handle


def service_of(request: Request) -> Service:
    """The service behind the application that ``request`` came to."""
    return cast("Service", request.app.state.service)


def json_reply(value: Json, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dump(value), status, headers, media_type=JSON)


def dump(value: Json) -> bytes:
    """Compact JSON. What JSON has no word for, NaN and infinity, is null."""
    return to_json(value, inf_nan_mode="null")


async def reply_in_slices(value: Json) -> Response:
    """`json_reply` for a value that may be large: it may hold iterators and arrays."""
    return Response(await in_slices(large_json.write(value)), media_type=JSON)


def parse(data: bytes | str) -> dict[str, Json]:
    """The JSON object in ``data``; InvalidInputError, with reason INVALID_JSON where it is not JSON at all."""
    try:
        value = from_json(data)
    except ValueError as error:
        raise InvalidInputError(f"malformed JSON: {error}", reason="INVALID_JSON") from None
    return _object(value)


async def parse_in_slices(data: bytes) -> dict[str, Json]:
    """`parse` for data that may be large: then long lists of numbers in it are `large_json.Pieces`."""
    return parse(data) if len(data) <= LARGE_JSON_BYTES else _object(await in_slices(large_json.read(data)))


def _object(value: Json) -> dict[str, Json]:
    if type(value) is not dict:
        raise InvalidInputError("the body must be a JSON object")
    return value


async def read_json(scope: Scope, receive: Receive, settings: Settings) -> dict[str, Json]:
    """The request's body, a JSON object. TooLargeError as soon as it is over the limit, before it is all here."""
    return await parse_in_slices(await read_body(scope, receive, max_bytes(settings)))


def max_bytes(settings: Settings) -> int:
    return int(settings.max_message_mb * MEBIBYTE)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    declared = header(scope["headers"], b"content-length")
    if declared is not None and int(declared) > limit:
        raise too_large(limit)
    pieces: list[bytes] = []
    size, is_more = 0, True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece, is_more = message.get("body", b""), message.get("more_body", False)
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise too_large(limit)
    return b"".join(pieces)


def too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"a message may have {limit} bytes at most")


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of the header ``name``, which is given in lower case."""
    return next((value for key, value in headers if key == name), None)


def timeout(scope: Scope, settings: Settings) -> float:
    """Seconds this request may take: the client's ``tidegate-timeout``, else the setting."""
    return seconds(header(scope["headers"], TIMEOUT), settings)


def seconds(given: bytes | None, settings: Settings) -> float:
    """What the header ``tidegate-timeout`` says, the setting where there is none; InvalidInputError."""
    if given is None:
        return settings.request_timeout
    try:
        wish = float(given)
    except ValueError:
        wish = math.nan
    if not 0 < wish < math.inf:
        raise InvalidInputError(
            f"{TIMEOUT.decode()}: must be seconds greater than 0, got {shown(given.decode('latin-1'))}"
        )
    return wish


def deadline(scope: Scope, service: Service) -> float:
    """When this request must be done, by the service's clock."""
    return service.clock.monotonic() + timeout(scope, service.settings)


class ClientWatch:
    """Cancels what its ``with`` block awaits when the client hangs up, and then raises ClientDisconnect.

    Enter it when the body is read: from there on the server's only news of the client is that it left. It works like
    ``asyncio.timeout``: the block's own task is cancelled, so nothing runs in a task of its own.
    """

    __slots__ = ("_is_gone", "_receive", "_task", "_watcher")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_gone = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_gone:
            self._watcher.cancel()
        elif self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientDisconnect from error
