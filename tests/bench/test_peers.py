from __future__ import annotations

import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bench import report
from bench.answers import expected, scheduled_token
from bench.client import Figures, LoadError, parse
from bench.measure import Plan, Rounds, Row, skipped
from bench.peers.comparison import NO_TARGET, Comparison, best_row, row_of
from bench.peers.lstm import MODEL, Lstm
from bench.peers.running import PeerError, family_of, free_ports, started
from bench.peers.triton import with_leading_batch, write_repository
from bench.processes import Running
from tests.bench.test_figures import LINE
from tidegate.ort import onnxruntime

TOKENS = [scheduled_token(0, step, 65) for step in range(6)]


def figures(rate: float) -> Figures:
    return parse(LINE | {"steps_per_s": rate})


def rounds(ours: list[float], theirs: list[float]) -> Rounds[Figures]:
    return Rounds({"tidegate": list(map(figures, ours)), "peer": list(map(figures, theirs))})


def test_peers_answer_what_the_model_says_alone_and_in_a_batch() -> None:
    lstm, wanted = Lstm(), expected(MODEL.parent, TOKENS)
    for position, token in enumerate(TOKENS):
        lstm.step("ahead", token)
        answers = lstm.step_many([("ahead", 1), ("a", token)])
        assert answers[1].position == position + 1
        assert astuple(answers[1])[1:] == pytest.approx(wanted[position], rel=1e-4, abs=1e-5)


def test_tritons_graph_answers_the_same_with_the_batch_axis_first() -> None:
    graph = onnxruntime.InferenceSession(with_leading_batch(onnx.load(MODEL)).SerializeToString())
    names = ["h_after", "c_after", "position_after", "position", "id", "probability", "surprise"]
    h: Any = np.zeros((2, 2, 256), np.float32)
    c: Any = h
    position: Any = np.zeros((2, 1), np.int64)
    for step, (token, wanted) in enumerate(zip(TOKENS, expected(MODEL.parent, TOKENS), strict=True)):
        feeds = {"tokens": np.array([[3], [token]]), "h_before": h, "c_before": c, "position_before": position}
        h, c, position, *answer = graph.run(names, feeds)
        assert [column[1].item() for column in answer] == pytest.approx([step + 1, *wanted], rel=1e-4, abs=1e-5)


def test_tritons_repository_names_every_tensor_of_its_graph(tmp_path: Path) -> None:
    write_repository(tmp_path)
    configuration = (tmp_path / "lstm" / "config.pbtxt").read_text()
    graph = onnx.load(tmp_path / "lstm" / "1" / "model.onnx").graph
    assert all(f'"{tensor.name}"' in configuration for tensor in [*graph.input, *graph.output])


def test_a_peers_line_is_held_against_ours_and_has_no_target() -> None:
    row = row_of("peer-x", "x 1.0.", Comparison(rounds([100, 120, 110], [10, 30, 20]), {"rounds": 3}))
    assert (row.value, row.floor, row.spread) == (20, 110, (0.1, 0.25))
    assert row.details["peer_us_per_step"] == 90
    assert report.verdict(row) == "–"
    assert "MISSED" not in report.one_line(row)


def test_ours_is_held_against_the_best_peer() -> None:
    row = best_row({"slow": rounds([60.0], [6.0]), "fast": rounds([70.0], [10.0])})
    assert (row.ratio, row.met, row.details["best_peer"]) == (7.0, True, "fast")
    assert best_row({}).met is None


def test_a_process_that_ends_before_it_answers_is_told_with_its_last_words() -> None:
    def refuse(_: Running) -> None:
        raise LoadError("refused")

    with (
        pytest.raises(PeerError, match=r"(?s)refused.*no such model"),
        started([sys.executable, "-c", "raise SystemExit('no such model')"], free_ports(1)[0], {}, refuse),
    ):
        raise AssertionError("it was started")


def test_a_peer_ends_with_its_children() -> None:
    code = "import subprocess; subprocess.Popen(['cat'], stdin=subprocess.PIPE).wait()"
    with started([sys.executable, "-c", code], free_ports(1)[0], {}, wait_for_a_child) as running:
        _, child = family_of(running.pid)
    assert not is_alive(child)


def wait_for_a_child(running: Running) -> None:
    if len(family_of(running.pid)) < 2:
        raise LoadError("no child yet")


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended may still wait for a parent to notice."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_family_begins_with_the_process_itself() -> None:
    assert family_of(os.getpid())[0] == os.getpid()


def test_rows_of_peers_take_the_place_of_those_before(tmp_path: Path) -> None:
    first = [skipped("a", "steps/s", "≥ 1", "no"), skipped("x-peers", "steps/s", "≥ 6", "no")]
    report.write(tmp_path, first, {"CPU": "one"}, Plan(rounds=7), [])
    written = report.read(tmp_path)
    assert written is not None
    assert (written.rows, written.machine, written.plan) == (first, {"CPU": "one"}, Plan(rounds=7))
    newer = [
        Row("x-peers", 7.0, "steps/s", 1.0, 7.0, (6.0, 8.0), "≥ 6", True, 1.2),
        skipped("peer-y", "", NO_TARGET, "no"),
    ]
    rows = report.merged(written.rows, newer)
    assert [row.row for row in rows] == ["a", "x-peers", "peer-y"]
    assert rows[1].met
    assert [report.is_of_others(row) for row in rows] == [False, True, True]


def test_a_folder_without_a_report_has_none(tmp_path: Path) -> None:
    assert report.read(tmp_path) is None
