"""Requests and replies as gRPC's messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidegate.errors import InvalidInputError, shown
from tidegate.oip import service_pb2
from tidegate.transports.oip.requests import (
    InferReply,
    InferRequest,
    Options,
    check_count,
    check_parameters,
    check_tensor_parameters,
    read_options,
)
from tidegate.transports.oip.tensors import MAX_AXES, NAMES, NamedTensor, from_contents, from_raw, to_raw

_UINT64 = 1 << 64


def decode_request(message: service_pb2.ModelInferRequest) -> InferRequest:
    """Read a request.

    Raises:
        InvalidInputError: A parameter or tensor is malformed, or values are missing or there twice.
        NotSupportedError: It asks for shared memory or classification.
    """
    check_count(len(message.inputs), len(message.outputs))
    check_parameters(message.parameters)
    for output in message.outputs:
        if output.parameters:
            check_tensor_parameters(output.name, output.parameters)
    return InferRequest(
        message.model_name,
        message.model_version,
        message.id,
        read_options(_plain(message.parameters)),
        _tensors(message),
        [output.name for output in message.outputs],
    )


def encode_reply(reply: InferReply) -> service_pb2.ModelInferResponse:
    """Write a reply; the values are always raw, for the C++ client looks nowhere else."""
    message = service_pb2.ModelInferResponse(model_name=reply.model, model_version=reply.version, id=reply.id)
    for name, array in reply.outputs:
        message.outputs.add(name=name, datatype=NAMES[array.dtype], shape=array.shape)
        message.raw_output_contents.append(to_raw(array))
    if reply.position is not None:
        message.parameters["tidegate_position"].int64_param = reply.position
    return message


def encode_request(request: InferRequest) -> service_pb2.ModelInferRequest:
    """The inverse of `decode_request`, to pass a request on."""
    message = service_pb2.ModelInferRequest(model_name=request.model, model_version=request.version, id=request.id)
    for name, array in request.inputs:
        message.inputs.add(name=name, datatype=NAMES[array.dtype], shape=array.shape)
        message.raw_input_contents.append(to_raw(array))
    for name in request.outputs:
        message.outputs.add(name=name)
    _fill_options(message, request.options)
    return message


def decode_reply(message: service_pb2.ModelInferResponse) -> InferReply:
    """The inverse of `encode_reply`."""
    outputs = [
        from_raw(each.name, each.datatype, list(each.shape), raw)
        for each, raw in zip(message.outputs, message.raw_output_contents, strict=True)
    ]
    told = message.parameters.get("tidegate_position")
    position = None if told is None else told.int64_param
    return InferReply(message.model_name, message.model_version, message.id, outputs, position)


def decode_statistics(message: service_pb2.ModelStatisticsResponse) -> list[dict[str, Any]]:
    """The entries of another worker's statistics, as `Statistics.document` has them."""
    return [
        {
            "name": each.name,
            "version": each.version,
            "last_inference": each.last_inference,
            "inference_count": each.inference_count,
            "execution_count": each.execution_count,
            "inference_stats": {
                field.name: {"count": duration.count, "ns": duration.ns}
                for field in each.inference_stats.DESCRIPTOR.fields
                for duration in [getattr(each.inference_stats, field.name)]
            },
        }
        for each in message.model_stats
    ]


def _fill_options(message: service_pb2.ModelInferRequest, options: Options) -> None:
    parameters = message.parameters
    if isinstance(options.sequence, str):
        parameters["sequence_id"].string_param = options.sequence
    elif options.sequence is not None:
        parameters["sequence_id"].uint64_param = options.sequence
    parameters["sequence_start"].bool_param = options.start
    parameters["sequence_end"].bool_param = options.end
    parameters["priority"].uint64_param = options.priority
    if options.position is not None:
        parameters["tidegate_position"].uint64_param = options.position


def _tensors(message: service_pb2.ModelInferRequest) -> list[NamedTensor]:
    raws = message.raw_input_contents
    for tensor in message.inputs:
        if tensor.parameters:
            check_tensor_parameters(tensor.name, tensor.parameters)
        if tensor.HasField("contents") == bool(raws):
            problem = "both raw and typed values" if raws else "no values: set raw_input_contents or contents"
            raise InvalidInputError(f"tensor {shown(tensor.name)} has {problem}", reason="WRONG_CONTENTS")
    if not raws:
        return [from_contents(each.name, each.datatype, _shape(each), each.contents) for each in message.inputs]
    if len(raws) != len(message.inputs):
        raise InvalidInputError(
            f"{len(message.inputs)} inputs, and {len(raws)} raw_input_contents: each input has one",
            reason="WRONG_CONTENTS",
        )
    return [
        from_raw(each.name, each.datatype, _shape(each), raw) for each, raw in zip(message.inputs, raws, strict=True)
    ]


def _shape(tensor: service_pb2.ModelInferRequest.InferInputTensor) -> list[int]:
    """The tensor's shape; of one with more sizes than there may be, just enough to be refused."""
    return tensor.shape[: MAX_AXES + 1]


def _plain(parameters: Mapping[str, service_pb2.InferParameter]) -> dict[str, Any]:
    """The parameters' values. The C++ client writes unsigned ids into a signed field: from 2^63 they are negative."""
    plain: dict[str, Any] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        value: Any = None if kind is None else getattr(parameter, kind)
        plain[name] = value % _UINT64 if name == "sequence_id" and kind == "int64_param" else value
    return plain
