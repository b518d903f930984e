"""gRPC-Web, binary and text: the same methods, with the trailers in a last frame; over HTTP/1.1 too."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterable

import httpx
import pytest
from google.protobuf import wrappers_pb2

from tests.service.transports.asgi import Exchange, body_of, http_scope
from tests.service.transports.interop import SERVICE, Interop, asking, handlers
from tests.service.transports.serving import front
from tidegate.transports.grpc.adapter import GrpcAdapter
from tidegate.transports.grpc.framing import TRAILERS, MessageReader, pack

TYPES = ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"]


def adapter_of(servicer: Interop) -> GrpcAdapter:
    adapter = GrpcAdapter()
    adapter.add_registered_method_handlers(SERVICE, handlers(servicer))
    return adapter


def written(body: bytes, content_type: str) -> bytes:
    return base64.b64encode(body) if content_type.startswith("application/grpc-web-text") else body


def read(body: bytes, content_type: str) -> tuple[list[int], dict[str, str]]:
    """The sizes of the replies, and the trailers."""
    if content_type.startswith("application/grpc-web-text"):
        body = b"".join(base64.b64decode(part) for part in re.findall(rb"[^=]+=*", body))
    at = 0
    sizes = []
    while body[at] != TRAILERS:
        size = int.from_bytes(body[at + 1 : at + 5])
        sizes.append(len(wrappers_pb2.BytesValue.FromString(body[at + 5 : at + 5 + size]).value))
        at += 5 + size
    lines = body[at + 5 :].decode().split("\r\n")
    return sizes, dict(line.split(": ", 1) for line in lines if line)


async def call(method: str, requests: Iterable[object], content_type: str) -> Exchange:
    body = b"".join(pack(request.SerializeToString()) for request in requests)  # type: ignore[attr-defined]
    scope = http_scope(f"/{SERVICE}/{method}", [(b"content-type", content_type.encode())], extensions={})
    exchange = Exchange(scope, body_of([written(body, content_type)]))
    await exchange.run(adapter_of(Interop()))
    return exchange


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize(
    ("method", "requests", "sizes"),
    [
        ("Unary", [asking(size=5)], [5]),
        ("Output", [asking(sizes=[1, 2, 3])], [1, 2, 3]),
        ("Duplex", [asking(size=1), asking(size=2)], [1, 2]),
        ("Output", [asking(sizes=[])], []),
    ],
)
async def test_replies_and_trailers_come_in_frames(
    content_type: str, method: str, requests: list[object], sizes: list[int]
) -> None:
    exchange = await call(method, requests, content_type)
    assert exchange.headers[b"content-type"] == content_type.encode()
    assert read(exchange.body, content_type) == (sizes, {"grpc-status": "0"})


@pytest.mark.parametrize("content_type", TYPES)
async def test_errors_come_in_the_last_frame(content_type: str) -> None:
    exchange = await call("Unary", [asking(code="NOT_FOUND", message="nö\r\ngrpc-status: 0")], content_type)
    sizes, trailers = read(exchange.body, content_type)
    assert (exchange.status, sizes, trailers["grpc-status"]) == (200, [], "5")
    assert trailers["grpc-message"] == "n%C3%B6%0D%0Agrpc-status: 0"


@pytest.mark.parametrize("content_type", TYPES)
async def test_over_http_1_1(content_type: str) -> None:
    body = written(pack(asking(size=7).SerializeToString()), content_type)
    async with front(adapter_of(Interop())) as served, httpx.AsyncClient() as client:
        url = f"http://{served.address}/{SERVICE}/Unary"
        reply = await client.post(url, content=body, headers={"content-type": content_type})
    assert reply.http_version == "HTTP/1.1"
    assert read(reply.content, content_type) == ([7], {"grpc-status": "0"})


async def test_text_that_is_no_base64_is_the_clients_fault() -> None:
    scope = http_scope(f"/{SERVICE}/Unary", [(b"content-type", b"application/grpc-web-text")])
    exchange = Exchange(scope, body_of([b"A==="]))
    await exchange.run(adapter_of(Interop()))
    assert read(exchange.body, "application/grpc-web-text")[1]["grpc-status"] == "3"


async def test_a_client_over_http_1_1_that_leaves_cancels_its_servicer() -> None:
    servicer = Interop()
    body = pack(asking(waits=True).SerializeToString())
    async with front(adapter_of(servicer)) as served, httpx.AsyncClient() as client:
        url = f"http://{served.address}/{SERVICE}/Unary"
        post = client.post(url, content=body, headers={"content-type": "application/grpc-web"})
        asked = asyncio.create_task(post)
        await servicer.begun.wait()
        asked.cancel()
        await servicer.cancelled.wait()


def test_the_last_frame_is_told_from_a_message() -> None:
    assert MessageReader(10).take(pack(b"")) == b""
    assert pack(b"")[0] != TRAILERS
