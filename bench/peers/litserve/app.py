"""LitServe: one worker process that holds the states and runs what has arrived as one batch. `app PORT`."""

# Annotations are evaluated here: LitServe reads that of `request` to know how a body is parsed.

import sys
from dataclasses import asdict
from typing import Any

import litserve

from bench.peers.lstm import Answer, Lstm

Step = tuple[str, int]


class Steps(litserve.LitAPI):
    """LitServe's hooks, in the order in which it calls them."""

    def setup(self, device: str) -> None:
        self._lstm = Lstm()

    def decode_request(self, request: dict[str, Any]) -> Step:
        return request["session"], request["token"]

    def batch(self, inputs: list[Step]) -> list[Step]:
        return inputs

    def predict(self, x: list[Step]) -> list[Answer]:
        return self._lstm.step_many(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer) -> dict[str, Any]:
        return asdict(output)


if __name__ == "__main__":
    api = Steps(max_batch_size=64, batch_timeout=0.001, api_path="/step")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
