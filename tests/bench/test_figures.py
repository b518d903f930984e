from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.answers import compare, expected, scheduled_token
from bench.client import LoadError, parse
from bench.floors.raw import Graph, in_lockstep, in_padded_groups, one_by_one
from bench.floors.replies import infer_reply, infer_stream_reply, step_reply, stream_reply
from bench.processes import Running
from bench.raw import bundle_of
from tests.bundles import write_tiny_bundle
from tidegate.api import Tensor
from tidegate.bundle import read_bundle

LINE: dict[str, Any] = {
    "mode": "stream",
    "connections": 64,
    "messages": 10,
    "steps": 20,
    "elapsed": 2.0,
    "messages_per_s": 5.0,
    "steps_per_s": 10.0,
    "steps_per_s_between": 10.5,
    "p50": 1.0,
    "p90": 2.0,
    "p99": 3.0,
    "p999": 4.0,
    "max": 5.0,
    "reply_bytes": 66.0,
    "client_cpu": 0.1,
    "server_cpu": 0.9,
    "server_us_per_step": 90.0,
    "errors": 0,
    "first_error": "",
}


def test_the_clients_line_is_read() -> None:
    figures = parse(LINE)
    assert (figures.steps, figures.p99, figures.server_us_per_step) == (20, 3.0, 90.0)


@pytest.mark.parametrize("change", [{"errors": 1, "first_error": "gone"}, {"messages": 0}])
def test_a_measurement_with_errors_or_without_replies_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match=change.get("first_error", "0 replies")):
        parse(LINE | change)


def test_ports_are_read_from_what_a_process_says() -> None:
    serving = Running(1, {"http": "http://127.0.0.1:81", "grpc": "127.0.0.1:82"}, 0.5)
    assert (serving.port("http"), serving.port("grpc")) == (81, 82)
    assert Running(1, {"port": 83}, 0.5).port("grpc") == 83


def test_an_echos_reply_is_as_large_as_a_steps() -> None:
    assert 60 <= step_reply().ByteSize() <= 75
    assert stream_reply().step == step_reply()


def test_an_echos_tensors_are_a_steps() -> None:
    manifest = read_bundle(bundle_of()).manifest
    reply = infer_reply(manifest)
    size = int(manifest.output("logits").axes[-1])
    assert [(each.name, list(each.shape)) for each in reply.outputs] == [("logits", [1, 1, size]), ("surprise", [1, 1])]
    assert [len(raw) for raw in reply.raw_output_contents] == [4 * size, 4]
    assert infer_stream_reply(manifest).infer_response == reply


def answers_of(bundle: Path, session: int, steps: int) -> list[dict[str, Any]]:
    tokens = [scheduled_token(session, step, 65) for step in range(steps)]
    return [
        {"session": session, "step": step, "id": chosen, "probability": probability, "surprise": surprise}
        for step, (chosen, probability, surprise) in enumerate(expected(bundle, tokens))
    ]


def test_answers_of_the_model_are_found_right_and_others_wrong(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    answers = answers_of(bundle, 0, 5) + answers_of(bundle, 63, 4)
    assert compare(answers, bundle) == 9
    answers[3]["surprise"] += 0.01
    with pytest.raises(LoadError, match="surprise"):
        compare(answers, bundle)
    with pytest.raises(LoadError, match="no answers"):
        compare([], bundle)


class CountedGraph(Graph):
    """Counts the steps that its runs compute."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(bundle, threads=1)
        self.num_steps = 0

    def run(self, tokens: Tensor, states: list[Tensor]) -> list[Tensor]:  # type: ignore[override]
        self.num_steps += tokens.size
        return super().run(tokens, states)


def test_batches_by_hand_compute_every_step_and_only_padded_ones_more(tmp_path: Path) -> None:
    graph = CountedGraph(write_tiny_bundle(tmp_path))
    lengths = [5, 2, 9, 5]
    sequences = [np.arange(length) for length in lengths]
    in_lockstep(graph, sequences)
    assert graph.num_steps == sum(lengths)
    one_by_one(graph, sequences)
    assert graph.num_steps == 2 * sum(lengths)
    in_padded_groups(graph, sequences, 2)
    assert graph.num_steps == 2 * sum(lengths) + 5 * 2 + 9 * 2
