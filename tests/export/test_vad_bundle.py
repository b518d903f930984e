"""The committed bundle `vad` is what its recipe makes, to the letter."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.export.importing.test_third_party import packaged
from tidegate.bundle import CARD, GRAPH, MANIFEST, read_bundle
from tools import vad_bundle

ROOT = Path(__file__).parents[2]
VAD = ROOT / "bundles/vad/1"


def test_card_and_manifest_say_the_recipe() -> None:
    bundle = read_bundle(VAD)
    card, origin = bundle.files[CARD].decode(), bundle.manifest.provenance["import"]
    command = shlex.join(["tidegate", "import", Path(vad_bundle.MEMBER).name, *vad_bundle.FLAGS])
    assert (origin["command"], origin["origin"]) == (command, vad_bundle.PACKAGE)
    assert (origin["file"], origin["sha256"]) == (Path(vad_bundle.MEMBER).name, vad_bundle.FILE_SHA256)
    assert command in card
    assert vad_bundle.ABOUT.read_text("utf-8").strip() in card
    assert "Copyright (c) 2020-present Silero Team" in card
    assert sum(len(data) for data in bundle.files.values()) < 6 << 20


def test_the_recipe_makes_the_bundle(tmp_path: Path) -> None:
    words = ("--file", str(packaged("silero_vad.onnx")), "--out", str(tmp_path))
    command = [sys.executable, vad_bundle.__file__, *words]
    subprocess.run(command, stdout=subprocess.PIPE, check=True)
    made = tmp_path / "vad/1"
    assert (made / GRAPH).read_bytes() == (VAD / GRAPH).read_bytes()
    assert card_of(made) == card_of(VAD)
    assert manifest_of(made) == manifest_of(VAD)


def card_of(folder: Path) -> list[str]:
    """Return the lines of the card, but for how much a proof compares: `tidegate check` proves as its version does."""
    return [line for line in (folder / CARD).read_text().splitlines() if not line.startswith("- streaming proof")]


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    del manifest["proof"], manifest["files"][CARD], manifest["provenance"]["versions"]
    return manifest


def test_another_file_is_no_recipe_for_it(tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"other")
    with pytest.raises(SystemExit, match="has the sha256"):
        vad_bundle.check(tmp_path / "other.onnx", vad_bundle.FILE_SHA256)
