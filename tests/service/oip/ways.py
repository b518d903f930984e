"""One face for all ways of asking for inference, and what each answers: outputs by name, or a `Refusal`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grpc
import httpx
import numpy as np
from numpy.typing import NDArray

from tidegate.oip import service_pb2, service_pb2_grpc
from tidegate.transports.oip.bodies import HEADER_LENGTH
from tidegate.transports.oip.http import REASON
from tidegate.wire.errors import decode_status

Array = NDArray[Any]
Json = Any

DATATYPES = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "bool": "BOOL", "uint8": "UINT8"}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
CONTENTS = {"FP32": "fp32_contents", "INT64": "int64_contents", "INT32": "int_contents", "BOOL": "bool_contents"}


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """An answer without outputs."""

    def __init__(self, message: str, reason: str, code: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code


class Tensor:
    """An input to be sent: an array, whose datatype and shape may be told wrongly."""

    def __init__(
        self, name: str, array: Any, datatype: str | None = None, shape: Sequence[int] | None = None, **parameters: Any
    ) -> None:
        self.name = name
        self.array: Array = np.asarray(array)
        self.datatype = datatype or DATATYPES[self.array.dtype.name]
        self.shape = list(self.array.shape if shape is None else shape)
        self.parameters = parameters


class Reply(dict[str, Array]):
    """Outputs by name; ``document`` is all of the reply."""

    document: Json


class Way(Protocol):
    """A way of asking."""

    async def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        *,
        version: str = "",
        id: str = "",  # noqa: A002 - the protocol's word
        outputs: Sequence[str] = (),
        **parameters: Any,
    ) -> Reply: ...


class HttpWay:
    """JSON, or raw tensors behind it."""

    def __init__(self, client: httpx.AsyncClient, form: str) -> None:
        self._client = client
        self._is_binary = form == "binary"

    async def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        *,
        version: str = "",
        id: str = "",  # noqa: A002
        outputs: Sequence[str] = (),
        **parameters: Any,
    ) -> Reply:
        if self._is_binary:
            parameters.setdefault("binary_data_output", True)
        document: dict[str, Json] = {"inputs": [self._input(each) for each in inputs], "parameters": parameters}
        if id:
            document["id"] = id
        if outputs:
            document["outputs"] = [{"name": name} for name in outputs]
        header = json.dumps(document).encode()
        raws = [each.array.tobytes() for each in inputs] if self._is_binary else []
        path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
        headers = {HEADER_LENGTH: str(len(header))} if raws else {}
        response = await self._client.post(path, content=b"".join((header, *raws)), headers=headers)
        return read_http(response)

    def _input(self, tensor: Tensor) -> Json:
        document: Json = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
        parameters = dict(tensor.parameters)
        if self._is_binary:
            parameters.setdefault("binary_data_size", tensor.array.nbytes)
        else:
            document["data"] = tensor.array.ravel().tolist()
        return document | ({"parameters": parameters} if parameters else {})


def read_http(response: httpx.Response) -> Reply:
    """The reply in a response; Refusal."""
    if response.status_code != httpx.codes.OK:
        assert set(response.json()) == {"error"}
        raise Refusal(response.json()["error"], response.headers[REASON], str(response.status_code))
    end = int(response.headers.get(HEADER_LENGTH, len(response.content)))
    reply = Reply()
    reply.document = json.loads(response.content[:end])
    rest = response.content[end:]
    for output in reply.document["outputs"]:
        dtype, shape = DTYPES[output["datatype"]], output["shape"]
        if "data" in output:
            assert "parameters" not in output
            reply[output["name"]] = np.array(output["data"], dtype).reshape(shape)
        else:
            size = output["parameters"]["binary_data_size"]
            reply[output["name"]] = np.frombuffer(rest[:size], dtype).reshape(shape)
            rest = rest[size:]
    assert not rest
    return reply


class GrpcWay:
    """Raw or typed contents, a call each or a stream."""

    def __init__(self, stub: service_pb2_grpc.GRPCInferenceServiceAsyncStub, form: str) -> None:
        self._stub = stub
        self._form = form

    async def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        *,
        version: str = "",
        id: str = "",  # noqa: A002
        outputs: Sequence[str] = (),
        **parameters: Any,
    ) -> Reply:
        request = message(model, inputs, version=version, id=id, outputs=outputs, is_typed=self._form == "typed")
        set_parameters(request.parameters, parameters)
        if self._form == "stream":
            return await self._stream(request)
        try:
            return read_message(await self._stub.ModelInfer(request))
        except grpc.RpcError as error:
            told = decode_status(error)
            code: Any = error
            raise Refusal(told.message, told.reason, code.code().name) from error

    async def _stream(self, request: service_pb2.ModelInferRequest) -> Reply:
        call = self._stub.ModelStreamInfer(iter([request]))
        (reply,) = [reply async for reply in call]
        if reply.error_message:
            assert reply.infer_response.id == request.id
            reason = reply.infer_response.parameters["tidegate_reason"].string_param
            raise Refusal(reply.error_message, reason, "STREAM")
        return read_message(reply.infer_response)


def message(
    model: str,
    inputs: Sequence[Tensor],
    *,
    version: str = "",
    id: str = "",  # noqa: A002
    outputs: Sequence[str] = (),
    is_typed: bool = False,
) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=id)
    for each in inputs:
        tensor = request.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        set_parameters(tensor.parameters, each.parameters)
        if is_typed:
            getattr(tensor.contents, CONTENTS[DATATYPES[each.array.dtype.name]]).extend(each.array.ravel().tolist())
            tensor.contents.SetInParent()
        else:
            request.raw_input_contents.append(each.array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def set_parameters(target: Any, parameters: Mapping[str, Any]) -> None:
    fields = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for name, value in parameters.items():
        is_large = type(value) is int and value >= 1 << 63
        setattr(target[name], "uint64_param" if is_large else fields[type(value)], value)


def read_message(response: service_pb2.ModelInferResponse) -> Reply:
    """The reply in a message."""
    assert len(response.outputs) == len(response.raw_output_contents)
    reply = Reply()
    reply.document = {"model_name": response.model_name, "model_version": response.model_version, "id": response.id}
    if response.parameters:
        reply.document["parameters"] = {
            name: getattr(value, str(value.WhichOneof("parameter_choice")))
            for name, value in response.parameters.items()
        }
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        reply[output.name] = np.frombuffer(raw, DTYPES[output.datatype]).reshape(output.shape)
    return reply
