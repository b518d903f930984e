"""What the adapter refuses: each with the client's fault as its status, counted, and without a word in the log."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.service.transports.asgi import Exchange, body_of, http_scope
from tests.service.transports.interop import SERVICE, Interop, Stub, asking, handlers, on_adapter
from tests.service.transports.serving import front
from tidegate.errors import TidegateError
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.grpc.framing import pack

Code = grpc.StatusCode
GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
LIMIT = 1000

Refused = list[tuple[str, str]]


def adapter_of(servicer: Interop, **options: Any) -> tuple[GrpcAdapter, Refused]:
    """The adapter, and paths and reasons of what it refuses."""
    refused: Refused = []
    on_refused = lambda path, error: refused.append((path, error.reason))  # noqa: E731
    adapter = GrpcAdapter(max_message=LIMIT, on_refused=on_refused, **options)
    adapter.add_registered_method_handlers(SERVICE, handlers(servicer))
    return adapter, refused


def facts(trailers: dict[bytes, bytes]) -> tuple[int, str]:
    """The code of a status, and the reason of its details."""
    packed = trailers[b"grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(packed + b"=" * (-len(packed) % 4)))
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert status.code == int(trailers[b"grpc-status"])
    return int(trailers[b"grpc-status"]), info.reason


MALFORMED = [
    ("no protobuf", [pack(b"\xff\xff\xff")], Code.INVALID_ARGUMENT, "BAD_MESSAGE"),
    ("unknown flags", [b"\x07\0\0\0\0"], Code.INVALID_ARGUMENT, "BAD_MESSAGE"),
    ("cut off", [pack(b"\x0a\x00")[:-1]], Code.INVALID_ARGUMENT, "BAD_MESSAGE"),
    ("compressed without an encoding", [pack(b"", "gzip")], Code.INVALID_ARGUMENT, "BAD_MESSAGE"),
    ("too large", [pack(bytes(LIMIT + 1))], Code.RESOURCE_EXHAUSTED, "TOO_LARGE"),
]


@pytest.mark.parametrize("method", ["Unary", "Output", "Input", "Duplex", "BlockingDuplex"])
@pytest.mark.parametrize(("chunks", "code", "reason"), [each[1:] for each in MALFORMED], ids=[m[0] for m in MALFORMED])
async def test_a_message_that_is_refused(
    method: str, chunks: list[bytes], code: grpc.StatusCode, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    adapter, refused = adapter_of(Interop())
    exchange = Exchange(http_scope(f"/{SERVICE}/{method}", GRPC), body_of(chunks))
    with caplog.at_level(logging.DEBUG):
        await exchange.run(adapter)
    assert facts(exchange.trailers) == (code.value[0], reason)
    assert refused == [(f"/{SERVICE}/{method}", reason)]
    assert not caplog.records


@pytest.mark.parametrize("chunk", [pack(b"\xff" * LIMIT), b"\x07\0\0\0\0"])
async def test_a_refused_message_leaves_no_cycle_for_the_garbage_collector(chunk: bytes) -> None:
    """Collections are rare: what waits for one is memory that a client can fill."""
    adapter, _ = adapter_of(Interop())

    def num_errors() -> int:
        return sum(issubclass(type(each), TidegateError) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = num_errors()  # other tests have some as parameters
        for _ in range(3):
            await Exchange(http_scope(f"/{SERVICE}/Unary", GRPC), body_of([chunk])).run(adapter)
        assert num_errors() == before
    finally:
        gc.enable()


async def test_a_stream_goes_as_far_as_its_messages_are_good() -> None:
    adapter, _ = adapter_of(Interop())
    good = pack(asking(size=3).SerializeToString())
    exchange = Exchange(http_scope(f"/{SERVICE}/Duplex", GRPC), body_of([good, pack(b"\xff")]))
    await exchange.run(adapter)
    assert facts(exchange.trailers)[0] == Code.INVALID_ARGUMENT.value[0]
    assert exchange.body.endswith(b"\0\0\0")


async def test_a_probe_takes_no_long_message() -> None:
    refused: Refused = []
    adapter = GrpcAdapter(on_refused=lambda path, error: refused.append((path, error.reason)))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), adapter)  # type: ignore[attr-defined]
    path = f"/{health.SERVICE_NAME}/Check"
    for size, told in ((4000, Code.NOT_FOUND), (5000, Code.RESOURCE_EXHAUSTED)):
        message = pack(health_pb2.HealthCheckRequest(service="x" * size).SerializeToString())
        exchange = Exchange(http_scope(path, GRPC), body_of([message]))
        await exchange.run(adapter)
        assert int(exchange.trailers[b"grpc-status"]) == told.value[0]
    assert refused == [(path, "TOO_LARGE")]


async def test_a_call_without_a_message_is_the_clients_fault() -> None:
    adapter, _ = adapter_of(Interop())
    exchange = Exchange(http_scope(f"/{SERVICE}/Empty", GRPC), body_of([]))
    await exchange.run(adapter)
    assert facts(exchange.trailers) == (Code.INVALID_ARGUMENT.value[0], "BAD_MESSAGE")


@pytest.mark.parametrize(
    ("path", "fields", "code", "reason"),
    [
        (f"/{SERVICE}/Nothing", [], Code.UNIMPLEMENTED, "UNKNOWN_METHOD"),
        (f"/{SERVICE}/Empty", [(b"grpc-encoding", b"snappy")], Code.UNIMPLEMENTED, "UNKNOWN_ENCODING"),
        (f"/{SERVICE}/Empty", [(b"grpc-timeout", b"soon")], Code.INVALID_ARGUMENT, "INVALID_INPUT"),
        (f"/{SERVICE}/Empty", [(b"x", b"y" * 70_000)], Code.RESOURCE_EXHAUSTED, "HEADERS_TOO_LARGE"),
        (f"/{SERVICE}/Empty", [(b"x", b"y" * 600)] * 110, Code.RESOURCE_EXHAUSTED, "HEADERS_TOO_LARGE"),
    ],
)
async def test_a_call_that_is_refused_before_its_servicer_is_asked(
    path: str, fields: list[tuple[bytes, bytes]], code: grpc.StatusCode, reason: str
) -> None:
    adapter, refused = adapter_of(Interop())
    exchange = Exchange(http_scope(path, [*GRPC, *fields]), body_of([pack(b"")]))
    await exchange.run(adapter)
    assert facts(exchange.trailers) == (code.value[0], reason)
    assert refused == [("" if reason == "UNKNOWN_METHOD" else path, reason)]


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ({"headers": [(b"content-type", b"application/json")]}, 415),
        ({"headers": [(b"content-type", b"application/grpc+json")]}, 415),
        ({"headers": []}, 415),
        ({"method": "GET"}, 405),
        ({"extensions": {}}, 400),
        ({"extensions": {}, "http_version": "1.1"}, 400),
    ],
)
async def test_what_is_no_grpc_request_is_told_so_in_http(scope: dict[str, Any], status: int) -> None:
    adapter, _ = adapter_of(Interop())
    exchange = Exchange(http_scope(f"/{SERVICE}/Empty", GRPC) | scope)
    await exchange.run(adapter)
    assert exchange.status == status
    assert exchange.headers[b"content-type"] == b"application/problem+json"
    assert json.loads(exchange.body)["status"] == status


@pytest.mark.parametrize(
    "content_type", [b"application/grpc+proto", b"Application/GRPC", b"application/grpc; charset=utf-8"]
)
async def test_content_types_that_mean_the_same(content_type: bytes) -> None:
    adapter, _ = adapter_of(Interop())
    scope = http_scope(f"/{SERVICE}/Empty", [(b"content-type", content_type)])
    assert adapter.speaks(scope)
    exchange = Exchange(scope, body_of([pack(b"")]))
    await exchange.run(adapter)
    assert exchange.trailers == {b"grpc-status": b"0"}


def test_what_the_adapter_is_to_answer() -> None:
    adapter, _ = adapter_of(Interop())
    assert adapter.speaks(http_scope("/nothing", GRPC))
    assert adapter.speaks(http_scope(f"/{SERVICE}/Empty", []))
    assert not adapter.speaks(http_scope("/v1/models", [(b"content-type", b"application/json")]))


async def test_a_reply_over_the_limit_is_not_sent() -> None:
    adapter, _ = adapter_of(Interop())
    message = pack(asking(size=LIMIT + 1).SerializeToString())
    for method in ("Unary", "Duplex"):
        exchange = Exchange(http_scope(f"/{SERVICE}/{method}", GRPC), body_of([message]))
        await exchange.run(adapter)
        assert facts(exchange.trailers) == (Code.RESOURCE_EXHAUSTED.value[0], "REPLY_TOO_LARGE")
        assert not exchange.body


async def test_a_fault_of_a_servicer_is_logged_whole_and_told_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty(Interop):
        async def empty(self, request: empty_pb2.Empty, context: Any) -> empty_pb2.Empty:
            raise RuntimeError("secret")

    adapter, refused = adapter_of(Faulty())
    exchange = Exchange(http_scope(f"/{SERVICE}/Empty", GRPC), body_of([pack(b"")]))
    await exchange.run(adapter)
    assert facts(exchange.trailers) == (Code.INTERNAL.value[0], "INTERNAL")
    assert b"secret" not in exchange.trailers[b"grpc-message"]
    assert "secret" in caplog.text
    assert refused == []


@asynccontextmanager
async def limited(**options: Any) -> AsyncIterator[Stub]:
    async with (
        on_adapter(Interop(), max_message=LIMIT) as (_, served),
        aio.insecure_channel(served.address, **options) as channel,
    ):
        yield Stub(channel)


async def test_gzip_bombs_of_a_stock_client_are_refused() -> None:
    async with limited(compression=grpc.Compression.Gzip) as stub:
        call = stub.unary(asking(size=1, padding="x" * 5_000_000))
        assert await call.code() is Code.RESOURCE_EXHAUSTED


async def test_a_stock_client_sees_why_its_message_is_too_large() -> None:
    async with limited() as stub:
        call = stub.unary(asking(size=1, padding="x" * 5000))
        assert await call.code() is Code.RESOURCE_EXHAUSTED
        assert "at most 1000" in await call.details()


async def test_a_stock_client_sees_that_its_metadata_is_too_large(adapter_stub: Stub) -> None:
    call = adapter_stub.empty(empty_pb2.Empty(), metadata=[(f"x-{number}", "y" * 9000) for number in range(8)])
    assert await call.code() is Code.RESOURCE_EXHAUSTED
    assert "65536" in await call.details()


async def test_frames_that_come_byte_by_byte(adapter_address: str) -> None:
    """A client over HTTP/1.1 with gRPC-Web, which writes as slowly as it likes."""
    host, port = adapter_address.split(":")
    frame = pack(asking(size=2).SerializeToString())
    head = f"POST /{SERVICE}/Unary HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/grpc-web\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.write(f"{head}content-length: {len(frame)}\r\n\r\n".encode())
    for byte in frame:
        writer.write(bytes([byte]))
        await writer.drain()
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()


async def test_errors_of_the_log_are_none_for_clients_that_leave(caplog: pytest.LogCaptureFixture) -> None:
    adapter, _ = adapter_of(Interop())
    async with front(adapter) as served, aio.insecure_channel(served.address) as channel:
        call = Stub(channel).flood(asking(size=100))
        await call.read()
        call.cancel()
        await Stub(channel).empty(empty_pb2.Empty())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
