"""Memories outside of the states, as far back as they go: what `tidegate import` tells, and what the user may state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.export.importing.graphs import Net, lstm
from tests.export.importing.importing import imported, refusal
from tidegate.proof import check_bundle


def limited(limit: int) -> Net:
    """Return an LSTM whose outputs are zero from step `limit` of each run."""
    net = lstm()
    (output,) = (item for item in net.outputs if item.name == "y")
    net.outputs.remove(output)
    time = net.add("Squeeze", net.add("Slice", net.add("Shape", "x"), net.integers(0), net.integers(1)))
    first, by = net.constant(np.array(0, np.int64)), net.constant(np.array(1, np.int64))
    is_early = net.add("Less", net.add("Range", first, time, by), net.integers(limit))
    factor = net.add("Unsqueeze", net.add("CastLike", is_early, "x"), net.integers(1, 2))
    net.output(net.add("Mul", "y", factor), "z", "time", "batch", 3)
    return net


def repeated() -> Net:
    """Return an LSTM whose outputs are copied as often as the loudest value says."""
    net = lstm()
    (output,) = (item for item in net.outputs if item.name == "y")
    net.outputs.remove(output)
    parameters = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
    ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["goes_on"], ["goes_on_still"]), helper.make_node("Identity", ["a"], ["b"])],
        "body",
        parameters,
        [
            helper.make_tensor_value_info("goes_on_still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    loudest = net.add("ReduceMax", net.add("Abs", "x"), keepdims=0)
    turns = net.add("CastLike", loudest, net.integers(0))
    net.output(net.add("Loop", turns, "", "y", body=body), "z", "time", "batch", 3)
    return net


@pytest.mark.parametrize("limit", [3, 100, 3000])
def test_a_limit_of_steps_is_refused_however_late_it_is(tmp_path: Path, limit: int) -> None:
    assert "cannot stream" in refusal(limited(limit), tmp_path)


def test_a_reach_that_cannot_be_told_is_taken_from_the_user_and_kept(tmp_path: Path) -> None:
    assert "--reach N" in refusal(repeated(), tmp_path)
    bundle = imported(repeated(), tmp_path, reach=70)
    assert bundle.manifest.proof is not None
    assert (bundle.manifest.proof.reach, bundle.manifest.proof.reach_from) == (70, "stated")
    again = check_bundle(bundle.path)
    assert (again.reach, again.reach_from) == (70, "stated")


def spoken(limit: int) -> Net:
    """Return an LSTM over x [time, batch, 4] and a speaker's vector [batch, 3], zero from step `limit` of each run."""
    net = limited(limit)
    (output,) = (item for item in net.outputs if item.name == "z")
    net.outputs.remove(output)
    speaker = net.input("speaker", "batch", 3)
    net.output(net.add("Mul", "z", speaker), "spoken", "time", "batch", 3)
    return net


def test_steps_run_one_by_one_for_an_input_beside_them_are_compared_with_the_whole_run(tmp_path: Path) -> None:
    assert "cannot stream" in refusal(spoken(300), tmp_path)
