"""Messages in a body: length-prefixed, split anywhere, perhaps compressed (gRPC's PROTOCOL-HTTP2.md).

A message's size is checked against the limit before its bytes are gathered, and again while it is unpacked, so that no
client makes the server hold more than the limit and one chunk of a body.
"""

from __future__ import annotations

import binascii
import re
import struct

from tidegate.errors import InvalidInputError, NotSupportedError, TooLargeError
from tidegate.slices import Slices, at_once
from tidegate.transports.compression import ENCODINGS, compress, decompress

_PREFIX = struct.Struct(">BI")
PREFIX_SIZE = _PREFIX.size
_COMPRESSED = 1
TRAILERS = 0x80
"""The flag of gRPC-Web's last frame, which holds the trailers."""
_IDENTITY = "identity"


class MessageReader:
    """Cuts messages out of a body that comes in chunks.

    Args:
        limit: Bytes of a message at most, as sent and as unpacked.
        encoding: The call's ``grpc-encoding``.

    Raises:
        NotSupportedError: The encoding is unknown.
    """

    def __init__(self, limit: int, encoding: str = _IDENTITY) -> None:
        if encoding != _IDENTITY and encoding not in ENCODINGS:
            message = f"grpc-encoding {encoding!r} is not supported: use one of {', '.join((_IDENTITY, *ENCODINGS))}"
            raise NotSupportedError(message, reason="UNKNOWN_ENCODING")
        self._limit = limit
        self._encoding = encoding
        self._data: bytes | bytearray = b""
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all bytes so far belong to messages that were taken."""
        return self._at >= len(self._data)

    def take(self, chunk: bytes = b"") -> bytes | Slices[bytes] | None:
        """Take the body's next chunk, if any, and return the next message, None where it is not complete yet.

        A compressed message is returned as the work of unpacking it, in slices. Give a chunk only after None was
        returned: only then is memory bounded.

        Raises:
            InvalidInputError: These are no messages: unknown flags, or the message cannot be unpacked.
            TooLargeError: A message is over the limit.
        """
        if not chunk:
            pass
        elif self._at >= len(self._data):
            self._data, self._at = chunk, 0
        else:
            self._append(chunk)
        data, at = self._data, self._at
        start = at + PREFIX_SIZE
        if len(data) < start:
            return None
        flags, size = _PREFIX.unpack_from(data, at)
        if size > self._limit:
            text = f"a message of {size} bytes: at most {self._limit} are allowed"
            raise TooLargeError(text)
        end = start + size
        if len(data) < end:
            return None
        self._at = end
        message = bytes(data[start:end])
        return message if flags == 0 else self._unpack(flags, message)

    def _append(self, chunk: bytes) -> None:
        if not isinstance(self._data, bytearray):
            self._data = bytearray(self._data)
        del self._data[: self._at]
        self._at = 0
        self._data += chunk

    def _unpack(self, flags: int, message: bytes) -> Slices[bytes]:
        if flags != _COMPRESSED:
            raise _malformed(f"a message with unknown flags {flags:#04x}")
        if self._encoding == _IDENTITY:
            raise _malformed("a message is compressed, but the call has no grpc-encoding")
        return decompress(message, self._encoding, self._limit)


def pack(message: bytes, encoding: str = _IDENTITY) -> bytes:
    """Return the message in its frame; where ``encoding`` names one, compressed."""
    if encoding == _IDENTITY:
        return _PREFIX.pack(0, len(message)) + message
    packed = at_once(compress(message, encoding))
    return _PREFIX.pack(_COMPRESSED, len(packed)) + packed


def pack_trailers(trailers: list[tuple[bytes, bytes]]) -> bytes:
    """Return gRPC-Web's last frame."""
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in trailers)
    return _PREFIX.pack(TRAILERS, len(lines)) + lines


class Base64Reader:
    """Reads gRPC-Web's text: base64 in chunks split anywhere, padded at the end or at several places."""

    def __init__(self) -> None:
        self._rest = b""

    def decode(self, chunk: bytes) -> bytes:
        """Return what the text so far stands for, as far as it was not returned before.

        Raises:
            InvalidInputError: It is not base64.
        """
        text = self._rest + chunk
        whole = len(text) - len(text) % 4
        self._rest = text[whole:]
        try:
            return b"".join(binascii.a2b_base64(part) for part in re.findall(rb"[^=]+=*", text[:whole]))
        except binascii.Error:
            raise _malformed("the body is not base64") from None


def _malformed(what: str) -> InvalidInputError:
    return InvalidInputError(what, reason="BAD_MESSAGE")
