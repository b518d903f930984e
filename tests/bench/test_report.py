from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import plots, report
from bench.measure import Goal, Plan, Row, Spread, absolute, compared, skipped

STEPPING = {"server_p50_us": 900.0, "server_p99_us": 2000.0, "floor_p50_us": 500.0, "floor_p99_us": 1000.0}
ROWS = [
    compared("stream", "steps/s", Goal("≥ 0.65 of the echo", 0.65), 26_000, 40_000, Spread(0.65, 0.6, 0.7), **STEPPING),
    absolute("start", "s", Goal("≤ 1.0 s", 1.0, is_least=False), Spread(1.25, 1.2, 1.3)),
    skipped("int8", "steps/s", "≥ 1.8", "no bundle"),
]


def test_the_json_has_the_fields_that_are_agreed_and_is_read_back() -> None:
    text = report.to_json(ROWS)
    agreed = {"row", "value", "unit", "floor", "ratio", "spread", "target", "met"}
    assert all(agreed <= set(row) for row in json.loads(text))
    assert report.from_json(text) == ROWS


def test_the_table_hides_no_missed_row() -> None:
    text = report.to_markdown(ROWS, {"CPU": "some"}, Plan(), ["plots/targets.png"])
    assert "| stream | 26,000 steps/s | 40,000 | 0.65 (0.6–0.7) | ≥ 0.65 of the echo | yes |" in text
    assert "| start | 1.25 s | – | (1.2–1.3) | ≤ 1.0 s | **no** |" in text
    assert "| int8 | – | – | – | ≥ 1.8 | not measured |" in text
    assert "1 of 2 measured targets are met" in text
    assert "no bundle" in text
    assert "![plots/targets.png](plots/targets.png)" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (12345.6, "12,346"), (0.123456, "0.1235"), (3.0, "3"), ("stream", "stream")],
)
def test_figures_have_four_digits(value: float | str | None, text: str) -> None:
    assert report.number(value) == text


@pytest.mark.parametrize("row", ROWS)
def test_the_terminal_is_told_what_is_missed(row: Row) -> None:
    word = {True: "met", False: "MISSED", None: "not measured"}[row.met]
    assert word in report.one_line(row)


def test_plots_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    names = plots.draw(tmp_path / "plots", ROWS)
    assert names == ["targets.png", "latency.png"]
    assert all((tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert plots.draw(tmp_path / "none", [ROWS[2]]) == []
