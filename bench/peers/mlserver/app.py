"""MLServer: a custom runtime on its bidirectional stream, the fastest of its interfaces. `mlserver start DIRECTORY`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from bench.peers.lstm import Answer, Lstm


class Steps(MLModel):
    """Steps of the sequence that the request's parameter ``sequence_id`` names."""

    async def load(self) -> bool:
        self._lstm = Lstm()
        return True

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        async for payload in payloads:
            answer = self._lstm.step(payload.parameters.sequence_id, payload.inputs[0].data[0])
            yield InferenceResponse(model_name=self.name, outputs=outputs(answer))


def outputs(answer: Answer) -> list[ResponseOutput]:
    return [
        ResponseOutput(name="position", datatype="INT64", shape=[1, 1], data=[answer.position]),
        ResponseOutput(name="id", datatype="INT64", shape=[1, 1], data=[answer.id]),
        ResponseOutput(name="probability", datatype="FP32", shape=[1, 1], data=[answer.probability]),
        ResponseOutput(name="surprise", datatype="FP32", shape=[1, 1], data=[answer.surprise]),
    ]
