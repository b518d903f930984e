"""Requests and replies as HTTP bodies: JSON, then raw tensors; compressed or not.

The JSON part is as long as ``Inference-Header-Content-Length`` says, else all of the body. Raw tensors follow it in
the order of those whose parameter ``binary_data_size`` announces them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tidegate.errors import InvalidInputError, known_names, shown
from tidegate.limits import LARGE_REPLY_BYTES
from tidegate.slices import Slices, at_once
from tidegate.transports.compression import ENCODINGS
from tidegate.transports.http.accepting import weights
from tidegate.transports.http.exchange import dump, parse_in_slices
from tidegate.transports.http.large_json import write
from tidegate.transports.oip.requests import (
    InferReply,
    InferRequest,
    check_count,
    check_tensor_parameters,
    read_options,
)
from tidegate.transports.oip.tensors import NAMES, NamedTensor, from_json, from_raw, to_raw

Json = Any

HEADER_LENGTH = "Inference-Header-Content-Length"


class Wish(NamedTuple):
    """How a reply's outputs are wanted: those named in ``binary`` raw, and all others raw if ``others`` says so."""

    binary: Mapping[str, bool]
    others: bool

    def is_binary(self, name: str) -> bool:
        return self.binary.get(name, self.others)


class Body(NamedTuple):
    """A reply's body, and how long its JSON part is where raw tensors follow."""

    content: bytes
    header_length: int | None


async def decode_body(model: str, version: str, body: bytes, header_length: str | None) -> tuple[InferRequest, Wish]:
    """Read a request and how its outputs are wanted; a large one in slices.

    Raises:
        InvalidInputError: The JSON, a parameter or a tensor is malformed, or sizes do not add up.
        NotSupportedError: It asks for shared memory or classification.
    """
    end = _header_end(body, header_length)
    document = await parse_in_slices(body[:end])
    _check_keys(document, ("id", "parameters", "inputs", "outputs"), "the request")
    options = read_options(_mapping(document.get("parameters"), "parameters"))
    given, outputs = _objects(document, "inputs"), _objects(document, "outputs")
    check_count(len(given), len(outputs))
    inputs = _Raws(memoryview(body)[end:]).tensors(given)
    binary = {}
    for output in outputs:
        _check_keys(output, ("name", "parameters"), "an output")
        parameters = _mapping(output.get("parameters"), "an output's parameters")
        check_tensor_parameters(_name(output), parameters, ("binary_data",))
        if "binary_data" in parameters:
            binary[_name(output)] = _flag("binary_data", parameters["binary_data"])
    request = InferRequest(
        model, version, _text(document, "id"), options, inputs, [_name(output) for output in outputs]
    )
    return request, Wish(binary, options.binary_output)


def encode_body(reply: InferReply, wish: Wish) -> Body | Slices[Body]:
    """Write a reply; of a large one, return the work of writing it in slices."""
    is_large = sum(array.nbytes for _, array in reply.outputs) > LARGE_REPLY_BYTES
    writing = _write_reply(reply, wish, is_large=is_large)
    return writing if is_large else at_once(writing)


def _write_reply(reply: InferReply, wish: Wish, *, is_large: bool) -> Slices[Body]:
    raws: list[bytes] = []
    outputs = []
    for name, array in reply.outputs:
        output: dict[str, Json] = {"name": name, "datatype": NAMES[array.dtype], "shape": list(array.shape)}
        if wish.is_binary(name):
            raws.append(to_raw(array))
            output["parameters"] = {"binary_data_size": len(raws[-1])}
        else:
            output["data"] = array.ravel() if is_large else array.ravel().tolist()
        outputs.append(output)
    document: dict[str, Json] = {"model_name": reply.model, "model_version": reply.version}
    document["outputs"] = iter(outputs) if is_large else outputs
    if reply.id:
        document["id"] = reply.id
    if reply.position is not None:
        document["parameters"] = {"tidegate_position": reply.position}
    header = (yield from write(document)) if is_large else dump(document)
    return Body(b"".join((header, *raws)), len(header) if raws else None)


def accepted(header: str) -> str | None:
    """The encoding to use for a client that sent this ``Accept-Encoding``; None for none. gzip is preferred."""
    wanted = weights(header)
    best = max(reversed(ENCODINGS), key=lambda name: wanted.get(name, 0.0))
    return best if wanted.get(best, 0.0) > 0 and wanted[best] >= wanted.get("identity", 0.0) else None


class _Raws:
    """The bytes behind the JSON part, taken piece by piece."""

    def __init__(self, rest: memoryview) -> None:
        self._rest = rest

    def tensors(self, inputs: Sequence[dict[str, Json]]) -> list[NamedTensor]:
        """Read the inputs; every byte must belong to one."""
        tensors = [self._tensor(each) for each in inputs]
        if len(self._rest):
            raise InvalidInputError(
                f"{len(self._rest)} bytes of the body belong to no input: see binary_data_size", reason="WRONG_SIZE"
            )
        return tensors

    def _tensor(self, document: dict[str, Json]) -> NamedTensor:
        _check_keys(document, ("name", "shape", "datatype", "parameters", "data"), "an input")
        name, datatype, shape = _name(document), _text(document, "datatype"), document.get("shape")
        parameters = _mapping(document.get("parameters"), f"{shown(name)}: parameters")
        check_tensor_parameters(name, parameters, ("binary_data_size",))
        if type(shape) is not list:
            raise InvalidInputError(f"input {shown(name)}: shape must be a list of sizes", reason="WRONG_SHAPE")
        if ("binary_data_size" in parameters) == ("data" in document):
            problem = "both data and binary_data_size" if parameters else "neither data nor binary_data_size"
            raise InvalidInputError(f"input {shown(name)} has {problem}", reason="WRONG_CONTENTS")
        if "data" in document:
            return from_json(name, datatype, shape, document["data"])
        return from_raw(name, datatype, shape, self._take(name, parameters["binary_data_size"]))

    def _take(self, name: str, size: Json) -> memoryview:
        if type(size) is not int or size < 0:
            raise InvalidInputError(
                f"input {shown(name)}: binary_data_size must be a number of bytes", reason="WRONG_SIZE"
            )
        if size > len(self._rest):
            raise InvalidInputError(
                f"input {shown(name)}: binary_data_size is {size}, the body has {len(self._rest)} bytes left",
                reason="WRONG_SIZE",
            )
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def _header_end(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 18:
        raise InvalidInputError(f"{HEADER_LENGTH} must be a number of bytes", reason="WRONG_SIZE")
    end = int(header_length)
    if end > len(body):
        raise InvalidInputError(f"{HEADER_LENGTH} is {end}, the body has {len(body)} bytes", reason="WRONG_SIZE")
    return end


def _check_keys(document: Mapping[str, Json], known: Sequence[str], what: str) -> None:
    for key in document:
        if key not in known:
            allowed = known_names(key, known, "the keys are")
            raise InvalidInputError(f"unknown key {shown(key)} in {what}{allowed}", reason="UNKNOWN_KEY")


def _objects(document: Mapping[str, Json], key: str) -> list[dict[str, Json]]:
    value = document.get(key, [])
    if type(value) is not list or not all(type(each) is dict for each in value):
        raise InvalidInputError(f"{key} must be a list of objects")
    return value


def _mapping(value: Json, what: str) -> dict[str, Json]:
    if value is None:
        return {}
    if type(value) is not dict:
        raise InvalidInputError(f"{what} must be an object")
    return value


def _text(document: Mapping[str, Json], key: str) -> str:
    value = document.get(key, "")
    if type(value) is not str:
        raise InvalidInputError(f"{key} must be a string")
    return value


def _name(document: Mapping[str, Json]) -> str:
    name = _text(document, "name")
    if not name:
        raise InvalidInputError("a tensor has no name", reason="UNKNOWN_TENSOR")
    return name


def _flag(name: str, value: Json) -> bool:
    if type(value) is not bool:
        raise InvalidInputError(f"parameter {name!r} must be true or false", reason="BAD_PARAMETER")
    return value
