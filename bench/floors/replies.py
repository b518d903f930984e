"""The answers that echoes give: of the size and shape of a step's, with top 1 and surprise, or as tensors."""

from __future__ import annotations

import math
import struct

from tidegate.bundle import BATCH, TIME, Manifest
from tidegate.oip import service_pb2
from tidegate.v1 import predictor_pb2, sessions_pb2, types_pb2

# As long as the ids that a server makes.
SESSION = "e~1cc213~a_aVk0m5wedUCMCo0T6GqA"
POSITION = 1000
UNIT = "bits"
CANDIDATE = {"token": "t", "id": 75, "probability": 0.020174054428935051}
# With the digits that a float of 32 bits has in JSON.
SURPRISE = 6.4803147315979


def step_reply() -> sessions_pb2.StepReply:
    candidates = types_pb2.Candidates(candidates=[types_pb2.Candidate(**CANDIDATE)])  # type: ignore[arg-type]
    surprise = types_pb2.Surprise(mean=SURPRISE, unit=UNIT)
    prediction = types_pb2.Prediction(length=1, next=[candidates], surprise=surprise)
    return sessions_pb2.StepReply(session=SESSION, position=POSITION, prediction=prediction)


def stream_reply() -> predictor_pb2.StreamReply:
    return predictor_pb2.StreamReply(step=step_reply())


def step_json() -> dict[str, object]:
    """The same in the shape of HTTP's ``:step``."""
    prediction = {"length": 1, "next": [CANDIDATE], "surprise": {"mean": SURPRISE, "unit": UNIT}}
    return {"session": SESSION, "position": POSITION, "prediction": prediction}


def infer_reply(manifest: Manifest) -> service_pb2.ModelInferResponse:
    """The Open Inference Protocol's reply to a step of this model: the graph's outputs, of fp32, as raw bytes."""
    reply = service_pb2.ModelInferResponse(model_name=manifest.name, model_version=manifest.version)
    for output in manifest.outputs:
        shape = [1 if axis in {BATCH, TIME} else int(axis) for axis in output.axes]
        reply.outputs.add(name=output.name, datatype="FP32", shape=shape)
        reply.raw_output_contents.append(struct.pack("<f", SURPRISE) * math.prod(shape))
    return reply


def infer_stream_reply(manifest: Manifest) -> service_pb2.ModelStreamInferResponse:
    return service_pb2.ModelStreamInferResponse(infer_response=infer_reply(manifest))
