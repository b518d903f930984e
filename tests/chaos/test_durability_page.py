"""docs/durability.md names tests as witnesses: they exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/durability.md").read_text()


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 10
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert missing == []


def test_every_cell_has_its_witness() -> None:
    table = [line for line in PAGE.splitlines() if line.startswith("| **")]
    assert len(table) == 6
    cells = [cell.strip() for line in table for cell in line.strip("|").split("|")[1:]]
    assert len(cells) == 30
    unbacked = [cell for cell in cells if "[" not in cell and not cell.startswith("–") and cell != "all"]
    assert unbacked == []
    notes = {int(number) for number in re.findall(r"^(\d+)\. ", PAGE, re.MULTILINE)}
    assert {int(number) for cell in cells for number in re.findall(r"\[(\d+)\]", cell)} == notes
