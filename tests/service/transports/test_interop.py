"""gRPC's interoperability cases, by grpcio's clients: the adapter answers as grpc.aio's own server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2, wrappers_pb2
from grpc import aio

from tests.service.transports.interop import INITIAL, TRAILING, Interop, Stub, asking, blocking_stub

Code = grpc.StatusCode
LARGE_REQUEST, LARGE_REPLY = 271828, 314159
SIZES = [31415, 9, 2653, 58979]
MESSAGE = "test status message"
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


async def values(sizes: list[int]) -> AsyncIterator[wrappers_pb2.BytesValue]:
    for size in sizes:
        yield wrappers_pb2.BytesValue(value=bytes(size))


async def ending_of(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


async def test_empty_unary(stub: Stub) -> None:
    assert await stub.empty(empty_pb2.Empty()) == empty_pb2.Empty()


async def test_large_unary(stub: Stub) -> None:
    reply = await stub.unary(asking(size=LARGE_REPLY, padding="x" * LARGE_REQUEST))
    assert len(reply.value) == LARGE_REPLY


async def test_many_unary_calls_at_once(stub: Stub) -> None:
    replies = await asyncio.gather(*(stub.unary(asking(size=size)) for size in range(300)))
    assert [len(reply.value) for reply in replies] == list(range(300))


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_client_compressed_unary(address: str, compression: grpc.Compression) -> None:
    async with aio.insecure_channel(address, compression=compression) as channel:
        reply = await Stub(channel).unary(asking(size=3, padding="x" * LARGE_REQUEST))
    assert len(reply.value) == 3


async def test_server_compressed_unary(stub: Stub) -> None:
    reply = await stub.unary(asking(size=LARGE_REPLY, compressed=True))
    assert reply.value == bytes(LARGE_REPLY)


async def test_client_streaming(stub: Stub) -> None:
    reply = await stub.input(values([27182, 8, 1828, 45904]))
    assert reply.value == 74922


async def test_client_compressed_streaming(address: str) -> None:
    async with aio.insecure_channel(address, compression=grpc.Compression.Gzip) as channel:
        reply = await Stub(channel).input(values(SIZES))
    assert reply.value == sum(SIZES)


@pytest.mark.parametrize("options", [{}, {"compressed": True}], ids=["plain", "compressed"])
async def test_server_streaming(stub: Stub, options: dict[str, bool]) -> None:
    replies = [reply async for reply in stub.output(asking(sizes=SIZES, **options))]
    assert [len(reply.value) for reply in replies] == SIZES


async def test_server_streaming_that_ends_with_an_error(stub: Stub) -> None:
    call = stub.output(asking(sizes=SIZES, code="DATA_LOSS", message=MESSAGE))
    assert [len((await call.read()).value) for _ in SIZES] == SIZES
    assert await ending_of(call) == (Code.DATA_LOSS, MESSAGE)


async def test_ping_pong(stub: Stub) -> None:
    call = stub.duplex()
    for size in SIZES:
        await call.write(asking(size=size))
        assert len((await call.read()).value) == size
    await call.done_writing()
    assert await call.read() is aio.EOF  # type: ignore[attr-defined]
    assert await ending_of(call) == (Code.OK, "")


async def test_empty_stream(stub: Stub) -> None:
    call = stub.duplex()
    await call.done_writing()
    assert await call.read() is aio.EOF  # type: ignore[attr-defined]
    assert await call.code() is Code.OK


async def test_cancel_after_begin_is_no_half_close(adapter_stub: Stub, servicer: Interop) -> None:
    """grpc.aio ends the servicer's iterator, as if the client had sent all."""
    call = adapter_stub.input()
    await call.wait_for_connection()
    await servicer.begun.wait()
    call.cancel()
    await servicer.cancelled.wait()
    assert await call.code() is Code.CANCELLED


async def test_cancel_after_first_response(adapter_stub: Stub, servicer: Interop) -> None:
    call = adapter_stub.duplex()
    await call.write(asking(size=SIZES[0]))
    await call.read()
    call.cancel()
    await servicer.cancelled.wait()
    assert await call.code() is Code.CANCELLED


async def test_cancel_of_a_servicer_that_neither_reads_nor_writes(stub: Stub, servicer: Interop) -> None:
    call = stub.unary(asking(waits=True))
    await servicer.begun.wait()
    call.cancel()
    await servicer.cancelled.wait()


async def test_timeout_on_sleeping_server(stub: Stub, servicer: Interop) -> None:
    call = stub.duplex(timeout=0.05)
    await call.write(asking(waits=True))
    with pytest.raises(aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    await servicer.cancelled.wait()


async def test_custom_metadata_of_a_unary_call(stub: Stub) -> None:
    call = stub.unary(asking(size=1), metadata=((INITIAL, "test_initial"), (TRAILING, b"\x0a\x0b\xff")))
    await call
    assert (await call.initial_metadata())[INITIAL] == "test_initial"
    assert (await call.trailing_metadata())[TRAILING] == b"\x0a\x0b\xff"


async def test_custom_metadata_of_a_stream(stub: Stub) -> None:
    call = stub.duplex(metadata=((INITIAL, "test_initial"), (TRAILING, b"")))
    await call.write(asking(size=1))
    await call.read()
    await call.done_writing()
    assert (await call.initial_metadata())[INITIAL] == "test_initial"
    assert (await call.trailing_metadata())[TRAILING] == b""


async def test_status_code_and_message(stub: Stub) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.unary(asking(code="UNKNOWN", message=MESSAGE))
    assert (caught.value.code(), caught.value.details()) == (Code.UNKNOWN, MESSAGE)
    call = stub.duplex()
    await call.write(asking(code="UNKNOWN", message=MESSAGE))
    assert await ending_of(call) == (Code.UNKNOWN, MESSAGE)


@pytest.mark.parametrize("message", [SPECIAL, "100 %", "%41", "", "x" * 2000])
async def test_special_status_message(stub: Stub, message: str) -> None:
    for method in (stub.unary, stub.status):
        with pytest.raises(aio.AioRpcError) as caught:
            await method(asking(code="UNKNOWN", message=message))
        assert (caught.value.code(), caught.value.details()) == (Code.UNKNOWN, message)


@pytest.mark.parametrize("path", ["/test.Interop/Unimplemented", "/test.Nobody/Empty", "/nothing"])
async def test_unimplemented_method_and_service(address: str, path: str) -> None:
    async with aio.insecure_channel(address) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await channel.unary_unary(path, bytes, bytes)(b"")
    assert caught.value.code() is Code.UNIMPLEMENTED


async def test_a_servicer_that_writes_on_is_held_back_by_a_client_that_does_not_read(
    adapter_address: str, servicer: Interop
) -> None:
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        aio.insecure_channel(adapter_address) as channel,
        aio.insecure_channel(adapter_address, options=own_connection) as other,
    ):
        call = Stub(channel).flood(asking(size=1 << 16))
        await call.read()
        for _ in range(500):
            await Stub(other).empty(empty_pb2.Empty())
        assert servicer.num_written << 16 < 64 << 20
        call.cancel()
        await servicer.cancelled.wait()


def run(address: str, work: Callable[[Stub], Any]) -> Any:
    with blocking_stub(address) as stub:
        return work(stub)


async def test_grpcios_synchronous_client(address: str) -> None:
    def work(stub: Stub) -> list[int]:
        reply = stub.unary(asking(size=5))
        many = list(stub.output(asking(sizes=SIZES)))
        echoed = list(stub.duplex(iter([asking(size=1), asking(size=2)])))
        return [len(each.value) for each in (reply, *many, *echoed)]

    assert await asyncio.to_thread(run, address, work) == [5, *SIZES, 1, 2]


async def test_servicers_that_are_not_asynchronous(stub: Stub) -> None:
    metadata = ((INITIAL, "test_initial"), (TRAILING, b"\xff"))
    call = stub.blocking(asking(size=5), metadata=metadata)
    assert len((await call).value) == 5
    assert (await call.initial_metadata())[INITIAL] == "test_initial"
    assert (await call.trailing_metadata())[TRAILING] == b"\xff"
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.blocking(asking(code="NOT_FOUND", message=MESSAGE))
    assert (caught.value.code(), caught.value.details()) == (Code.NOT_FOUND, MESSAGE)


async def test_a_stream_of_a_servicer_that_is_not_asynchronous(stub: Stub) -> None:
    call = stub.blocking_duplex()
    for size in SIZES:
        await call.write(asking(size=size))
        assert len((await call.read()).value) == size
    await call.done_writing()
    assert await call.code() is Code.OK
