"""A bundle with a control chart made of a bundle without, or with an old one: the graph stays as it is.

Knows the order of the steps; what a chart is made of is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tidegate.bundle import CARD, GRAPH, DriftCalibration, Manifest, next_version, read_bundle, write_bundle
from tidegate_export.calibration import calibrate
from tidegate_export.card import with_chart
from tidegate_export.errors import ExportError
from tidegate_export.held_out import calibration


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A bundle as written, and its chart."""

    path: Path
    drift: DriftCalibration


def calibrate_bundle(folder: Path, root: Path, *, name: str | None, version: int | None) -> Calibrated:
    """Write the bundle in `folder` under `root` with a chart learned from the data that it was trained on.

    Raises:
        ExportError: That data is not at hand, or too little.
        BundleError: `folder` holds no sound bundle, or the version exists with other content.
    """
    source = read_bundle(folder.resolve())
    files = dict(source.files)
    drift = chart(files[GRAPH], source.manifest, files)
    if isinstance(drift, str):
        raise ExportError(f"{folder} cannot be calibrated: {drift}")
    name = name or source.manifest.name
    number = next_version(root, name) if version is None else str(version)
    changes = {"name": name, "version": number, "drift": drift}
    manifest = Manifest.model_validate({**source.manifest.model_dump(), **changes})
    if CARD in files:
        title = f"# {source.manifest.name}, version {source.manifest.version}"
        text = files[CARD].decode(errors="replace").replace(title, f"# {name}, version {number}", 1)
        files[CARD] = with_chart(text, manifest).encode()
    return Calibrated(write_bundle(root, manifest, files), drift)


def chart(graph: bytes, manifest: Manifest, files: dict[str, bytes]) -> DriftCalibration | str:
    """Return the chart of a graph with these codec files, or the reason why it has none."""
    data = calibration(manifest, files)
    return data if isinstance(data, str) else calibrate(graph, manifest, data)
