"""A running Triton beside ours: the graph as it wants it, and its row where one is reachable on this machine.

`python -m bench.peers.triton DIRECTORY` writes a model repository; then, with the onnxruntime backend,
`tritonserver --model-repository DIRECTORY --grpc-port 8001`. Triton keeps the state itself ("implicit state") and wants
it with the batch axis first. The configuration follows docs.nvidia.com/deeplearning/triton-inference-server
(model configuration, implicit state management); neither it nor this module's measurement has been
tried against a Triton here, the graph has.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.client import LoadError
from bench.measure import Plan, Row, skipped
from bench.peers.catalogue import Way
from bench.peers.comparison import NO_TARGET, compare, row_of
from bench.peers.lstm import MODEL
from bench.processes import Running

NAME = "peer-triton"
WAY = Way("gRPC, its bidirectional stream and implicit state", "inference", {"model": "lstm"})

CONFIGURATION = """
name: "lstm"
backend: "onnxruntime"
max_batch_size: 256
input [ { name: "tokens" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [
  { name: "position" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "id" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "probability" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "surprise" data_type: TYPE_FP32 dims: [ 1 ] }
]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 256 }
  state [
    { input_name: "position_before" output_name: "position_after" data_type: TYPE_INT64 dims: [ 1 ]
      initial_state { name: "zero" data_type: TYPE_INT64 dims: [ 1 ] zero_data: true } },
    { input_name: "h_before" output_name: "h_after" data_type: TYPE_FP32 dims: [ 2, 256 ]
      initial_state { name: "zero" data_type: TYPE_FP32 dims: [ 2, 256 ] zero_data: true } },
    { input_name: "c_before" output_name: "c_after" data_type: TYPE_FP32 dims: [ 2, 256 ]
      initial_state { name: "zero" data_type: TYPE_FP32 dims: [ 2, 256 ] zero_data: true } }
  ]
}
instance_group [ { kind: KIND_CPU count: 1 } ]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
"""


def rows(port: int, plan: Plan) -> Iterator[Row]:
    """Its row, or why there is none."""
    running = Running(0, {"port": port}, 0.0)
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        yield row_of(NAME, f"{WAY.interface}.", compare(WAY, running, [], plan))
    except OSError as error:
        yield skipped(NAME, "steps/s", NO_TARGET, f"no Triton is reachable on port {port} ({error.strerror})")
    except LoadError as error:
        yield skipped(NAME, "steps/s", NO_TARGET, f"port {port} does not answer as a Triton with this model: {error}")


def with_leading_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with states [batch, 2, 256], a position that counts, and the outputs of an answer alone."""
    nodes = [
        helper.make_node("Transpose", ["h_before"], ["h_in"], perm=[1, 0, 2]),
        helper.make_node("Transpose", ["c_before"], ["c_in"], perm=[1, 0, 2]),
        *model.graph.node,
        helper.make_node("Transpose", ["h_out"], ["h_after"], perm=[1, 0, 2]),
        helper.make_node("Transpose", ["c_out"], ["c_after"], perm=[1, 0, 2]),
        helper.make_node("Add", ["position_before", "one"], ["position"]),
        helper.make_node("Identity", ["position"], ["position_after"]),
        helper.make_node("ArgMax", ["logits"], ["id"], axis=-1, keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ReduceMax", ["probabilities", "last_axis"], ["probability"], keepdims=0),
    ]
    constants = [numpy_helper.from_array(np.array([1]), "one"), numpy_helper.from_array(np.array([-1]), "last_axis")]
    graph = helper.make_graph(
        nodes,
        "lstm",
        [_numbers("tokens"), _numbers("position_before"), _state("h_before"), _state("c_before")],
        [
            *(_numbers(name) for name in ("position", "id", "position_after")),
            *(_numbers(name, TensorProto.FLOAT) for name in ("probability", "surprise")),
            *(_state(name) for name in ("h_after", "c_after")),
        ],
        [*model.graph.initializer, *constants],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _numbers(name: str, kind: int = TensorProto.INT64) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", 1])


def _state(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, 256])


def write_repository(folder: Path) -> None:
    """Write the model repository into ``folder``."""
    version = folder / "lstm" / "1"
    version.mkdir(parents=True, exist_ok=True)
    onnx.save(with_leading_batch(onnx.load(MODEL)), version / "model.onnx")
    (folder / "lstm" / "config.pbtxt").write_text(CONFIGURATION.lstrip(), encoding="utf-8")


if __name__ == "__main__":
    write_repository(Path(sys.argv[1]))
