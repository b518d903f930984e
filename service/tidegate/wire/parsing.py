"""Protobuf's bytes to messages, within bounds: before protobuf makes an object of each field, they are counted.

A message of 4 MB may have two million fields, and to parse them takes 150 ms in one call. Counted are the fields of the
message and of larger messages in it; packed numbers are one field.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tidegate.errors import InvalidInputError, TidegateError, TooLargeError
from tidegate.limits import LARGE_MESSAGE_BYTES, MAX_LANES, MAX_MESSAGE_FIELDS
from tidegate.v1 import predictor_pb2

Parsed = TypeVar("Parsed", bound=Message)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LAST_OF_A_BYTE = 127
_INNER_BYTES = 1024


class Unparsed(NamedTuple):
    """Bytes that are no message, or too large a one, and why: gRPC's servers have nobody to tell while they parse."""

    error: TidegateError


def parse(
    kind: type[Parsed], data: bytes, max_fields: int = MAX_MESSAGE_FIELDS, inner_bytes: int = _INNER_BYTES
) -> Parsed:
    """Return the message.

    Args:
        kind: Its class.
        data: Its bytes.
        max_fields: How many fields it may have.
        inner_bytes: Messages within it that are larger have their fields counted, too.

    Raises:
        InvalidInputError: The bytes are none.
        TooLargeError: It has more fields than a message may.
    """
    if len(data) > LARGE_MESSAGE_BYTES:
        _check_fields(kind.DESCRIPTOR, data, max_fields, inner_bytes)
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidInputError(f"the message is no {kind.DESCRIPTOR.name}", reason="BAD_MESSAGE") from None


def deserializer(kind: type[Parsed]) -> Callable[[bytes], Parsed | Unparsed]:
    """Return `parse` for a server that wants no errors of it."""

    def deserialize(data: bytes) -> Parsed | Unparsed:
        try:
            return parse(kind, data)
        except TidegateError as error:
            return Unparsed(error)

    return deserialize


def parsed(request: Any) -> Any:
    """Return what `deserializer` made of a request, a message; raise the error where it is none."""
    if isinstance(request, Unparsed):
        raise request.error
    return request


def _check_fields(descriptor: Any, data: bytes, max_fields: int, inner_bytes: int) -> None:  # noqa: C901, PLR0912
    """Raise TooLargeError where there are too many fields; what is malformed is protobuf's to refuse."""
    # In one function: a call for each field would take as long as the parser.
    room = max_fields
    waiting = [(descriptor, 0, len(data))]
    while waiting:
        kind, place, end = waiting.pop()
        if kind is _ATTACH:  # a name for each lane
            room += MAX_LANES
        messages = _messages_of(kind)
        while place < end:
            room -= 1
            if room < 0:
                raise TooLargeError(
                    f"a message has at most {max_fields} fields: send several requests",
                    reason="REQUEST_TOO_LARGE",
                )
            tag = data[place]
            place += 1
            if tag > _LAST_OF_A_BYTE:
                tag, place = _varint(data, place - 1)
            wire_type = tag & 7
            if wire_type == _BYTES:
                if place >= end:
                    return
                size = data[place]
                place += 1
                if size > _LAST_OF_A_BYTE:
                    size, place = _varint(data, place - 1)
                if size > inner_bytes and (inner := messages.get(tag >> 3)) is not None:
                    waiting.append((inner, place, min(end, place + size)))
                place += size
            elif wire_type == _VARINT:
                _, place = _varint(data, place)
            elif wire_type == _FIXED32:
                place += 4
            elif wire_type == _FIXED64:
                place += 8
            else:
                return


@functools.cache
def _messages_of(kind: Any) -> dict[int, Any]:
    """Return the fields of a message that are messages, by number."""
    return {field.number: field.message_type for field in kind.fields if field.type == FieldDescriptor.TYPE_MESSAGE}


_ATTACH = predictor_pb2.Attach.DESCRIPTOR


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at a place and the place behind it; beyond the end, nothing but progress is promised."""
    value = shift = 0
    for byte in data[place : place + 10]:
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    return value, place + 1
