"""What an export works on: a stateful module with its manifest, and the one way from there to a proven bundle.

Knows the order of the steps: write the graph, compare with PyTorch, find out about the batch, prove,
calibrate, write. Where the
candidate comes from (`networks`, `modules`) is not known here.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from tidegate.bundle import CARD, GRAPH, Json, Manifest, write_bundle
from tidegate.proof import ABSOLUTE, is_batch_invariant, prove
from tidegate_export.calibrated import chart
from tidegate_export.card import card
from tidegate_export.graph import computes_in_half, write_graph
from tidegate_export.parity import Parity, check_parity
from tidegate_export.rounding import HALF_TOLERANCE, prove_rounded


@dataclass(frozen=True, slots=True)
class ExportCandidate:
    """A module ready to be written: `forward(*inputs, *states) -> (*outputs, *states)` in the manifest's order."""

    module: nn.Module
    manifest: Manifest
    files: Mapping[str, bytes]
    report: Mapping[str, Json]
    """What the card tells of the training; empty where nothing is known."""
    example: Json
    """One sequence as `:predict` takes it, for the card."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the module was exported."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle as written, and what was found on the way."""

    path: Path
    manifest: Manifest
    parity: Parity
    uncalibrated: str
    """Why it has no control chart; empty where it has one."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the module was exported."""


def export_candidate(candidate: ExportCandidate, root: Path, *, reach: int | None = None) -> Exported:
    """Write `candidate` as a bundle under `root`; `reach` as `prove` takes it.

    Raises:
        ExportError: PyTorch cannot export it, or the graph does not compute what PyTorch computes.
        BundleError: The graph cannot stream, or the version exists with other content.
    """
    manifest = candidate.manifest
    graph = write_graph(candidate.module, manifest)
    is_half = computes_in_half(graph)
    tolerance = HALF_TOLERANCE if is_half else ABSOLUTE
    if manifest.is_batchable:
        is_invariant = is_batch_invariant(graph, manifest, tolerance=tolerance)
        manifest = manifest.model_copy(update={"batch_invariant": is_invariant})
    prover = prove_rounded if is_half else prove
    proof = prover(graph, manifest, reach=reach)
    parity = check_parity(candidate.module, graph, manifest, tolerance=tolerance)
    drift = chart(graph, manifest, dict(candidate.files))
    uncalibrated = drift if isinstance(drift, str) else ""
    provenance = {**manifest.provenance, "parity": parity.as_json(), "versions": _versions()}
    found = {"proof": proof, "provenance": provenance, "drift": None if isinstance(drift, str) else drift}
    manifest = manifest.model_copy(update=found)
    text = card(manifest, candidate.report, candidate.example).encode()
    path = write_bundle(root, manifest, {**candidate.files, GRAPH: graph, CARD: text})
    return Exported(path, manifest, parity, uncalibrated, candidate.notes)


def _versions() -> dict[str, str]:
    versions = {name: version(name) for name in ("tidegate", "onnx", "onnxscript", "onnxruntime")}
    return {"python": platform.python_version(), "torch": torch.__version__, **versions}
