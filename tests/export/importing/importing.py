"""Imports in this process, for tests: options as the command line has them, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.export.importing.graphs import Net
from tidegate.bundle import Axis, Bundle, read_bundle
from tidegate.ort import onnxruntime
from tidegate.replay import GraphRunner, Result, random_inputs
from tidegate_export.importing.importer import Said, run

Array = NDArray[Any]


def said(source: Net | Path, root: Path, **options: Any) -> Said:
    file = source if isinstance(source, Path) else source.save(root / "foreign.onnx")
    initial = options.get("initial")
    return {
        "file": str(file),
        "name": options.get("name", "model"),
        "version": options.get("version"),
        "out": str(root / "bundles"),
        "states": options.get("states", ()),
        "data": options.get("data", ()),
        "shapes": options.get("shapes", ()),
        "batch_axes": options.get("batch_axes", ()),
        "time_axes": options.get("time_axes", ()),
        "constants": options.get("constants", ()),
        "settings": options.get("settings", ()),
        "contexts": options.get("contexts", ()),
        "initial": None if initial is None else str(initial),
        "is_within_frame": options.get("is_within_frame", False),
        "tolerance": options.get("tolerance"),
        "reach": options.get("reach"),
        "meaning": {
            "sample_rate": options.get("sample_rate"),
            "frame_length": options.get("frame_length"),
            "units": options.get("units", []),
            "descriptions": options.get("descriptions", []),
        },
    }


def imported(source: Net | Path, root: Path, **options: Any) -> Bundle:
    """Import, and read the bundle back."""
    told, is_done = run(said(source, root, **options))
    assert is_done, told
    return read_bundle(Path(told.partition(": ")[0]))


def refusal(source: Net | Path, root: Path, **options: Any) -> str:
    """Return the one line that says why there is no bundle."""
    told, is_done = run(said(source, root, **options))
    assert not is_done, told
    assert "\n" not in told
    assert not (root / "bundles").exists() or not list((root / "bundles").rglob("*.onnx"))
    return told


def pairs(bundle: Bundle) -> dict[str, str]:
    return {state.input: state.output for state in bundle.manifest.states}


def axes(bundle: Bundle) -> dict[str, tuple[Axis, ...]]:
    return {spec.name: spec.axes for spec in (*bundle.manifest.inputs, *bundle.manifest.outputs)}


def walked(bundle: Bundle, lengths: Sequence[int], inputs: Mapping[str, Array] | None = None) -> Result:
    """Run the bundle's graph over consecutive chunks; on random inputs where none are given."""
    runner = GraphRunner(bundle.graph, bundle.manifest)
    random = random_inputs(bundle.manifest, 1, sum(lengths), np.random.default_rng(3))
    return runner.walk({**random, **(inputs or {})}, lengths)


def by_hand(net: Net, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run the foreign graph once."""
    session = onnxruntime.InferenceSession(net.model().SerializeToString(), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
