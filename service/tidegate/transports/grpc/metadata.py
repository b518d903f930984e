"""Header fields ↔ gRPC's metadata, deadlines and statuses (PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias
from urllib.parse import quote

from tidegate.errors import InvalidInputError

Fields: TypeAlias = "list[tuple[bytes, bytes]]"

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

# The transport's own; everything else is the application's.
_RESERVED = frozenset(
    {b"content-type", b"content-length", b"te", b"host", b"connection", b"grpc-timeout", b"grpc-encoding",
     b"grpc-accept-encoding", b"grpc-message-type"}
)  # fmt: skip

# What of ASCII may stand in grpc-message as it is: all that is printable, but %.
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Metadatum(NamedTuple):
    """A pair of metadata; the values of names that end in ``-bin`` are bytes."""

    key: str
    value: str | bytes


def size_of(fields: Sequence[tuple[bytes, bytes]]) -> int:
    """Bytes of header fields as HTTP/2 counts them (RFC 9113, 6.5.2): 32 for each beside its name and value."""
    return sum(map(len, chain.from_iterable(fields))) + 32 * len(fields)


def parse_timeout(value: bytes) -> float:
    """Return the seconds of a ``grpc-timeout``.

    Raises:
        InvalidInputError: It is none.
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        text = value[:40].decode("latin-1")
        raise InvalidInputError(f"grpc-timeout {text!r} is not up to 8 digits and a unit, like 100m or 5S")
    return int(match[1]) * _UNITS[match[2]]


def decode_metadata(fields: Iterable[tuple[bytes, bytes]]) -> tuple[Metadatum, ...]:
    """Return the application's part of a request's header fields.

    A byte that is not ASCII becomes the character of the same number, so that whoever reads the value can refuse it.
    """
    found = []
    for name, value in fields:
        if name in _RESERVED:
            continue
        key = name.decode("latin-1")
        if key.endswith("-bin"):
            found += [Metadatum(key, _decode_binary(part)) for part in value.split(b",")]
        else:
            found.append(Metadatum(key, value.decode("latin-1")))
    return tuple(found)


def encode_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Fields:
    """Return metadata as header fields.

    Raises:
        ValueError: A text value is not printable ASCII.
    """
    return [(name.lower().encode("ascii"), _encode_value(name, value)) for name, value in metadata]


def encode_status(code: int, message: str) -> Fields:
    """Return a status as header fields."""
    fields = [(b"grpc-status", b"%d" % code)]
    if message:
        fields.append((b"grpc-message", quote(message, safe=_PLAIN, errors="replace").encode("ascii")))
    return fields


def _encode_value(name: str, value: str | bytes) -> bytes:
    if name.endswith("-bin"):
        raw = value.encode() if isinstance(value, str) else value
        return binascii.b2a_base64(raw, newline=False).rstrip(b"=")
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not (text.isascii() and text.isprintable()):
        raise ValueError(f"metadata {name}: {text!r} is not printable ASCII: end the name in -bin")
    return text.encode("ascii")


def _decode_binary(text: bytes) -> bytes:
    """Return what base64 with or without padding stands for; what is none is returned as it is."""
    try:
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4))
    except binascii.Error:
        return text
