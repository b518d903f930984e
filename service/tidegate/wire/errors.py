"""Errors ↔ gRPC statuses.

A gRPC error carries `google.rpc.ErrorInfo` (reason, domain ``tidegate``, details as metadata) and, where trying again
makes sense, `google.rpc.RetryInfo`. Inside a stream the same facts travel as `tidegate.v1.Error`.
"""

from __future__ import annotations

from typing import cast

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from tidegate.errors import (
    AlreadyExistsError,
    Code,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidInputError,
    NotFoundError,
    NotSupportedError,
    OverloadedError,
    PositionConflictError,
    SessionEndedError,
    TidegateError,
    TooLargeError,
    UnavailableError,
)
from tidegate.v1 import types_pb2

DOMAIN = "tidegate"
# Trailing metadata is limited to 8 KiB by default, and the message stands in it twice, once percent-encoded.
MESSAGE_LIMIT = 400

# The way back, by code. Where a code stands for several classes, the reason decides: see `_class_of`.
_CLASSES: dict[int, type[TidegateError]] = {
    kind.code: kind
    for kind in (
        InvalidInputError,
        NotFoundError,
        AlreadyExistsError,
        FailedPreconditionError,
        OverloadedError,
        InternalError,
        NotSupportedError,
        UnavailableError,
        DeadlineExceededError,
    )
}
_ENDED = frozenset(
    {
        "SESSION_CLOSED",
        "SESSION_EXPIRED",
        "SESSION_IDLE",
        "SESSION_EVICTED",
        "SESSION_REPLACED",
        "SEQUENCE_RESTARTED",
    }
)


def encode_status(error: TidegateError) -> grpc.Status:
    """Code, message and trailing metadata with which a call ends."""
    status = status_pb2.Status(code=error.code, message=error.message[:MESSAGE_LIMIT])
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.details)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        status.details.add().Pack(retry)
    return rpc_status.to_status(status)


def decode_status(call: grpc.RpcError) -> TidegateError:
    """The error that ended a call; what did not come from tidegate (connection refused, say) is mapped by its code."""
    # Errors of grpc and of grpc.aio have these methods; neither RpcError says so.
    ended = cast("grpc.Call", call)
    status = rpc_status.from_call(ended)
    if status is None:
        return _rebuild(ended.code().value[0], "", ended.details() or "", {}, None)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return _rebuild(status.code, info.reason, status.message, dict(info.metadata), retry_after)


def encode_error(error: TidegateError) -> types_pb2.Error:
    """An error as it stands inside a stream."""
    message = types_pb2.Error()
    fill_error(message, error)
    return message


def fill_error(message: types_pb2.Error, error: TidegateError) -> None:
    """As `encode_error`, in place: a message of a stream may hold one for each of 65,536 lanes."""
    message.code, message.reason, message.message = error.code, error.reason, error.message
    if error.details:
        message.details.update(error.details)
    if error.retry_after:
        message.retry_after = error.retry_after


def decode_error(message: types_pb2.Error) -> TidegateError:
    """The inverse of `encode_error`."""
    details, retry_after = dict(message.details), message.retry_after or None
    return _rebuild(message.code, message.reason, message.message, details, retry_after)


def _rebuild(code: int, reason: str, message: str, details: dict[str, str], retry_after: float | None) -> TidegateError:
    if code == Code.ABORTED and details.get("position", "").isdigit():
        return PositionConflictError(message, position=int(details["position"]), reason=reason or None)
    kind = _class_of(code, reason)
    # A call that was cancelled, say, has no class of ours and no reason: its code's name is the reason.
    reason = reason or (code_pb2.Code.Name(code) if kind is TidegateError else kind.default_reason)
    return kind(message, reason=reason, details=details, retry_after=retry_after)


def _class_of(code: int, reason: str) -> type[TidegateError]:
    if code == Code.NOT_FOUND and reason in _ENDED:
        return SessionEndedError
    # gRPC itself refuses an oversized message by this code and gives no reason.
    if code == Code.RESOURCE_EXHAUSTED and (not reason or reason.endswith(TooLargeError.default_reason)):
        return TooLargeError
    return _CLASSES.get(code, TidegateError)
