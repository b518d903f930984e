"""Protocol buffers by hand: just enough to look into a message, or to add to it, without knowing the rest of it.

A message is a run of fields; fields may come in any order, and unknown ones are copied as they are. So a few fields can
be found in an ONNX file, put into it or left out, without the schema, and without the package ``onnx`` in the server.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

_VARINT, _BYTES = 0, 2
_MOST_KEY = (1 << 32) - 1
_NOTHING = memoryview(b"")


class Field(NamedTuple):
    """One field of a message: its number, its whole encoding, and its content where it has a length, else nothing.

    Both are views of the message: weights are not copied.
    """

    number: int
    encoding: memoryview
    content: memoryview


def entries(message: bytes | memoryview) -> Iterator[Field]:
    """Yield the fields of a message in their order.

    Raises:
        ValueError: It is not a message, or ends in the middle of a field.
    """
    message = memoryview(message)
    start = 0
    while start < len(message):
        key, body = _read_varint(message, start)
        if key > _MOST_KEY:  # other readers drop the bits above, and would see another field than this one
            raise ValueError(f"no field's number at byte {start}")
        stop = content = body
        match key & 7:
            case 0:
                _, stop = _read_varint(message, body)
            case 1:
                stop = body + 8
            case 2:
                size, content = _read_varint(message, body)
                stop = content + size
            case 5:
                stop = body + 4
            case kind:
                raise ValueError(f"wire type {kind} at byte {start}")
        if stop > len(message):
            raise ValueError(f"the field at byte {start} ends beyond the message")
        yield Field(key >> 3, message[start:stop], message[content:stop] if key & 7 == _BYTES else _NOTHING)
        start = stop


def number(field: Field) -> int:
    """Return the whole number that a field of wire type 0 holds, as a signed one of 64 bits."""
    _, start = _read_varint(field.encoding, 0)
    value, _ = _read_varint(field.encoding, start)
    return _signed(value)


def numbers(field: Field) -> list[int]:
    """Return the whole numbers of a repeated field's entry: one, or many that are packed."""
    if field.encoding[0] & 7 == _VARINT:
        return [number(field)]
    found, start = [], 0
    while start < len(field.content):
        value, start = _read_varint(field.content, start)
        found.append(_signed(value))
    return found


def block(number: int, content: bytes) -> bytes:
    """Return a field that has a length: a string, a message, or packed numbers."""
    return varint(number << 3 | _BYTES) + varint(len(content)) + content


def text(number: int, value: str) -> bytes:
    """Return a string field."""
    return block(number, value.encode())


def integer(number: int, value: int) -> bytes:
    """Return a field of a whole number that is not negative."""
    return varint(number << 3 | _VARINT) + varint(value)


def integers(number: int, values: Iterable[int]) -> bytes:
    """Return a repeated field of whole numbers, one entry each."""
    return b"".join(integer(number, value) for value in values)


def varint(value: int) -> bytes:
    """Return a whole number, not negative: seven bits a byte, the lowest first. A length, or a field's tag."""
    assert value >= 0
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _read_varint(message: memoryview, start: int) -> tuple[int, int]:
    """Return the number at ``start`` and where it ends."""
    if start < len(message) and (value := message[start]) < 0x80:  # nearly all are
        return value, start + 1
    value = shift = 0
    for index in range(start, min(start + 10, len(message))):
        value |= (message[index] & 0x7F) << shift
        if message[index] < 0x80:
            return value, index + 1
        shift += 7
    raise ValueError(f"no number at byte {start}")
