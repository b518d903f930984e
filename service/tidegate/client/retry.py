"""Retrying: which errors another try may not meet, and how long and how often to try.

Which requests may be repeated is for callers to know.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import grpc
from google.rpc import code_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from tidegate.client.endpoint import Endpoint
from tidegate.client.tls import why_not_connected
from tidegate.errors import DeadlineExceededError, TidegateError, UnavailableError
from tidegate.v1 import predictor_pb2
from tidegate.wire.errors import decode_error, decode_status

TRANSIENT_ERRORS = (UnavailableError, DeadlineExceededError)
"""Ends of a stream after which another stream may serve."""

STREAM_BROKEN = "STREAM_BROKEN"

# The beginnings of gRPC's messages when no connection came about.
_NOT_CONNECTED = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")

# gRPC makes these up when a stream is reset, or when its end and a write cross. Our server always sends details.
_BREAKS = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})


@dataclass(frozen=True, slots=True)
class Retry:
    """At most ``attempts`` in all, the last of them within ``total`` seconds of the first failure.

    Between them lie pauses, in seconds, whose bounds double from ``initial`` up to ``longest``. Each pause is drawn
    evenly from nothing to its bound, so that clients that failed together do not return together ("full jitter": M.
    Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015). A server that says when to return is heeded,
    but never for longer than ``longest``.
    """

    attempts: int = 50
    initial: float = 0.05
    longest: float = 2.0
    total: float = 30.0

    def begin(self, clock: Callable[[], float] = time.monotonic) -> Tries:
        """Start counting the tries of a request that has failed for the first time; ``clock`` tells seconds."""
        return Tries(self, clock)


class Tries:
    """What one failed request has left of its `Retry`."""

    def __init__(self, retry: Retry, clock: Callable[[], float]) -> None:
        self._retry = retry
        self._clock = clock
        self._num_left = retry.attempts - 1
        self._bound = min(retry.longest, retry.initial)
        self._end = clock() + retry.total

    def next_pause(self, error: TidegateError) -> float | None:
        """Return the seconds to wait after ``error`` before the next try; None if there is no next try."""
        pause = min(self._retry.longest, max(random.uniform(0, self._bound), error.retry_after or 0))
        if self._num_left <= 0 or self._clock() + pause > self._end:
            return None
        self._num_left -= 1
        self._bound = min(self._retry.longest, self._bound * 2)
        return pause

    @property
    def connect_timeout(self) -> float:
        """Seconds that the next try may wait for a connection."""
        return min(self._retry.longest, max(0.0, self._end - self._clock()))


def call_error(error: grpc.RpcError, endpoint: Endpoint) -> TidegateError:
    """Return the error that ended a call: the server's own, or, if gRPC lost it, that the call broke or never began."""
    decoded = decode_status(error)
    # Errors of grpc and of grpc.aio have a code; RpcError does not declare it.
    call = cast("grpc.Call", error)
    if rpc_status.from_call(call) is not None:
        return decoded
    if call.code() in _BREAKS:
        return UnavailableError(f"the stream broke: {decoded.message}", reason=STREAM_BROKEN)
    if call.code() is grpc.StatusCode.UNAVAILABLE and decoded.message.startswith(_NOT_CONNECTED):
        return why_not_connected(endpoint, decoded.message)
    return decoded


def transient_error(reply: predictor_pb2.StreamReply) -> TidegateError | None:
    """Return an error of the reply, or of one of its lanes, that a repeat may not meet; None if there is none."""
    kind = reply.WhichOneof("message")
    if kind == "step":
        return None
    lanes = reply.attached.errors if kind == "attached" else reply.columns.errors
    errors = [reply.error] if kind == "error" else [lane.error for lane in lanes]
    return next((decode_error(error) for error in errors if error.code == code_pb2.UNAVAILABLE), None)
