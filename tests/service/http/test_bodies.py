"""Bodies of requests: compressed, marked, in other encodings, slow; each rule on every route that takes one."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.service.http.scripted import SNAPSHOT, ScriptedCore, Socket, http_scope
from tests.service.transports.serving import front
from tidegate.api import Input, StepOptions
from tidegate.config import load_settings
from tidegate.limits import LARGE_JSON_BYTES
from tidegate.transports.http.app import create_app

Json = Any

STEP = "/v1/sessions/s-1:step"

ROUTES: dict[str, Json] = {
    "/v1/sessions": {"model": "tiny"},
    STEP: {"text": "R"},
    "/v1/sessions/s-1:generate": {},
    "/v1/sessions/s-1:fork": {"count": 2},
    "/v1/sessions/s-1:checkpoint": {"name": "c-3"},
    "/v1/sessions/s-1:rewind": {"checkpoint": "c-1"},
    "/v1/sessions/s-1:upgrade": {"version": "2"},
    "/v1/models/tiny:predict": {"sequences": [{"text": "R"}]},
    "/v1/models/tiny:generate": {"text": "R"},
}

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "Deflate": zlib.compress,
    "identity": bytes,
    "": bytes,
    "identity, gzip": gzip.compress,
}


def large(document: Json) -> bytes:
    """The document, padded so that it is read in slices."""
    return json.dumps(document).encode() + b" " * LARGE_JSON_BYTES


async def posted(client: httpx.AsyncClient, path: str, content: bytes, **headers: str) -> httpx.Response:
    return await client.post(path, content=content, headers={key.replace("_", "-"): headers[key] for key in headers})


# ---- Content-Length


async def test_a_length_that_is_told_twice_is_one_length(client: httpx.AsyncClient) -> None:
    reply = await posted(client, STEP, b'{"text": "R"}', content_length="13, 13")
    assert reply.status_code == 200


async def test_a_length_over_the_limit_is_refused_before_the_body_is_read(client: httpx.AsyncClient) -> None:
    for length in ("5000000", "5000000, 5000000"):
        reply = await posted(client, STEP, b"{}", content_length=length)
        assert (reply.status_code, reply.json()["reason"]) == (413, "TOO_LARGE")


# ---- Content-Encoding


@pytest.mark.parametrize("encoding", PACK)
async def test_bodies_are_unpacked(client: httpx.AsyncClient, service: ScriptedCore, encoding: str) -> None:
    reply = await posted(client, STEP, PACK[encoding](b'{"text": "R"}'), content_encoding=encoding)
    assert reply.status_code == 200
    assert service.calls == [("step", "s-1", Input(text="R"), StepOptions(), None)]


@pytest.mark.parametrize("path", ROUTES)
async def test_every_route_takes_compressed_bodies(client: httpx.AsyncClient, service: ScriptedCore, path: str) -> None:
    body = json.dumps(ROUTES[path]).encode()
    plain = await posted(client, path, body)
    packed = await posted(client, path, gzip.compress(body), content_encoding="gzip")
    assert packed.status_code == plain.status_code < 300
    assert service.calls[0] == service.calls[1]


async def test_a_snapshot_may_be_compressed(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    reply = await posted(client, "/v1/sessions:restore", gzip.compress(SNAPSHOT), content_encoding="gzip")
    assert reply.status_code == 201
    assert service.calls[0][1] == SNAPSHOT


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate", "\u00e9"])
async def test_an_unknown_encoding_is_refused_with_those_that_are_known(
    client: httpx.AsyncClient, encoding: str
) -> None:
    headers = [(b"Content-Encoding", encoding.encode("latin-1"))]
    reply = await client.post(STEP, content=b"{}", headers=headers)
    assert (reply.status_code, reply.json()["reason"]) == (415, "UNKNOWN_ENCODING")
    assert "use one of deflate, gzip, or none" in reply.json()["detail"]
    assert reply.headers["accept-encoding"] == "deflate, gzip"


async def test_encodings_in_several_fields_are_several(client: httpx.AsyncClient) -> None:
    headers = [("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")]
    reply = await client.post(STEP, content=gzip.compress(gzip.compress(b"{}")), headers=headers)
    assert reply.status_code == 415


@pytest.mark.parametrize(
    "content",
    [b"{}", gzip.compress(b"{}", mtime=0)[:-1], gzip.compress(b"{}", mtime=0) + b"x", zlib.compress(b"{}"), b""],
)
async def test_what_is_not_in_its_encoding_is_told(client: httpx.AsyncClient, content: bytes) -> None:
    reply = await posted(client, STEP, content, content_encoding="gzip")
    assert (reply.status_code, reply.json()["reason"]) == (400, "BAD_COMPRESSION")


@pytest.mark.parametrize("path", [STEP, "/v1/sessions", "/v1/sessions:restore"])
async def test_the_limit_counts_what_is_unpacked(client: httpx.AsyncClient, path: str) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    reply = await posted(client, path, bomb, content_encoding="gzip")
    assert (reply.status_code, reply.json()["reason"]) == (413, "TOO_LARGE")


# ---- byte-order marks and other encodings of characters


@pytest.mark.parametrize(
    ("path", "is_large"), [*((path, False) for path in ROUTES), (STEP, True), ("/v1/sessions", True)]
)
async def test_a_byte_order_mark_is_skipped(
    client: httpx.AsyncClient, service: ScriptedCore, path: str, is_large: bool
) -> None:
    body = large(ROUTES[path]) if is_large else json.dumps(ROUTES[path]).encode()
    for each in (body, b"\xef\xbb\xbf" + body):
        assert (await posted(client, path, each)).is_success
    assert service.calls[0] == service.calls[1]


@pytest.mark.parametrize("is_large", [False, True])
async def test_a_byte_order_mark_of_a_frame_is_skipped(app: FastAPI, is_large: bool) -> None:
    text = "\ufeff" + (large({"text": "R"}).decode() if is_large else '{"text": "R"}')
    async with Socket(app, "/v1/sessions/s-1/stream") as socket:
        socket.send_raw(text=text)
        assert (await socket.answer())["position"] == 1
        socket.send_raw(bytes=text.encode())
        assert (await socket.answer())["position"] == 2


async def test_one_mark_is_skipped_and_no_second(client: httpx.AsyncClient) -> None:
    reply = await posted(client, STEP, b"\xef\xbb\xbf" * 5000 + b"{}")
    assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_JSON")


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("utf-32-le", "UTF-32"),
        ("utf-32-be", "UTF-32"),
    ],
)
async def test_wide_characters_are_refused_with_the_reason(
    client: httpx.AsyncClient, encoding: str, name: str, is_large: bool
) -> None:
    text = large({"text": "R"}).decode() if is_large else '{"text": "R"}'
    reply = await posted(client, STEP, text.encode(encoding))
    assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_JSON")
    assert reply.json()["detail"] == f"the text is {name}: send JSON in UTF-8"


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("text", [b'"\\ud83d"', b'"\\udc00a"', b'"\xed\xa0\xbd"', b'"caf\xe9"'])
async def test_half_a_character_is_no_json(client: httpx.AsyncClient, text: bytes, is_large: bool) -> None:
    body = b'{"text": ' + text + b" " * (is_large * LARGE_JSON_BYTES) + b"}"
    for path in ROUTES:
        reply = await posted(client, path, body)
        assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_JSON")
    reply = await posted(client, STEP, body.replace(b'"text"', text))
    assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_JSON")


# ---- time


async def test_a_body_that_comes_byte_by_byte_is_not_waited_for(app: FastAPI, service: ScriptedCore) -> None:
    sent, num_read = list[Any](), 0

    async def receive() -> dict[str, Any]:
        nonlocal num_read
        num_read += 1
        service.time.now += 1
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(http_scope(STEP), receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"], "what comes after the answer is nobody's to read"
    assert json.loads(sent[1]["body"])["reason"] == "BODY_TIMEOUT"
    assert num_read == service.settings.body_timeout


async def test_a_body_that_never_comes_is_not_waited_for() -> None:
    app = create_app(ScriptedCore(load_settings({"body_timeout": "0.001"})))
    sent = list[Any]()
    is_cancelled = False

    async def receive() -> dict[str, Any]:
        nonlocal is_cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            is_cancelled = True
            raise
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await app(http_scope(STEP), receive, send)
    assert (sent[0]["status"], is_cancelled) == (408, True)


async def test_a_body_that_comes_in_time_is_read_whole(app: FastAPI) -> None:
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    sent = list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    reading = asyncio.ensure_future(app(http_scope(STEP), inbox.get, send))
    for piece in (b'{"text"', b': "R"', b"}"):
        await asyncio.sleep(0)
        inbox.put_nowait({"type": "http.request", "body": piece, "more_body": piece != b"}"})
    await reading
    assert sent[0]["status"] == 200


async def test_the_server_hangs_up_on_a_body_that_does_not_come() -> None:
    app = create_app(ScriptedCore(load_settings({"body_timeout": "0.01"})))
    async with front(app) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(f"POST {STEP} HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{{".encode())
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"BODY_TIMEOUT" in answer
        writer.close()
        await writer.wait_closed()
