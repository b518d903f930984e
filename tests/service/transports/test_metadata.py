"""Header fields as metadata, deadlines and statuses."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import InvalidInputError
from tidegate.transports.grpc.metadata import (
    decode_metadata,
    encode_metadata,
    encode_status,
    parse_timeout,
    size_of,
)

KEYS = st.from_regex(r"x-[a-z0-9_.-]{1,10}", fullmatch=True).filter(lambda key: not key.endswith("-bin"))
TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))


@given(st.lists(st.tuples(KEYS, TEXT) | st.tuples(KEYS.map("{}-bin".format), st.binary())))
def test_metadata_comes_out_as_it_went_in(metadata: list[tuple[str, str | bytes]]) -> None:
    assert list(decode_metadata(encode_metadata(metadata))) == metadata


def test_the_transports_own_fields_are_no_metadata() -> None:
    fields = [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"1S"), (b"host", b"a")]
    assert decode_metadata([*fields, (b"user-agent", b"x")]) == (("user-agent", "x"),)


@pytest.mark.parametrize(
    ("sent", "values"),
    [(b"AAE=", [b"\0\1"]), (b"AAE", [b"\0\1"]), (b"AAE=,/w", [b"\0\1", b"\xff"]), (b"A", [b"A"]), (b"", [b""])],
)
def test_binary_values_with_and_without_padding_and_joined(sent: bytes, values: list[bytes]) -> None:
    assert [value for _, value in decode_metadata([(b"a-bin", sent)])] == values


def test_a_byte_that_is_not_ascii_becomes_a_character() -> None:
    assert decode_metadata([(b"a", b"\xe4")]) == (("a", "ä"),)


@pytest.mark.parametrize("value", ["ä", "a\r\nb: c", "\0"])
def test_a_value_that_cannot_stand_in_a_field_is_a_fault_of_the_servicer(value: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        encode_metadata([("a", value)])


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 4e-3), (b"5u", 5e-6), (b"6n", 6e-9), (b"99999999S", 99999999)],
)
def test_timeouts_in_every_unit(sent: bytes, seconds: float) -> None:
    assert parse_timeout(sent) == pytest.approx(seconds)


@pytest.mark.parametrize("sent", [b"", b"S", b"1", b"1s", b"-1S", b"1.5S", b"123456789S", b"1S ", b"\xff"])
def test_what_is_no_timeout_is_the_clients_fault(sent: bytes) -> None:
    with pytest.raises(InvalidInputError, match="grpc-timeout"):
        parse_timeout(sent)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_message_is_percent_encoded(message: str) -> None:
    fields = dict(encode_status(13, message))
    sent = fields.get(b"grpc-message", b"").decode("ascii")
    assert sent.isprintable()
    assert unquote(sent) == message


def test_half_a_character_in_a_message_is_replaced() -> None:
    assert dict(encode_status(2, "a\ud800"))[b"grpc-message"] == b"a?"


def test_fields_have_the_size_that_http2_gives_them() -> None:
    assert size_of([(b"name", b"value"), (b"a", b"")]) == 4 + 5 + 1 + 64
