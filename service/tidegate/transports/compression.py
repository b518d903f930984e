"""Compressed bodies and messages, packed and unpacked in slices, with no more memory than they may take."""

from __future__ import annotations

import zlib

from tidegate.errors import InvalidInputError, TooLargeError
from tidegate.slices import Slices

# zlib's window bits: 31 is gzip, 15 is zlib's own header, which HTTP and gRPC call deflate.
_WINDOW_BITS = {"deflate": 15, "gzip": 31}
_FASTEST = 1
_PIECE_BYTES = 32 * 1024  # packed or unpacked at once, in half a millisecond

ENCODINGS = tuple(_WINDOW_BITS)


def decompress(data: bytes, encoding: str, limit: int) -> Slices[bytes]:
    """Return what was compressed, holding no more than ``limit`` bytes of it and one piece.

    Raises:
        InvalidInputError: It is not in this encoding, ends early, or goes on behind its end.
        TooLargeError: It is larger unpacked.
    """
    inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
    pieces: list[bytes] = []
    size, place, rest = 0, 0, b""
    while not inflater.eof and (rest or place < len(data)):
        if not rest:
            rest, place = data[place : place + _PIECE_BYTES], place + _PIECE_BYTES
        try:
            pieces.append(inflater.decompress(rest, _PIECE_BYTES))
        except zlib.error:
            raise InvalidInputError(f"the data is not in {encoding}", reason="BAD_COMPRESSION") from None
        size += len(pieces[-1])
        if size > limit:
            raise TooLargeError(f"more than {limit} bytes when unpacked, which is the most that is allowed")
        rest = inflater.unconsumed_tail
        yield
    if not inflater.eof or inflater.unused_data or place < len(data):
        raise InvalidInputError(f"the data is not one whole {encoding} stream", reason="BAD_COMPRESSION")
    return b"".join(pieces)


def compress(data: bytes, encoding: str) -> Slices[bytes]:
    """The inverse of `decompress`."""
    deflater = zlib.compressobj(_FASTEST, wbits=_WINDOW_BITS[encoding])
    pieces = []
    for start in range(0, len(data), _PIECE_BYTES):
        pieces.append(deflater.compress(data[start : start + _PIECE_BYTES]))
        yield
    return b"".join((*pieces, deflater.flush()))
