"""Compressed bodies and messages, unpacked with no more memory than they may take."""

from __future__ import annotations

import zlib

from tidegate.errors import InvalidInputError, TooLargeError

# zlib's window bits: 31 is gzip, 15 is zlib's own header, which HTTP and gRPC call deflate.
_WINDOW_BITS = {"deflate": 15, "gzip": 31}
_FASTEST = 1

ENCODINGS = tuple(_WINDOW_BITS)


def decompress(data: bytes, encoding: str, limit: int) -> bytes:
    """Return what was compressed, holding no more than ``limit`` bytes of it.

    Raises:
        InvalidInputError: It is not in this encoding, ends early, or goes on behind its end.
        TooLargeError: It is larger unpacked.
    """
    inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        unpacked = inflater.decompress(data, limit + 1)
    except zlib.error:
        raise InvalidInputError(f"the data is not in {encoding}", reason="BAD_COMPRESSION") from None
    if len(unpacked) > limit:
        text = f"more than {limit} bytes when unpacked, which is the most that is allowed"
        raise TooLargeError(text)
    if not inflater.eof or inflater.unused_data:
        raise InvalidInputError(f"the data is not one whole {encoding} stream", reason="BAD_COMPRESSION")
    return unpacked


def compress(data: bytes, encoding: str) -> bytes:
    """The inverse of `decompress`."""
    deflater = zlib.compressobj(_FASTEST, wbits=_WINDOW_BITS[encoding])
    return deflater.compress(data) + deflater.flush()
