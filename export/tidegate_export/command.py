"""What `tidegate export` does once torch is known to be there: reads what it was pointed at, exports, tells.

Knows files and Python imports of the user's; turns every error that is the user's into one line.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import ValidationError
from torch import nn

from tidegate.bundle import MANIFEST, DriftCalibration, next_version
from tidegate.errors import BundleError, known_names
from tidegate_export.calibrated import calibrate_bundle
from tidegate_export.candidate import ExportCandidate, Exported, export_candidate
from tidegate_export.errors import ExportError
from tidegate_export.meaning import SaidMeaning
from tidegate_export.modules import Description, module_candidate
from tidegate_export.prepare import unwrapped
from tidegate_export.signature import InputShape
from tidegate_export.trained import trained_candidate, trained_name
from tidegate_export.weights import load_weights
from tidegate_models.errors import TrainingInputError


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The command line."""

    source: str
    weights: Path | None = None
    weights_key: str | None = None
    name: str | None = None
    version: int | None = None
    shapes: tuple[str, ...] = ()
    task: Literal["stream", "next_token"] = "stream"
    vocabulary: Path | None = None
    features: str | None = None
    out: Path = Path("bundles")
    reach: int | None = None
    sample_rate: float | None = None
    frame_length: int | None = None
    unit: Sequence[str] = ()
    describe: Sequence[str] = ()

    @property
    def meaning(self) -> SaidMeaning:
        """What was said of the signal and of tensors."""
        return SaidMeaning.of(
            {
                "sample_rate": self.sample_rate,
                "frame_length": self.frame_length,
                "units": list(self.unit),
                "descriptions": list(self.describe),
            }
        )

    @classmethod
    def of(cls, said: dict[str, Any]) -> ExportRequest:
        """Return what came from another process, paths as text."""
        paths = {name: None if said[name] is None else Path(said[name]) for name in ("weights", "vocabulary", "out")}
        return cls(**{**said, **paths, "shapes": tuple(said["shapes"] or ())})


def run(said: dict[str, Any]) -> tuple[str, bool]:
    """Export; return what to tell, and whether there is a bundle."""
    request = ExportRequest.of(said)
    try:
        if (Path(request.source) / MANIFEST).exists():
            return _calibrated(request), True
        candidate = _candidate(request)
        candidate = replace(candidate, manifest=request.meaning.of_bundle(candidate.manifest))
        return _told(export_candidate(candidate, request.out, reach=request.reach)), True
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}", False
    except (ExportError, BundleError, TrainingInputError) as error:
        return " ".join(str(error).split()), False


def _calibrated(request: ExportRequest) -> str:
    """Give a bundle its control chart, anew if it has one; return what to tell."""
    _refuse_options(request)
    if request.meaning != SaidMeaning():
        raise ExportError("--sample-rate, --frame-length, --unit and --describe go with a run or a module of your own")
    found = calibrate_bundle(Path(request.source), request.out, name=request.name, version=request.version)
    return f"{found.path}\n{_chart(found.drift)}"


def _candidate(request: ExportRequest) -> ExportCandidate:
    folder = Path(request.source)
    if folder.is_dir():
        _refuse_options(request)
        name = request.name or trained_name(folder)
        return trained_candidate(folder, name=name, version=_version(request, name))
    if ":" not in request.source:
        raise ExportError(f"{request.source} is neither a run directory nor my_module:factory")
    if request.name is None:
        raise ExportError("a module of your own needs --name")
    module = unwrapped(_build(request.source))
    provenance: dict[str, Any] = {"factory": Path(request.source).name}
    if request.weights is None and request.weights_key is not None:
        raise ExportError("--weights-key goes with --weights")
    if request.weights is not None:
        loaded = load_weights(module, request.weights, request.weights_key)
        provenance |= {"weights_sha256": loaded.sha256, "weights": [request.weights.name, *loaded.notes]}
    description = Description(
        name=request.name,
        version=_version(request, request.name),
        input=_input_shape(request),
        task=request.task,
        vocabulary=_vocabulary(request.vocabulary),
        features=tuple(part.strip() for part in (request.features or "").split(",") if part.strip()),
        provenance=provenance,
    )
    return module_candidate(module, description)


def _refuse_options(request: ExportRequest) -> None:
    """A run says for itself what its network is: an option that would be ignored is an error."""
    given = {
        "--weights": request.weights,
        "--weights-key": request.weights_key,
        "--example-shape or --input": request.shapes or None,
        "--task": None if request.task == "stream" else request.task,
        "--vocabulary": request.vocabulary,
        "--features": request.features,
    }
    for option, value in given.items():
        if value is not None:
            raise ExportError(f"{option} goes with a module of your own; {request.source} says for itself")


def _input_shape(request: ExportRequest) -> InputShape | dict[str, InputShape]:
    if any("=" in text for text in request.shapes) or len(request.shapes) > 1:
        return dict(_named_shape(text) for text in request.shapes)
    if request.shapes:
        return InputShape.parse(request.shapes[0])
    if request.task == "next_token":
        return InputShape.parse("tokens")
    if request.features:
        return InputShape.parse(f"batch,time,{request.features.count(',') + 1}")
    raise ExportError("a module of your own needs --example-shape 1,8,16 (batch, time, features) or --input tokens")


def _named_shape(text: str) -> tuple[str, InputShape]:
    name, is_named, shape = text.partition("=")
    if not is_named:
        raise ExportError(f"--example-shape {text}: of several inputs, say the name of each, like x={text}")
    return name.strip(), InputShape.parse(shape, may_be_setting=True)


def _version(request: ExportRequest, name: str) -> str:
    return str(request.version) if request.version is not None else next_version(request.out, name)


def _build(source: str) -> nn.Module:
    """Import `my_module:factory` or `FILE.py:factory` and call the factory."""
    place, _, name = source.rpartition(":")
    module = _import(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise ExportError(f"{place} has no callable {name!r}{known_names(name, names, 'it has')}")
    try:
        built = factory()
    except Exception as error:  # whatever a user's code raises is an error of the input
        raise ExportError(f"{source}() fails: {_first_line(error)}") from error
    if not isinstance(built, nn.Module):
        raise ExportError(f"{source}() gives a {type(built).__name__}, not an nn.Module")
    return built


def _import(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None  # for a name that ends in .py
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # whatever a user's code raises is an error of the input
        raise ExportError(f"{place} cannot be imported: {_first_line(error)}") from error


def _vocabulary(path: Path | None) -> dict[str, Any] | None:
    """Read a vocabulary file; a plain list of tokens is one without an unknown token."""
    if path is None:
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} is not a vocabulary: {_first_line(error)}") from error
    tokens, unknown = (content, None) if isinstance(content, list) else (content.get("tokens"), content.get("unknown"))
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ExportError(f'{path} is not a vocabulary: it must be {{"tokens": ["a", …], "unknown": id or null}}')
    return {"tokens": tokens, "unknown": unknown}


def _told(exported: Exported) -> str:
    manifest, parity = exported.manifest, exported.parity
    proof = manifest.proof
    assert proof is not None  # export_candidate proves
    lines = [
        f"{exported.path}: {manifest.task}, {manifest.cell}, {manifest.state_bytes} bytes of state per session",
        f"parity with PyTorch: {parity.cases} sequences, worst |Δ| - 1e-4·|x| = {parity.max_error:.1e}",
        f"streaming proof: {proof.cases} comparisons, worst {proof.max_error:.1e}, {proof.described_reach}",
    ]
    if "weights" in manifest.provenance:
        lines.append(f"weights: {', '.join(manifest.provenance['weights'])}")
    lines += exported.notes
    if manifest.drift is not None:
        lines.append(_chart(manifest.drift))
    elif manifest.task in {"next_token", "forecast"}:
        lines.append(f"no control chart: {exported.uncalibrated}")
    if not manifest.batch_invariant:
        lines.append("a row's result depends on its neighbours: the server runs its rows alone")
    return "\n".join(lines)


def _chart(drift: DriftCalibration) -> str:
    return (
        f"surprise where all is well: {drift.mean:.3f} ± {drift.spread:.3f} over blocks of {drift.block} steps; "
        f"limits at {drift.warning.width:g} and {drift.drift.width:g}, false alarms every "
        f"{drift.warning.run_length:,.0f} and {drift.drift.run_length:,.0f} blocks"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
