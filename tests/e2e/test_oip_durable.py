"""With `durable` set, sequences outlive the process that served them, and a repeat is applied once all the same."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.bundles import write_tiny_bundle
from tests.servers import RunningServer, serving
from tidegate.oip import service_pb2, service_pb2_grpc

TOKENS = np.random.default_rng(5).integers(0, 65, (2, 8))

Array = NDArray[Any]


def infer(server: RunningServer, tokens: Array, **parameters: Any) -> Array:
    """The surprise of each token [rows, steps]."""
    request = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[tokens.tobytes()])
    request.inputs.add(name="tokens", datatype="INT64", shape=tokens.shape)
    request.outputs.add(name="surprise")
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    with grpc.insecure_channel(server.grpc) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "bundles")
    return tmp_path / "bundles"


def test_a_sequence_goes_on_after_its_server_was_killed(bundles: Path, tmp_path: Path) -> None:
    flags = ("--durable", "--data-dir", str(tmp_path / "data"))
    with serving(bundles, *flags) as server:
        whole = infer(server, TOKENS)
        parts = [infer(server, TOKENS[:, :3], sequence_id="s", sequence_start=True, tidegate_position=0)]
        parts.append(infer(server, TOKENS[:, 3:5], sequence_id="s", tidegate_position=3))
        server.tell(signal.SIGKILL)
        server.wait()
    with serving(bundles, *flags) as server:
        again = infer(server, TOKENS[:, 3:5], sequence_id="s", tidegate_position=3)
        np.testing.assert_array_equal(again, parts[1])
        parts.append(infer(server, TOKENS[:, 5:], sequence_id="s", sequence_end=True))
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-4, atol=1e-5)
        with pytest.raises(grpc.RpcError, match="must specify the START flag"):
            infer(server, TOKENS[:, :1], sequence_id="s")


def test_start_begins_anew_also_after_a_restart(bundles: Path, tmp_path: Path) -> None:
    flags = ("--durable", "--data-dir", str(tmp_path / "data"))
    with serving(bundles, *flags) as server:
        first = infer(server, TOKENS[:1], sequence_id=1, sequence_start=True)
    with serving(bundles, *flags) as server:
        np.testing.assert_allclose(
            infer(server, TOKENS[:1], sequence_id=1, sequence_start=True), first, rtol=1e-4, atol=1e-5
        )
        assert not np.allclose(infer(server, TOKENS[:1], sequence_id=1), first, atol=1e-3)


def test_without_it_a_sequence_ends_with_its_server(bundles: Path) -> None:
    with serving(bundles) as server:
        infer(server, TOKENS, sequence_id=1, sequence_start=True)
    with serving(bundles) as server, pytest.raises(grpc.RpcError, match="must specify the START flag"):
        infer(server, TOKENS, sequence_id=1)
