"""Errors as RFC 9457 problem documents: the one place where the tree of errors meets HTTP.

Knows status codes and titles. Knows nothing of routes or of what went wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tidegate import errors
from tidegate.observability.requests import CANCELLED, outcome_of
from tidegate.transports.asgi import Receive, Scope, Send
from tidegate.transports.compression import ENCODINGS
from tidegate.transports.http.exchange import OUTCOME

PROBLEM = "application/problem+json"


class Kind(NamedTuple):
    """How a class of errors looks over HTTP."""

    status: int
    title: str

    @property
    def type(self) -> str:
        """The URI that RFC 9457 calls the problem's type."""
        return "urn:tidegate:problem:" + self.title.lower().replace(" ", "-")


KINDS: dict[type[Exception], Kind] = {
    errors.InvalidInputError: Kind(400, "Invalid input"),
    errors.NotFoundError: Kind(404, "Not found"),
    errors.AlreadyExistsError: Kind(409, "Already exists"),
    errors.PositionConflictError: Kind(409, "Position conflict"),
    errors.SessionEndedError: Kind(410, "Session ended"),
    errors.FailedPreconditionError: Kind(412, "Not possible here or now"),
    errors.TooLargeError: Kind(413, "Too large"),
    errors.OverloadedError: Kind(429, "Overloaded"),
    errors.TidegateError: Kind(500, "Internal error"),
    errors.NotSupportedError: Kind(501, "Not supported"),
    errors.UnavailableError: Kind(503, "Unavailable"),
    errors.DeadlineExceededError: Kind(504, "Too late"),
}

# What HTTP tells apart and the tree of errors does not, by the error's reason.
KINDS_OF_REASONS: dict[str, Kind] = {
    "BODY_TIMEOUT": Kind(408, "Request timeout"),
    "URL_TOO_LONG": Kind(414, "URL too long"),
    "UNKNOWN_ENCODING": Kind(415, "Unsupported media type"),
    "HEADERS_TOO_LARGE": Kind(431, "Request header fields too large"),
}

# Answers that tell when to come back: their reader should not have to guess.
RETRIABLE = frozenset({429, 503})

# Details are strings in the core (gRPC metadata); these are numbers in JSON.
NUMBERS = frozenset({"position", "sequence"})


class Problem(NamedTuple):
    """A problem document and the status that it goes out with."""

    status: int
    document: dict[str, Any]
    headers: dict[str, str]

    @property
    def body(self) -> bytes:
        return to_json(self.document)

    def response(self) -> Response:
        return Response(self.body, self.status, self.headers, media_type=PROBLEM)

    def events(self) -> list[MutableMapping[str, Any]]:
        """The response as ASGI's events."""
        body = self.body
        fields = {"content-type": PROBLEM, "content-length": str(len(body)), **self.headers}
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
        return [
            {"type": "http.response.start", "status": self.status, "headers": headers},
            {"type": "http.response.body", "body": body},
        ]


def kind_of(error: errors.TidegateError) -> Kind:
    """The kind of ``error``'s reason, else of its nearest class that has one; each is at least a TidegateError."""
    return KINDS_OF_REASONS.get(error.reason) or next(KINDS[base] for base in type(error).__mro__ if base in KINDS)


def problem(error: errors.TidegateError) -> Problem:
    """The problem document for ``error``: its kind, its message and reason, and its details beside them."""
    kind = kind_of(error)
    members = {**_members(kind), "detail": error.message, "reason": error.reason}
    details = {key: int(value) if key in NUMBERS else value for key, value in error.details.items()}
    headers = _retry_after(kind.status, error.retry_after)
    if error.reason == "UNKNOWN_ENCODING":  # RFC 9110, 15.5.16: so it says which there are
        headers["Accept-Encoding"] = ", ".join(ENCODINGS)
    if error.reason == "BODY_TIMEOUT":  # or what still trickles in would be read on; HTTP/2 leaves the field out
        headers["Connection"] = "close"
    return Problem(kind.status, members | details | members, headers)


def _members(kind: Kind) -> dict[str, Any]:
    return {"type": kind.type, "title": kind.title, "status": kind.status}


def _retry_after(status: int, seconds: float | None) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds or 0)))} if status in RETRIABLE else {}


Form = TypeVar("Form", bound=BaseModel)

# pydantic's words, which are for who wrote the model, and those for who wrote the request.
_WORDS = (
    (re.compile(r"^Field required"), "is missing"),
    (re.compile(r" or instance of \w+"), ""),
    (re.compile(r"^(Input|String|List|Value) should "), "must "),
    (re.compile(r"a valid dictionary"), "an object"),
    (re.compile(r"a valid integer"), "a whole number"),
    (re.compile(r"a valid boolean"), "true or false"),
    (re.compile(r"a valid "), "a "),
    (re.compile(r" after validation, not \d+"), ""),
    (re.compile(r", unable to (parse|interpret) .*"), ""),
)


def read_form(kind: type[Form], document: dict[str, Any]) -> Form:
    """A request's body as its schema has it; InvalidInputError where it is not so."""
    for key in document:  # pydantic would make an error of each unknown key, and there may be hundreds of thousands
        if key not in kind.model_fields:
            raise unknown_key(key, kind.model_fields)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise invalid(error.errors()) from None


def unknown_key(key: str, known: Iterable[str] = (), path: str = "") -> errors.InvalidInputError:
    """The error for a key that is none of ``known``; ``path`` is where it stands."""
    known = sorted(known)
    allowed = errors.known_names(key, known, "the keys are") if known else ""
    return errors.InvalidInputError(f"unknown key {errors.shown(path + key)}{allowed}")


def invalid(complaints: Sequence[Any]) -> errors.InvalidInputError:
    """The first of pydantic's complaints as a sentence that names the key."""
    first = complaints[0]
    where = ".".join(str(part) for part in first["loc"] if part not in {"body", "query"})
    if first["type"] == "extra_forbidden":
        return unknown_key(where)
    text = str(first["msg"])
    for pattern, word in _WORDS:
        text = pattern.sub(word, text)
    return errors.InvalidInputError(f"{where}: {text}" if where else text)


def _unrouted(error: HTTPException) -> Problem:
    """What the router itself refuses: an unknown path, a wrong method."""
    status = HTTPStatus(error.status_code)
    kind = Kind(status, status.phrase.capitalize())
    reason = "NO_SUCH_PATH" if status == HTTPStatus.NOT_FOUND else status.name
    detail = status.description or status.phrase
    return Problem(status, {**_members(kind), "detail": detail, "reason": reason}, dict(error.headers or {}))


async def answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.TidegateError)
    request.scope[OUTCOME] = outcome_of(error)
    return problem(error).response()


async def answer_unrouted(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _unrouted(error).response()


async def answer_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem(invalid(error.errors())).response()


class NoResponse(Response):
    """The answer to a client that has left: nothing is sent, which the server would refuse."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[OUTCOME] = CANCELLED


async def answer_disconnected(_: Request, error: Exception) -> Response:
    return NoResponse()


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    errors.TidegateError: answer_error,
    RequestValidationError: answer_invalid,
    HTTPException: answer_unrouted,
    ClientDisconnect: answer_disconnected,
}


def install(app: Starlette) -> None:
    """Let ``app`` answer every error as a problem document."""
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
