"""One flat tree of errors. Each class carries its canonical code, each error the stable ``reason`` that clients may
branch on. Each transport maps them once: ``wire/errors.py`` for gRPC, ``transports/http/errors.py`` for HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum
from itertools import islice
from typing import ClassVar

from tidegate.limits import MAX_MESSAGE_LENGTH, MAX_NAME_LENGTH


class Code(IntEnum):
    """The canonical codes, numbered as in google.rpc.Code (googleapis, google/rpc/code.proto)."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


def shown(text: str) -> str:
    """Return ``text`` in quotes, for a message; of a long one only the beginning."""
    return repr(text) if len(text) <= MAX_NAME_LENGTH else f"{text[:MAX_NAME_LENGTH]!r}…"


def encodable(text: str) -> str:
    """Return ``text`` with escapes for what UTF-8 cannot carry: halves of characters, as in foreign file names."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


_MOST_LISTED = 10
_MOST_COMPARED = 1000


def listed(names: Iterable[str]) -> str:
    """Return ``names`` for a message, ten at most and then how many more there are; "none" if there is none."""
    names = list(names)
    shown_names = [
        name if len(name) <= MAX_NAME_LENGTH and name.isprintable() else shown(name) for name in names[:_MOST_LISTED]
    ]
    more = len(names) - len(shown_names)
    return ", ".join(shown_names) + (f" and {more} more" if more else "") or "none"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the name that ``name`` was probably meant to be, whatever its case; None if no name is close."""
    by_folded = {each[:MAX_NAME_LENGTH].casefold(): each for each in islice(known, _MOST_COMPARED)}
    matches = get_close_matches(name[:MAX_NAME_LENGTH].casefold(), by_folded, 1)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``: did you mean 'x'?``, to stand behind a message about an unknown name; empty if no name is close."""
    meant = closest(name, known)
    return "" if meant is None else f": did you mean {shown(meant)}?"


def known_names(name: str, known: Iterable[str], has: str) -> str:
    """Return the end of a message about an unknown name: which name was probably meant, and which names there are.

    Args:
        name: The unknown name.
        known: The names that are allowed; nothing secret.
        has: What stands before their list: "the model has".
    """
    known = list(known)
    hint = did_you_mean(name, known)
    return f"{hint} {has[0].upper()}{has[1:]} {listed(known)}" if hint else f": {has} {listed(known)}"


class TidegateError(Exception):
    """An error that a caller may see.

    Args:
        message: One sentence for a person, without a trailing stack or path of ours; what is beyond
            `MAX_MESSAGE_LENGTH` is cut off.
        reason: A stable UPPER_SNAKE word for programs; each class has a default.
        details: Facts a program may use, such as ``position`` of a conflict.
        retry_after: Seconds after which trying again makes sense, where it does.
        cause: What else the log is told: addresses, paths, the words of a library. No caller sees it; it is part of
            ``str(error)``.
    """

    code: ClassVar[Code] = Code.INTERNAL
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        details: dict[str, str] | None = None,
        retry_after: float | None = None,
        cause: str = "",
    ) -> None:
        message = encodable(message[: MAX_MESSAGE_LENGTH + 1])
        if len(message) > MAX_MESSAGE_LENGTH:
            message = message[: MAX_MESSAGE_LENGTH - 1] + "…"
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.details = details or {}
        self.retry_after = retry_after
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.message}: {self.cause}" if self.cause else self.message


def without_traceback(error: TidegateError) -> TidegateError:
    """Return an error that is told now and raised no more, without the frames that it came through.

    They hold the request, and the frame that has caught the error holds the error: a cycle, which would keep megabytes
    until the next garbage collection.
    """
    error.__traceback__ = None
    return error


class InvalidInputError(TidegateError):
    """The request is malformed or its input does not fit the model."""

    code = Code.INVALID_ARGUMENT
    default_reason = "INVALID_INPUT"


class NotFoundError(TidegateError):
    """No such model, version or session."""

    code = Code.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExistsError(TidegateError):
    """The id is taken by a session that was opened with another request."""

    code = Code.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class PositionConflictError(TidegateError):
    """The request's position is not the session's; ``details["position"]`` says where the session is.

    With the reason REPLY_DROPPED the request repeats the last chunk, which was applied; its reply is not kept any more.
    """

    code = Code.ABORTED
    default_reason = "POSITION_CONFLICT"

    def __init__(self, message: str, *, position: int, reason: str | None = None) -> None:
        super().__init__(message, reason=reason, details={"position": str(position)})
        self.position = position


class SessionEndedError(TidegateError):
    """The session is over; ``reason`` is SESSION_CLOSED, SESSION_EXPIRED, SESSION_IDLE, SESSION_EVICTED,
    SESSION_REPLACED or SEQUENCE_RESTARTED.
    """

    code = Code.NOT_FOUND
    default_reason = "SESSION_CLOSED"


class FailedPreconditionError(TidegateError):
    """Not possible here or now, whatever the input: another replica's session, a model that is gone."""

    code = Code.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class TooLargeError(TidegateError):
    """The request, or the reply that it asks for, is over the size limit."""

    code = Code.RESOURCE_EXHAUSTED
    default_reason = "TOO_LARGE"


class OverloadedError(TidegateError):
    """A queue or the arena is full; nothing was done."""

    code = Code.RESOURCE_EXHAUSTED
    default_reason = "OVERLOADED"


class InternalError(TidegateError):
    """A fault of ours."""

    code = Code.INTERNAL
    default_reason = "INTERNAL"


class NotSupportedError(TidegateError):
    """The model or this build cannot do that."""

    code = Code.UNIMPLEMENTED
    default_reason = "NOT_SUPPORTED"


class UnavailableError(TidegateError):
    """Draining, or the store is away; the outcome of a step is unknown: repeat it with its position."""

    code = Code.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class DeadlineExceededError(TidegateError):
    """The request's time ran out before its commit."""

    code = Code.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class BundleError(TidegateError):
    """A bundle is missing, half-written, altered, of another format, or without a passed streaming proof."""

    code = Code.FAILED_PRECONDITION
    default_reason = "BAD_BUNDLE"


class ConfigurationError(TidegateError):
    """The server, or a client, is set up in a way that cannot work."""

    code = Code.INTERNAL
    default_reason = "BAD_CONFIGURATION"
