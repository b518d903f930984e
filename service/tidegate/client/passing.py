"""Which errors pass: where the same request, sent again, may find a server."""

from __future__ import annotations

from typing import cast

import grpc
from google.rpc import code_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from tidegate.client.endpoint import Endpoint
from tidegate.client.tls import why_not_connected
from tidegate.errors import DeadlineExceededError, TidegateError, UnavailableError
from tidegate.v1 import predictor_pb2
from tidegate.wire.errors import decode_error, decode_status

PASSING = (UnavailableError, DeadlineExceededError)
"""Ends of a stream after which another may serve."""

STREAM_BROKEN = "STREAM_BROKEN"

# How gRPC begins what it says where no connection came about.
_NOT_CONNECTED = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")

# Statuses that gRPC makes up where a stream is reset, or its end and a write cross; a server of ours says more.
_BREAKS = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})


def why_ended(error: grpc.RpcError, endpoint: Endpoint) -> TidegateError:
    """Why a call or a stream has ended: the server's word, or, where gRPC lost it, that it broke off or never began."""
    told = decode_status(error)
    # Errors of grpc and of grpc.aio have a code; RpcError does not say so.
    call = cast("grpc.Call", error)
    if rpc_status.from_call(call) is not None:
        return told
    if call.code() in _BREAKS:
        return UnavailableError(f"the stream broke: {told.message}", reason=STREAM_BROKEN)
    if call.code() is grpc.StatusCode.UNAVAILABLE and told.message.startswith(_NOT_CONNECTED):
        return why_not_connected(endpoint, told.message)
    return told


def passing_error(reply: predictor_pb2.StreamReply) -> TidegateError | None:
    """The error of a reply, or of one of its lanes, that a repeat may not meet; None where there is none."""
    kind = reply.WhichOneof("message")
    if kind == "step":
        return None
    lanes = reply.attached.errors if kind == "attached" else reply.columns.errors
    errors = [reply.error] if kind == "error" else [lane.error for lane in lanes]
    return next((decode_error(error) for error in errors if error.code == code_pb2.UNAVAILABLE), None)
