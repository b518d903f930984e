"""What is HTTP's own: bodies with raw tensors behind JSON, compression, errors, paths."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.oip.ways import Refusal, read_http
from tidegate.limits import LARGE_JSON_BYTES, LARGE_REPLY_BYTES
from tidegate.service import Service
from tidegate.transports.oip.bodies import HEADER_LENGTH, accepted
from tidegate.transports.oip.http import REASON

Json = Any

INFER = "/v2/models/tiny-stream/infer"
RAW = np.zeros((1, 2, 2), np.float32).tobytes()


def tensor(**changes: Json) -> Json:
    document = {"name": "values", "shape": [1, 2, 2], "datatype": "FP32", "data": [0, 0.5, 1, 2], **changes}
    return {key: value for key, value in document.items() if value is not None}


def body(**changes: Json) -> bytes:
    return json.dumps({"inputs": [tensor()], **changes}).encode()


def binary(size: Json = 16, raw: bytes = RAW, header_length: str | None = None) -> tuple[bytes, dict[str, str]]:
    """A body with a raw tensor behind it, and its header."""
    header = body(inputs=[tensor(data=None, parameters={"binary_data_size": size})])
    return header + raw, {HEADER_LENGTH: header_length or str(len(header))}


async def refused(http: httpx.AsyncClient, content: bytes, headers: dict[str, str] | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_http(await http.post(INFER, content=content, headers=headers))
    return caught.value


@pytest.mark.parametrize("content_type", ["application/octet-stream", "application/json", None])
async def test_the_content_type_does_not_matter(http: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert read_http(await http.post(INFER, content=body(), headers=headers))["score"].shape == (1, 2, 4)


async def test_data_may_be_nested_as_the_shape_is(http: httpx.AsyncClient) -> None:
    flat = read_http(await http.post(INFER, content=body()))
    nested = read_http(await http.post(INFER, content=body(inputs=[tensor(data=[[[0, 0.5], [1, 2]]])])))
    np.testing.assert_array_equal(flat["score"], nested["score"])


async def test_json_and_raw_outputs_stand_side_by_side_as_each_was_asked(http: httpx.AsyncClient) -> None:
    inputs = [{"name": "tokens", "shape": [1, 2], "datatype": "INT64", "data": [1, 2]}]
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "surprise"}]
    response = await http.post("/v2/models/tiny/infer", json={"inputs": inputs, "outputs": outputs})
    reply = read_http(response)
    assert reply.document["outputs"][0]["parameters"] == {"binary_data_size": 2 * 65 * 4}
    assert set(reply.document["outputs"][1]) == {"name", "datatype", "shape", "data"}
    assert reply["surprise"].shape == (1, 2)


@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_raw_outputs_are_announced(http: httpx.AsyncClient, version: str) -> None:
    content, headers = binary()
    response = await http.post(f"/v2/models/tiny-stream{version}/infer", content=content, headers=headers)
    assert HEADER_LENGTH not in response.headers, "nobody asked for raw outputs"
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"])
async def test_probes_may_be_asked_by_head(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.head(path)
    assert (reply.status_code, (await http.get(path)).status_code) == (200, 200)


# ---- large bodies


def many(num_rows: int) -> bytes:
    data = np.arange(num_rows * 4, dtype=np.float32) / 8
    return body(inputs=[tensor(shape=[num_rows, 2, 2], data=data.tolist())])


async def test_a_large_body_is_read_and_answered_as_a_small_one(http: httpx.AsyncClient) -> None:
    assert len(many(32)) < LARGE_JSON_BYTES / 16
    for row, scores in enumerate(read_http(await http.post(INFER, content=many(32)))["score"]):
        data = [row / 2, row / 2 + 0.125, row / 2 + 0.25, row / 2 + 0.375]
        alone = read_http(await http.post(INFER, content=body(inputs=[tensor(data=data)])))["score"][0]
        np.testing.assert_allclose(scores, alone, rtol=1e-5)
    spread = many(32).replace(b", ", b"," + b" " * 200)
    assert len(spread) > LARGE_JSON_BYTES
    for each in (spread, b"\xef\xbb\xbf" + spread, b"\xef\xbb\xbf" + many(32)):
        assert (await http.post(INFER, content=each)).content == (await http.post(INFER, content=many(32))).content


async def test_a_large_reply_says_what_a_small_one_does(http: httpx.AsyncClient) -> None:
    tokens = [[row, row + 1] * 16 for row in range(16)]
    inputs = [{"name": "tokens", "shape": [16, 32], "datatype": "INT64", "data": tokens}]
    reply = await http.post("/v2/models/tiny/infer", json={"inputs": inputs})
    assert len(reply.content) > LARGE_REPLY_BYTES
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in read_http(reply)]
    binary = read_http(await http.post("/v2/models/tiny/infer", json={"inputs": inputs, "outputs": wanted}))
    for name, array in read_http(reply).items():
        np.testing.assert_array_equal(array, binary[name])


async def test_others_have_their_turn_while_a_large_body_is_read(http: httpx.AsyncClient) -> None:
    num_turns, is_done = 0, False

    async def look_on() -> None:
        nonlocal num_turns
        while not is_done:
            num_turns += 1
            await asyncio.sleep(0)

    looking = asyncio.create_task(look_on())
    refusal = await refused(http, body(inputs=[tensor(data=[[0.5, 1]] * 300_000)]))
    is_done = True
    await looking
    assert refusal.reason == "WRONG_SIZE"
    assert num_turns > 20


# ---- compression


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
)
async def test_compressed_bodies_are_taken(http: httpx.AsyncClient, encoding: str, pack: Any) -> None:
    content, headers = binary()
    response = await http.post(INFER, content=pack(content), headers=headers | {"Content-Encoding": encoding})
    assert read_http(response)["score"].shape == (1, 2, 4)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_replies_are_compressed_for_who_accepts_it(http: httpx.AsyncClient, encoding: str) -> None:
    plain = await http.post(INFER, content=body(), headers={"Accept-Encoding": ""})
    packed = await http.post(INFER, content=body(), headers={"Accept-Encoding": encoding})
    assert packed.headers["content-encoding"] == encoding
    assert "content-encoding" not in plain.headers
    assert packed.content == plain.content, "the client unpacks it"


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("", None),
        ("br", None),
        ("gzip", "gzip"),
        ("br, deflate", "deflate"),
        ("gzip;q=0, deflate;q=0.5", "deflate"),
        ("GZIP ; q=1.0", "gzip"),
        ("gzip; q=0.0", None),
        ("gzip;Q=0", None),
        ("gzip;q=0.2, deflate;q=0.8", "deflate"),
        ("identity, gzip;q=0.5", None),
        ("*", None),
    ],
)
def test_what_a_client_accepts(header: str, encoding: str | None) -> None:
    assert accepted(header) == encoding


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_decompression_bomb_is_refused(http: httpx.AsyncClient, encoding: str, pack: Any) -> None:
    bomb = pack(bytes(64 << 20))
    assert len(bomb) < 100_000
    refusal = await refused(http, bomb, {"Content-Encoding": encoding})
    assert (refusal.code, refusal.reason) == ("413", "TOO_LARGE")


BAD_ENCODINGS = {
    "truncated": ("gzip", gzip.compress(body())[:-9], "400"),
    "not gzip": ("gzip", body(), "400"),
    "more behind it": ("deflate", zlib.compress(body()) + b"x", "400"),
    "unknown": ("br", body(), "415"),
    "packed twice": ("gzip, gzip", gzip.compress(gzip.compress(body())), "415"),
}


@pytest.mark.parametrize("case", BAD_ENCODINGS)
async def test_a_body_that_is_not_what_its_encoding_says_is_refused(http: httpx.AsyncClient, case: str) -> None:
    encoding, content, code = BAD_ENCODINGS[case]
    assert (await refused(http, content, {"Content-Encoding": encoding})).code == code


# ---- what is wrong with a body

BODIES = {
    "not JSON": (b"{", "malformed JSON"),
    "not an object": (b"[]", "must be a JSON object"),
    "empty": (b"", "malformed JSON"),
    "unknown key": (body(input=[]), "unknown key 'input' in the request"),
    "inputs no list": (body(inputs={}), "inputs must be a list of objects"),
    "input no object": (body(inputs=[1]), "inputs must be a list of objects"),
    "unknown key of an input": (body(inputs=[tensor(dtype="FP32")]), "unknown key 'dtype' in an input"),
    "no name": (body(inputs=[tensor(name=None)]), "a tensor has no name"),
    "no shape": (body(inputs=[tensor(shape=None)]), "shape must be a list"),
    "shape of words": (body(inputs=[tensor(shape=["1", 2, 2])]), "sizes of at least 0"),
    "shape of fractions": (body(inputs=[tensor(shape=[1.0, 2, 2])]), "sizes of at least 0"),
    "datatype no word": (body(inputs=[tensor(datatype=1)]), "datatype must be a string"),
    "no data": (body(inputs=[tensor(data=None)]), "neither data nor binary_data_size"),
    "data no list": (body(inputs=[tensor(data=7)]), "data must be a list"),
    "data of words": (body(inputs=[tensor(data=["0", 0, 0, 0])]), "data of FP32 cannot be strings, whole numbers"),
    "data of flags": (body(inputs=[tensor(data=[True, 0, 0, 0])]), "data of FP32 cannot be booleans"),
    "null": (body(inputs=[tensor(data=[None, 0, 0, 0])]), "data of FP32 cannot be null"),
    "fractions for integers": (body(inputs=[tensor(datatype="INT64", data=[0.5, 0, 0, 0])]), "data of INT64 cannot be"),
    "out of range": (body(inputs=[tensor(datatype="INT8", data=[300, 0, 0, 0])]), "out of INT8's range"),
    "ragged": (body(inputs=[tensor(data=[[[0, 0], [0]]])]), "nested data has not the shape"),
    "nested too deep": (body(inputs=[tensor(data=[[[[0], [0]], [0, 0]]])]), "nested data has not the shape"),
    "nested too flat": (body(inputs=[tensor(data=[[0, 0, 0, 0]])]), "nested data has not the shape"),
    "parameters no object": (body(parameters=[]), "parameters must be an object"),
    "id no word": (body(id=3), "id must be a string"),
    "output no object": (body(outputs=["score"]), "outputs must be a list of objects"),
    "binary_data no flag": (
        body(outputs=[{"name": "score", "parameters": {"binary_data": 1}}]),
        "'binary_data' must be",
    ),
    "classification": (
        body(outputs=[{"name": "score", "parameters": {"classification": 3}}]),
        "classification is not supported",
    ),
    "negative id": (body(parameters={"sequence_id": -5}), "'sequence_id' must be an unsigned integer"),
    "long id": (body(parameters={"sequence_id": 2**64}), "'sequence_id' must be an unsigned integer"),
}


@pytest.mark.parametrize("case", BODIES)
async def test_a_malformed_body_is_told_what_is_wrong(http: httpx.AsyncClient, case: str) -> None:
    content, wanted = BODIES[case]
    with pytest.raises(Refusal, match=wanted):
        read_http(await http.post(INFER, content=content))


SIZES = {
    "too long": (binary(size=17), "binary_data_size is 17, the body has 16 bytes left"),
    "too short for the shape": (binary(size=8), "has 16 bytes, not 8"),
    "bytes left": (binary(raw=RAW + b"more"), "4 bytes of the body belong to no input"),
    "no number": (binary(size="16"), "binary_data_size must be a number"),
    "negative": (binary(size=-1), "binary_data_size must be a number"),
    "header beyond the body": (binary(header_length="9999"), "is 9999, the body has"),
    "header no number": (binary(header_length="-1"), "must be a number of bytes"),
    "header of Arabic digits": (binary(header_length="1e3"), "must be a number of bytes"),
    "header in the middle": (binary(header_length="10"), "malformed JSON"),
}


@pytest.mark.parametrize("case", SIZES)
async def test_sizes_that_do_not_add_up_are_refused(http: httpx.AsyncClient, case: str) -> None:
    (content, headers), wanted = SIZES[case]
    with pytest.raises(Refusal, match=wanted):
        read_http(await http.post(INFER, content=content, headers=headers))


async def test_data_and_raw_bytes_are_refused_together(http: httpx.AsyncClient) -> None:
    header = body(inputs=[tensor(parameters={"binary_data_size": 16})])
    refusal = await refused(http, header + RAW, {HEADER_LENGTH: str(len(header))})
    assert "both data and binary_data_size" in str(refusal)


async def test_a_body_over_the_limit_is_refused(http: httpx.AsyncClient, service: Service) -> None:
    size = int(service.settings.max_message_mb * 2**20) + 1
    assert (await refused(http, bytes(size))).code == "413"


# ---- paths


@pytest.mark.parametrize("path", ["/v2/nothing", "/v2/models", "/v2/models/tiny/frob", "/v2/"])
async def test_an_unknown_path_has_the_protocol_s_error(http: httpx.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.status_code == httpx.codes.NOT_FOUND
    assert set(response.json()) == {"error"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/cudasharedmemory/region/r/register"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/models/tiny/trace/setting"),
        ("POST", "/v2/logging"),
    ],
)
async def test_what_is_not_served_says_so(http: httpx.AsyncClient, method: str, path: str) -> None:
    response = await http.request(method, path)
    assert (response.status_code, response.headers[REASON]) == (501, "NOT_SUPPORTED")


@pytest.mark.parametrize("method", ["GET", "PATCH", "OPTIONS", "DELETE"])
async def test_what_is_nowhere_is_told_in_the_protocol_s_manner_whatever_the_method(
    http: httpx.AsyncClient, method: str
) -> None:
    response = await http.request(method, "/v2/nowhere")
    assert response.status_code == httpx.codes.NOT_FOUND
    assert set(response.json()) == {"error"}
