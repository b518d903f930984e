"""One request and its reply: the body read within its bound, the deadline, JSON written.

Knows ASGI. Knows nothing of routes and of what bodies mean.
"""

from __future__ import annotations

import asyncio
import math
from codecs import BOM_UTF8
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from types import coroutine
from typing import TYPE_CHECKING, Any, Protocol, cast

from fastapi.routing import APIRoute
from pydantic_core import from_json, to_json
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope

from tidegate.api import Core
from tidegate.errors import DeadlineExceededError, InvalidInputError, NotSupportedError, TooLargeError, shown
from tidegate.limits import LARGE_JSON_BYTES
from tidegate.slices import in_slices
from tidegate.transports.compression import ENCODINGS, decompress
from tidegate.transports.http import large_json

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tidegate.clock import Clock
    from tidegate.config import Settings

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


def service_of(request: Request) -> Core:
    """The service behind the application that ``request`` came to."""
    core: Core = request.app.state.service
    return core


def link(request: Request, path: str) -> str:
    """Return a path of this server as the client has to ask for it: a proxy may show the server below another."""
    return f"{request.scope.get('root_path', '')}{path}"


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
    text = data.removeprefix(BOM_UTF8) if isinstance(data, bytes) else data.removeprefix("\ufeff")
    try:
        value = from_json(text)
    except ValueError as error:
        raise large_json.malformed(data, str(error)) from None
    return _object(value)


async def parse_in_slices(data: bytes) -> dict[str, Json]:
    """`parse` for data that may be large: then long lists of numbers in it are `large_json.Pieces`."""
    return parse(data) if len(data) <= LARGE_JSON_BYTES else _object(await in_slices(large_json.read(data)))


def _object(value: Json) -> dict[str, Json]:
    if type(value) is not dict:
        raise InvalidInputError("the body must be a JSON object")
    return value


class Host(Protocol):
    """Who bodies are read for."""

    @property
    def settings(self) -> Settings: ...

    @property
    def clock(self) -> Clock: ...


async def read_json(scope: Scope, receive: Receive, host: Host, *, may_be_empty: bool = False) -> dict[str, Json]:
    """Return the request's body, a JSON object; with ``may_be_empty`` no body stands for an object without keys.

    Raises:
        InvalidInputError: It is none; or as of `read_body`, whose other errors are raised too.
    """
    body = await read_body(scope, receive, host)
    return {} if may_be_empty and not body else await parse_in_slices(body)


def max_bytes(settings: Settings) -> int:
    return int(settings.max_message_mb * MEBIBYTE)


async def read_body(scope: Scope, receive: Receive, host: Host) -> bytes:
    """Return the request's body, unpacked where it is compressed.

    Raises:
        InvalidInputError: It is not what its ``Content-Encoding`` says.
        NotSupportedError: That encoding is unknown.
        TooLargeError: It is over the limit, as sent or as unpacked: raised as soon as that is known.
        DeadlineExceededError: It is not all here within the setting ``body_timeout``.
        ClientDisconnect: The client has left.
    """
    limit, encoding = max_bytes(host.settings), ""
    for name, value in scope["headers"]:
        # One length may be told as a list (RFC 9110, 8.6: "12, 12"); the server has checked that its members are equal.
        if name == b"content-length" and int(value.partition(b",")[0]) > limit:
            raise too_large(limit)
        if name == b"content-encoding":
            encoding += "," + value.decode("latin-1")
    known = _encoding_of(encoding) if encoding else None
    seconds, now = host.settings.body_timeout, host.clock.monotonic
    deadline = now() + seconds
    pieces: list[bytes] = []
    size, is_more = 0, True
    while is_more:
        message = await _receive_within(seconds, receive)
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece, is_more = message.get("body", b""), message.get("more_body", False)
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise too_large(limit)
        if is_more:
            seconds = deadline - now()
    body = b"".join(pieces)
    return body if known is None else await in_slices(decompress(body, known, limit))


def _encoding_of(header: str) -> str | None:
    """Return the one encoding that ``Content-Encoding`` names, None where the body is as it is."""
    named = [part for each in header.split(",") if (part := each.strip().lower()) not in {"", "identity"}]
    if not named:
        return None
    encoding = named[0].removeprefix("x-")  # RFC 9110: x-gzip is gzip
    if len(named) > 1 or encoding not in ENCODINGS:
        raise NotSupportedError(
            f"Content-Encoding {shown(', '.join(named))} is not supported: use one of {', '.join(ENCODINGS)}, or none",
            reason="UNKNOWN_ENCODING",
        )
    return encoding


async def _receive_within(seconds: float, receive: Receive) -> Message:
    """Return what comes next of a request.

    Raises:
        DeadlineExceededError: Nothing came in time.
    """
    if seconds > 0:
        steps = receive().__await__()
        try:
            waits_for = next(steps)
        except StopIteration as done:  # as for most requests, whose body comes with their head: no timer is set
            return cast("Message", done.value)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await _go_on(steps, waits_for)
    raise DeadlineExceededError("the request's body was not sent in time", reason="BODY_TIMEOUT")


@coroutine
def _go_on(steps: Generator[Any, None, Message], waits_for: Any) -> Generator[Any, None, Message]:
    """Await what has begun, and now waits."""
    try:
        while True:
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - cancelled, most of all
                waits_for = steps.throw(error)
            else:
                waits_for = next(steps)
    except StopIteration as done:
        return cast("Message", done.value)


def too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"a message may have {limit} bytes at most")


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of the header ``name``, which is given in lower case."""
    for key, value in headers:
        if key == name:
            return value
    return None


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


def deadline(scope: Scope, service: Core) -> float:
    """When this request must be done, by the service's clock."""
    return service.clock.monotonic() + timeout(scope, service.settings)
