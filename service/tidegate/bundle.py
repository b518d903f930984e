"""A bundle on disk: the one contract between export and service.

``bundles/<name>/<version>/`` holds ``model.onnx``, ``manifest.json``, codec files and ``card.md``. This module knows
the manifest (one class, used by writer and reader), how a bundle is written so that no reader ever sees half of one,
and how it is verified. It knows nothing of onnxruntime, networks or sessions.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tidegate.errors import BundleError

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
CARD = "card.md"

MOST_TOLERANCE = 1.0
"""Beyond it two results are not called equal, however coarsely a graph rounds."""

BATCH = "batch"
TIME = "time"

Axis = str | int
"""A named axis (``batch`` and ``time`` vary at run time, other names are labels) or a fixed size."""

DType = Literal["float32", "float16", "float64", "int64", "int32", "uint8", "int8", "bool"]
TaskName = Literal["next_token", "forecast", "classify", "tag", "next_frame", "answer", "stream"]
Json = Any


class Part(BaseModel):
    """A piece of the manifest: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(Part):
    """A tensor of the graph: name, dtype and axes, for example ``("batch", "time", 8)``."""

    name: str
    dtype: DType
    axes: tuple[Axis, ...]

    @property
    def batch_axis(self) -> int | None:
        """Index of the batch axis, None where the graph has none."""
        return self.axes.index(BATCH) if BATCH in self.axes else None

    @property
    def time_axis(self) -> int | None:
        """Index of the time axis, None where the tensor is not per step."""
        return self.axes.index(TIME) if TIME in self.axes else None


class StateSpec(Part):
    """A recurrent tensor, paired by name: the graph's output ``output`` is the next run's input ``input``.

    Every axis but ``batch`` is a fixed size; ``initial`` fills the state of a new session.
    """

    input: str
    output: str
    dtype: DType
    axes: tuple[Axis, ...]
    initial: float = 0.0

    @model_validator(mode="after")
    def _only_batch_varies(self) -> StateSpec:
        if any(isinstance(axis, str) and axis != BATCH for axis in self.axes) or self.axes.count(BATCH) > 1:
            raise ValueError(f"state {self.input}: every axis but one 'batch' must be a fixed size, got {self.axes}")
        return self

    @property
    def batch_axis(self) -> int | None:
        """Index of the batch axis, None where rows must run one by one."""
        return self.axes.index(BATCH) if BATCH in self.axes else None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one session's state, without the batch axis."""
        return tuple(axis for axis in self.axes if isinstance(axis, int))


class TokenCodec(Part):
    """Task ``next_token``: ids in, logits out. The vocabulary file is ``{"tokens": [str], "unknown": id | null}``."""

    kind: Literal["tokens"] = "tokens"
    vocabulary: str = "vocabulary.json"
    output: str = "logits"
    surprise: str | None = "surprise"
    surprise_unit: str = "bits"


class ForecastCodec(Part):
    """Task ``forecast``: rows of features in data units in, quantiles of the target out.

    The scaling file is ``{"features": [transform…]}`` in the order of the manifest's features, each transform either
    ``{"kind": "standard", "mean", "scale"}`` (one column, (x - mean) / scale) or ``{"kind": "cyclic", "period"}`` (two
    columns, sin and cos of 2πx / period). The graph's output [batch, time, horizon, quantile] is in scaled units of
    ``target``.
    """

    kind: Literal["forecast"] = "forecast"
    scaling: str = "scaling.json"
    output: str = "quantiles"
    surprise: str | None = "surprise"
    surprise_unit: str = "scaled absolute error"
    target: str
    horizon: int = Field(ge=1)
    quantiles: tuple[float, ...]
    seasonal_naive_error: float = Field(gt=0, description="data units, the denominator of the scaled error")


class TensorCodec(Part):
    """Task ``stream``: tensors in, tensors out, as the graph has them.

    ``context`` says of an input how many of its last elements the graph sees again in front of the next: a caller sends
    each once. The graph keeps them as a state, so nobody else need know.
    """

    kind: Literal["tensors"] = "tensors"
    outputs: tuple[str, ...]
    context: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)


Codec = Annotated[TokenCodec | ForecastCodec | TensorCodec, Field(discriminator="kind")]


class Proof(Part):
    """What the streaming proof found: one chunk, any split, step by step and any batch give the same result."""

    passed: bool
    max_error: float = Field(description="largest |Δ| - 1e-4·|x| seen over outputs and states")
    tolerance: float = Field(
        default=1e-5,
        ge=1e-5,
        le=MOST_TOLERANCE,
        description="what max_error may be: 1e-5 in fp32, more where int8 or fp16 rounds",
    )
    cases: int = Field(ge=1, description="comparisons made")
    runtime: str = Field(description="the runtime and version that ran it")


class Limit(Part):
    """A limit of the chart: ``width`` in standard deviations of the moving average, to both sides."""

    width: float = Field(gt=0)
    run_length: float = Field(gt=0, description="blocks between two false alarms, the average on held-out data")


class Drift(Part):
    """How surprised the model is where all is well, and the control chart that tells when it is not
    (`tidegate.observe.drift`).

    ``mean`` and ``spread``, the standard deviation, are of the means of blocks of ``block`` consecutive steps, in the
    codec's unit of surprise.
    """

    block: int = Field(ge=1)
    factor: float = Field(gt=0, le=1, description="weight of the newest block in the moving average")
    mean: float
    spread: float = Field(gt=0)
    clip: float = Field(default=4.0, gt=0, description="spreads from the mean at which a block's mean is cut off")
    warning: Limit
    drift: Limit
    autocorrelation: float = Field(description="of neighbouring blocks: the limits allow for it")
    blocks: int = Field(ge=2, description="how many blocks it was learned from")
    data: str = Field(description="which data that was")
    ranges: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="least and greatest value of a feature in training, in data units"
    )


class Manifest(Part):
    """All that a reader must know to serve the graph."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
    task: TaskName
    cell: str = Field(description="lstm, gru, rnn or foreign")
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    states: tuple[StateSpec, ...] = Field(min_length=1)
    features: tuple[str, ...] = ()
    lengths: str | None = None
    codec: Codec
    batch_invariant: bool = True
    files: dict[str, str] = Field(default_factory=dict, description="sha256 of every file but the manifest")
    proof: Proof | None = None
    drift: Drift | None = None
    provenance: dict[str, Json] = Field(default_factory=dict)

    @property
    def state_bytes(self) -> int:
        """Bytes of one session's state."""
        widths = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2}
        total = 0
        for state in self.states:
            size = widths.get(state.dtype, 1)
            for axis in state.row_shape:
                size *= axis
            total += size
        return total

    @property
    def is_batchable(self) -> bool:
        """Whether several sessions can share a run."""
        tensors: tuple[TensorSpec | StateSpec, ...] = (*self.inputs, *self.states)
        return all(tensor.batch_axis is not None for tensor in tensors)

    def output(self, name: str) -> TensorSpec:
        """Return the spec of the output called ``name``; KeyError where there is none."""
        return {spec.name: spec for spec in self.outputs}[name]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: its folder, its manifest, and ``sha256``, which names the content (the manifest lists the
    rest).
    """

    path: Path
    manifest: Manifest
    sha256: str

    @property
    def graph(self) -> Path:
        return self.path / GRAPH

    def read_json(self, name: str) -> Json:
        """Return the parsed JSON of a file of the bundle."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))


def write_bundle(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write a bundle under ``root`` and return its folder.

    The folder appears at once and whole: it is filled beside its place and renamed into it. An existing version with
    other content is refused, for a loaded version never changes under its readers.
    """
    target = root / manifest.name / manifest.version
    complete = manifest.model_copy(update={"files": {name: _sha256(data) for name, data in sorted(files.items())}})
    text = complete.model_dump_json(indent=2).encode() + b"\n"
    if target.exists():
        if (target / MANIFEST).read_bytes() == text:
            return target
        raise BundleError(f"{target} exists with other content: choose a new version", reason="VERSION_EXISTS")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{manifest.version}.", dir=target.parent))
    try:
        for name, data in {**files, MANIFEST: text}.items():
            (staging / name).write_bytes(data)
        staging.chmod(0o755)
        staging.replace(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return target


def read_bundle(path: Path) -> Bundle:
    """Read and verify the bundle in the folder ``path``: manifest, checksum of every file, recorded proof.

    Raises:
        BundleError: With the file and the reason.
    """
    bundle = _read_manifest(path)
    manifest = bundle.manifest
    if (manifest.name, manifest.version) != (path.parent.name, path.name):
        raise BundleError(f"{path}: the manifest names {manifest.name}/{manifest.version}, its folder does not")
    if GRAPH not in manifest.files:
        raise BundleError(f"{path}: the manifest lists no {GRAPH}")
    for name, expected in manifest.files.items():
        _verify(path, name, expected)
    if manifest.proof is None or not manifest.proof.passed:
        raise BundleError(f"{path}: no passed streaming proof is recorded", reason="NOT_STREAMABLE")
    return bundle


def find_bundles(root: Path) -> Iterator[Path]:
    """Yield the folders ``<name>/<version>`` under ``root``, by name, then rising version."""
    for name in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        versions = [
            entry for entry in name.iterdir() if entry.is_dir() and entry.name.isascii() and entry.name.isdigit()
        ]
        yield from sorted(versions, key=lambda entry: int(entry.name))


def next_version(root: Path, name: str) -> str:
    """Return the lowest version above those that ``root`` holds of ``name``."""
    taken = [int(path.name) for path in find_bundles(root) if path.parent.name == name] if root.is_dir() else []
    return str(max(taken, default=0) + 1)


def _read_manifest(path: Path) -> Bundle:
    try:
        text = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: no readable {MANIFEST} ({error.strerror})") from error
    try:
        return Bundle(path, Manifest.model_validate_json(text), _sha256(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BundleError(f"{path}/{MANIFEST}: {where}: {first['msg']}") from error


def _verify(path: Path, name: str, expected: str) -> None:
    if Path(name).name != name or name in {".", ".."}:
        raise BundleError(f"{path}: the manifest lists {name!r}, which is not a plain file name")
    try:
        found = _sha256((path / name).read_bytes())
    except OSError as error:
        raise BundleError(f"{path}/{name}: cannot be read ({error.strerror})") from error
    if found != expected:
        raise BundleError(f"{path}/{name}: checksum differs from the manifest's", reason="CHECKSUM_MISMATCH")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
