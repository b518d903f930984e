"""Messages in a body: split anywhere, compressed, malformed, too large."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import InvalidInputError, NotSupportedError, TooLargeError
from tidegate.slices import at_once
from tidegate.transports.grpc.framing import Base64Reader, MessageReader, pack

LIMIT = 1000
ENCODINGS = st.sampled_from(["identity", "gzip", "deflate"])


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


def read_all(reader: MessageReader, chunks: list[bytes]) -> list[bytes]:
    found = []
    for chunk in chunks:
        message = reader.take(chunk)
        while message is not None:
            found.append(message if isinstance(message, bytes) else at_once(message))
            message = reader.take()
    return found


@given(st.lists(st.binary(max_size=LIMIT)), ENCODINGS, st.lists(st.integers(min_value=0)))
def test_messages_come_out_as_they_went_in_wherever_the_body_is_cut(
    messages: list[bytes], encoding: str, cuts: list[int]
) -> None:
    body = b"".join(pack(message, encoding) for message in messages)
    reader = MessageReader(LIMIT, encoding)
    assert read_all(reader, split(body, cuts)) == messages
    assert reader.is_empty


@given(st.binary(min_size=1, max_size=LIMIT), st.integers(min_value=1))
def test_a_body_that_ends_within_a_message_leaves_a_rest(message: bytes, cut: int) -> None:
    frame = pack(message)
    reader = MessageReader(LIMIT)
    assert reader.take(frame[: cut % (len(frame) - 1) + 1]) is None
    assert not reader.is_empty


def test_a_size_over_the_limit_is_refused_before_the_message_is_there() -> None:
    with pytest.raises(TooLargeError, match="1001 bytes: at most 1000"):
        MessageReader(LIMIT).take(pack(bytes(LIMIT + 1))[:5])


@pytest.mark.parametrize("flags", [2, 3, 128, 255])
def test_unknown_flags_are_the_clients_fault(flags: int) -> None:
    with pytest.raises(InvalidInputError, match="unknown flags"):
        MessageReader(LIMIT, "gzip").take(bytes([flags, 0, 0, 0, 0]))


def test_a_compressed_message_of_a_call_without_encoding_is_the_clients_fault() -> None:
    with pytest.raises(InvalidInputError, match="no grpc-encoding"):
        MessageReader(LIMIT).take(pack(b"x", "gzip"))


def test_an_unknown_encoding_is_told_with_those_that_are_known() -> None:
    with pytest.raises(NotSupportedError, match="identity, deflate, gzip"):
        MessageReader(LIMIT, "snappy")


@given(st.lists(st.binary()), st.lists(st.integers(min_value=0)))
def test_text_is_read_wherever_it_is_padded_and_cut(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(base64.b64encode(part) for part in parts)
    reader = Base64Reader()
    assert b"".join(reader.decode(chunk) for chunk in split(text, cuts)) == b"".join(parts)
