"""Ray Serve: one replica behind its gRPC proxy, speaking tidegate's own proto; `serve.batch` joins steps.

`app GRPC_PORT HTTP_PORT`: Ray starts both proxies or none.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import ray
from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.grpc_util import gRPCInputStream

from bench.peers.lstm import Answer, Lstm
from tidegate.v1 import predictor_pb2, sessions_pb2, types_pb2

SERVICER = "tidegate.v1.predictor_pb2_grpc.add_PredictorServicer_to_server"


@serve.deployment(max_ongoing_requests=1000)
class Steps:
    """The method of the service `Predictor` that the client calls."""

    def __init__(self) -> None:
        self._lstm = Lstm()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def step(self, steps: list[tuple[str, int]]) -> list[Answer]:
        return self._lstm.step_many(steps)

    async def Stream(self, requests: gRPCInputStream) -> AsyncIterator[predictor_pb2.StreamReply]:
        session = ""
        async for request in requests:
            session = request.step.session or session
            yield reply(session, await self.step((session, request.step.tokens[0])))


def reply(session: str, answer: Answer) -> predictor_pb2.StreamReply:
    candidate = types_pb2.Candidate(id=answer.id, probability=answer.probability)
    prediction = types_pb2.Prediction(
        length=1,
        next=[types_pb2.Candidates(candidates=[candidate])],
        surprise=types_pb2.Surprise(mean=answer.surprise, unit="bits"),
    )
    step = sessions_pb2.StepReply(session=session, position=answer.position, prediction=prediction)
    return predictor_pb2.StreamReply(step=step)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=100 * 2**20)
    grpc = gRPCOptions(port=int(sys.argv[1]), grpc_servicer_functions=[SERVICER])
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])}, grpc_options=grpc)
    serve.run(Steps.bind(), blocking=True)  # type: ignore[attr-defined]  # the decorator gives it
