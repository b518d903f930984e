"""What is compressed: unpacked within a bound, or refused as the client's fault."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import InvalidInputError, TooLargeError
from tidegate.slices import at_once
from tidegate.transports.compression import ENCODINGS, compress, decompress

LIMIT = 1000


@given(st.binary(max_size=LIMIT), st.sampled_from(ENCODINGS))
def test_data_comes_out_as_it_went_in(data: bytes, encoding: str) -> None:
    assert at_once(decompress(at_once(compress(data, encoding)), encoding, LIMIT)) == data


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_unpacking_holds_no_more_than_the_limit(encoding: str) -> None:
    limit = 1 << 20
    bomb = at_once(compress(bytes(100 << 20), encoding))
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        at_once(decompress(bomb, encoding, limit))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * limit


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1])
def test_the_limit_counts_what_is_unpacked(size: int) -> None:
    if size > LIMIT:
        with pytest.raises(TooLargeError):
            at_once(decompress(gzip.compress(bytes(size)), "gzip", LIMIT))
    else:
        assert at_once(decompress(gzip.compress(bytes(size)), "gzip", LIMIT)) == bytes(size)


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (b"no gzip", "gzip"),
        (gzip.compress(b"cut off", mtime=0)[:-3], "gzip"),
        (gzip.compress(b"goes on", mtime=0) + b"x", "gzip"),
        (gzip.compress(b"goes on", mtime=0) + bytes(100_000), "gzip"),
        (gzip.compress(b"gzip", mtime=0), "deflate"),
        (zlib.compress(b"zlib"), "gzip"),
        (b"", "gzip"),
    ],
)
def test_what_is_not_in_its_encoding_is_the_clients_fault(packed: bytes, encoding: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        at_once(decompress(packed, encoding, LIMIT))
    assert caught.value.reason == "BAD_COMPRESSION"


@pytest.mark.parametrize("data", [bytes(4 << 20), random.Random(0).randbytes(4 << 20)])
def test_no_slice_holds_more_than_a_piece(data: bytes) -> None:
    packed = at_once(compress(data, "gzip"))
    assert sum(1 for _ in decompress(packed, "gzip", len(data))) >= len(data) // 65536
    assert sum(1 for _ in compress(data, "gzip")) >= len(data) // 65536
    assert at_once(decompress(packed, "gzip", len(data))) == data
