"""Every error has a code, carries its facts to a client, and comes out there as what went in."""

from __future__ import annotations

import inspect
from typing import cast

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import aio
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from tests.service.fake_core import FakeCore
from tests.service.grpc.conftest import Stubs
from tidegate import errors
from tidegate.errors import TidegateError
from tidegate.v1 import models_pb2
from tidegate.wire.errors import MESSAGE_LIMIT, decode_error, decode_status, encode_error

Code = grpc.StatusCode

# DESIGN.md's table.
EXPECTED = [
    (errors.InvalidInputError("m", reason="EMPTY_SEQUENCE"), Code.INVALID_ARGUMENT),
    (errors.NotFoundError("m", reason="UNKNOWN_MODEL"), Code.NOT_FOUND),
    (errors.AlreadyExistsError("m"), Code.ALREADY_EXISTS),
    (errors.PositionConflictError("m", position=7), Code.ABORTED),
    (errors.SessionEndedError("m", reason="SESSION_IDLE"), Code.NOT_FOUND),
    (errors.FailedPreconditionError("m", reason="NOT_ON_THIS_REPLICA"), Code.FAILED_PRECONDITION),
    (errors.TooLargeError("m", reason="REPLY_TOO_LARGE"), Code.RESOURCE_EXHAUSTED),
    (errors.OverloadedError("m", reason="QUEUE_FULL", retry_after=1.5), Code.RESOURCE_EXHAUSTED),
    (errors.InternalError("m"), Code.INTERNAL),
    (errors.NotSupportedError("m"), Code.UNIMPLEMENTED),
    (errors.UnavailableError("m", reason="DRAINING", retry_after=1.0), Code.UNAVAILABLE),
    (errors.DeadlineExceededError("m"), Code.DEADLINE_EXCEEDED),
]


async def call_error(stubs: Stubs, service: FakeCore, error: Exception) -> aio.AioRpcError:
    """How a call ends in which the core raises ``error``."""
    service.failures["echo"] = [error]
    with pytest.raises(aio.AioRpcError) as caught:
        await stubs.models.Get(models_pb2.GetModelRequest(model="echo"))
    return caught.value


def facts(error: TidegateError) -> tuple[object, ...]:
    return type(error), error.message, error.reason, error.details, error.retry_after


def test_every_error_class_has_a_code_of_google_rpc() -> None:
    classes = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, TidegateError)}
    assert {kind for kind in classes - {TidegateError} if "code" not in vars(kind)} == set()
    assert {name for code in errors.Code if (name := code_pb2.Code.Name(code)) != code.name} == set()


@pytest.mark.parametrize(("error", "code"), EXPECTED, ids=lambda value: type(value).__name__)
async def test_an_error_carries_its_facts(
    stubs: Stubs, service: FakeCore, error: TidegateError, code: grpc.StatusCode
) -> None:
    ended = await call_error(stubs, service, error)
    assert ended.code() == code
    assert ended.details() == "m"
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    status = rpc_status.from_call(cast("grpc.Call", ended))
    assert isinstance(status, status_pb2.Status)
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (error.reason, "tidegate", error.details)
    assert [detail.Unpack(retry) for detail in status.details[1:]] == [True] * (error.retry_after is not None)
    assert retry.retry_delay.ToNanoseconds() == round((error.retry_after or 0) * 1e9)


@pytest.mark.parametrize(("error", "code"), EXPECTED, ids=lambda value: type(value).__name__)
async def test_a_client_gets_the_error_that_the_core_raised(
    stubs: Stubs, service: FakeCore, error: TidegateError, code: grpc.StatusCode
) -> None:
    assert error.code == code.value[0]
    assert facts(decode_status(await call_error(stubs, service, error))) == facts(error)
    assert facts(decode_error(encode_error(error))) == facts(error)


async def test_an_unexpected_error_is_logged_and_not_shown(
    stubs: Stubs, service: FakeCore, caplog: pytest.LogCaptureFixture
) -> None:
    ended = await call_error(stubs, service, ZeroDivisionError("/home/secret"))
    assert ended.code() == Code.INTERNAL
    assert "secret" not in str(ended)
    assert decode_status(ended).reason == "INTERNAL"
    assert "ZeroDivisionError: /home/secret" in caplog.text


async def test_a_long_message_is_cut_to_what_trailers_hold(stubs: Stubs, service: FakeCore) -> None:
    ended = await call_error(stubs, service, errors.InvalidInputError("é" * 5000))
    assert ended.details() == "é" * MESSAGE_LIMIT
    assert isinstance(decode_status(ended), errors.InvalidInputError)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with aio.insecure_channel("127.0.0.1:1") as channel:
        call = channel.unary_unary("/tidegate.v1.Models/List", lambda raw: raw, lambda raw: raw)
        with pytest.raises(aio.AioRpcError) as caught:
            await call(b"")
    error = decode_status(caught.value)
    assert isinstance(error, errors.UnavailableError)
    assert (error.reason, error.retry_after) == ("UNAVAILABLE", None)


def test_a_code_without_a_class_of_ours_keeps_its_name() -> None:
    message = encode_error(errors.InternalError("m"))
    message.code, message.reason = Code.CANCELLED.value[0], ""
    assert facts(decode_error(message)) == (TidegateError, "m", "CANCELLED", {}, None)


@given(
    st.sampled_from([error for error, _ in EXPECTED if not isinstance(error, errors.PositionConflictError)]),
    st.text(),
    st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
    st.none() | st.floats(1e-3, 1e6),
)
def test_errors_in_streams_round_trip(
    error: TidegateError, message: str, details: dict[str, str], retry_after: float | None
) -> None:
    sent = type(error)(message, reason=error.reason, details=details, retry_after=retry_after)
    assert facts(decode_error(encode_error(sent))) == facts(sent)
