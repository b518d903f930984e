"""A bundle on disk: the one contract between export and service.

``bundles/<name>/<version>/`` holds ``model.onnx``, ``manifest.json``, codec files and ``card.md``. This module knows
the manifest (one class, used by writer and reader), how a bundle is written so that no reader ever sees half of one,
and how it is verified. It knows nothing of onnxruntime, networks or sessions.

A bundle may be anybody's work, so every field has a bound, every file that is used is a regular file of the folder, and
its bytes are read once: what was hashed is what is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tidegate.errors import BundleError, known_names
from tidegate.limits import (
    MAX_AXES,
    MAX_BUNDLE_FILES,
    MAX_CODEC_BYTES,
    MAX_GRAPH_BYTES,
    MAX_LABEL_LENGTH,
    MAX_MANIFEST_BYTES,
    MAX_MODEL_TENSORS,
    MAX_SETTING_ELEMENTS,
    MAX_STATE_BYTES,
    MAX_TENSOR_ELEMENTS,
)
from tidegate.onnx_file import check_graph

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
CARD = "card.md"

MOST_TOLERANCE = 1.0
"""Beyond it two results are not called equal, however coarsely a graph rounds."""

BATCH = "batch"
TIME = "time"

Text = Annotated[str, Field(max_length=4096)]
ShortText = Annotated[str, Field(max_length=256)]
TensorName = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_LENGTH)]
Count = Annotated[int, Field(ge=1, le=(1 << 31) - 1)]

Axis = str | int
"""A named axis (``batch`` and ``time`` vary at run time, other names are labels) or a fixed size."""
Axes = Annotated[tuple[Axis, ...], Field(max_length=MAX_AXES)]

DType = Literal["float32", "float16", "float64", "int64", "int32", "uint8", "int8", "bool"]
TaskName = Literal["next_token", "forecast", "classify", "tag", "next_frame", "answer", "stream"]
Json = Any
P = TypeVar("P", bound="Part")


class Part(BaseModel):
    """A piece of the manifest: immutable, all numbers finite, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(Part):
    """A tensor of the graph: name, dtype and axes, for example ``("batch", "time", 8)``."""

    name: TensorName
    dtype: DType
    axes: Axes

    @model_validator(mode="after")
    def _is_bounded(self) -> TensorSpec:
        _check_axes(self.name, self.axes)
        return self

    @property
    def batch_axis(self) -> int | None:
        """Index of the batch axis, None where the graph has none."""
        return self.axes.index(BATCH) if BATCH in self.axes else None

    @property
    def time_axis(self) -> int | None:
        """Index of the time axis, None where the tensor is not per step."""
        return self.axes.index(TIME) if TIME in self.axes else None


class SettingSpec(TensorSpec):
    """An input of the graph that is neither a sequence nor a state, and that a caller may set.

    ``default`` holds its numbers where nobody does: one for all elements, or each in C order, without the batch axis.
    """

    default: Annotated[tuple[float, ...], Field(min_length=1, max_length=MAX_SETTING_ELEMENTS)]

    @model_validator(mode="after")
    def _has_a_default(self) -> SettingSpec:
        if any(isinstance(axis, str) and axis != BATCH for axis in self.axes):
            raise ValueError(f"setting {self.name}: every axis but one 'batch' must be a fixed size, got {self.axes}")
        size = math.prod(self.row_shape)
        if size > MAX_SETTING_ELEMENTS or len(self.default) not in {1, size}:
            raise ValueError(
                f"setting {self.name}: a default of {len(self.default)} numbers for {size:,}, of at most "
                f"{MAX_SETTING_ELEMENTS:,}"
            )
        if not self.dtype.startswith("float") and any(not number.is_integer() for number in self.default):
            raise ValueError(f"setting {self.name}: its default is no {self.dtype}")
        return self

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row's value, without the batch axis."""
        return tuple(axis for axis in self.axes if isinstance(axis, int))


class StateSpec(Part):
    """A recurrent tensor, paired by name: the graph's output ``output`` is the next run's input ``input``.

    Every axis but ``batch`` is a fixed size; ``initial`` fills the state of a new session.
    """

    input: TensorName
    output: TensorName
    dtype: DType
    axes: Axes
    initial: float = 0.0

    @model_validator(mode="after")
    def _only_batch_varies(self) -> StateSpec:
        if any(isinstance(axis, str) and axis != BATCH for axis in self.axes) or self.axes.count(BATCH) > 1:
            raise ValueError(f"state {self.input}: every axis but one 'batch' must be a fixed size, got {self.axes}")
        _check_axes(self.input, self.axes)
        return self

    @property
    def batch_axis(self) -> int | None:
        """Index of the batch axis, None where rows must run one by one."""
        return self.axes.index(BATCH) if BATCH in self.axes else None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one session's state, without the batch axis."""
        return tuple(axis for axis in self.axes if isinstance(axis, int))


class Vocabulary(Part):
    """The vocabulary file: the tokens in the order of their ids, and the id of what is none of them, if any."""

    tokens: list[str]
    unknown: int | None = None


class Standard(Part):
    """One column: (x - mean) / scale."""

    kind: Literal["standard"]
    mean: float
    scale: float = Field(gt=0)

    @property
    def width(self) -> int:
        return 1


class Cyclic(Part):
    """Two columns: sin and cos of 2πx / period."""

    kind: Literal["cyclic"]
    period: float = Field(gt=0)

    @property
    def width(self) -> int:
        return 2


Transform = Annotated[Standard | Cyclic, Field(discriminator="kind")]


class Scaling(Part):
    """The scaling file: what becomes of each feature, in the manifest's order."""

    features: list[Transform]


class TokenCodec(Part):
    """Task ``next_token``: ids in, logits out. Its file is a `Vocabulary`."""

    kind: Literal["tokens"] = "tokens"
    vocabulary: str = "vocabulary.json"
    output: TensorName = "logits"
    surprise: TensorName | None = "surprise"
    surprise_unit: Text = "bits"

    @property
    def file(self) -> str:
        """The codec's file."""
        return self.vocabulary


class ForecastCodec(Part):
    """Task ``forecast``: rows of features in data units in, quantiles of the target out. Its file is a `Scaling`.

    The graph's output [batch, time, horizon, quantile] is in scaled units of ``target``.
    """

    kind: Literal["forecast"] = "forecast"
    scaling: str = "scaling.json"
    output: TensorName = "quantiles"
    surprise: TensorName | None = "surprise"
    surprise_unit: Text = "scaled absolute error"
    target: Text
    horizon: Count
    quantiles: Annotated[tuple[float, ...], Field(min_length=1, max_length=1024)]
    seasonal_naive_error: float = Field(gt=0, description="data units, the denominator of the scaled error")

    @property
    def file(self) -> str:
        """The codec's file."""
        return self.scaling


class TensorCodec(Part):
    """Task ``stream``: tensors in, tensors out, as the graph has them.

    ``context`` says of an input how many of its last elements the graph sees again in front of the next: a caller sends
    each once. The graph keeps them as a state, so nobody else need know.
    """

    kind: Literal["tensors"] = "tensors"
    outputs: Annotated[tuple[TensorName, ...], Field(max_length=MAX_MODEL_TENSORS)]
    context: dict[TensorName, Count] = Field(default_factory=dict)

    @property
    def file(self) -> None:
        """It has none."""


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
    cases: Count = Field(description="comparisons made")
    runtime: Text = Field(description="the runtime and version that ran it")
    reach: int | None = Field(
        default=None, ge=0, le=(1 << 31) - 1, description="steps that a memory outside of the states may reach back"
    )
    reach_from: Literal["graph", "stated"] = Field(
        default="graph", description="whether that was read off the graph, or stated by `--reach`"
    )

    @property
    def stated_reach(self) -> int | None:
        """The reach that the user stated, if it was not read off the graph."""
        return self.reach if self.reach_from == "stated" else None

    @property
    def described_reach(self) -> str:
        """How far the proof reaches, in words."""
        if self.reach is None:
            return "of short sequences"  # bundles that were written before it was recorded
        steps = f"{self.reach:,} step{'' if self.reach == 1 else 's'}"
        return f"reach {steps}, {'as stated' if self.reach_from == 'stated' else 'read off the graph'}"


class Limit(Part):
    """A limit of the chart: ``width`` in standard deviations of the moving average, to both sides."""

    width: float = Field(gt=0)
    run_length: float = Field(gt=0, description="blocks between two false alarms, the average on held-out data")


class DriftCalibration(Part):
    """How surprised the model is where all is well, and the control chart that tells when it is not
    (`tidegate.drift`).

    ``mean`` and ``spread``, the standard deviation, are of the means of blocks of ``block`` consecutive steps, in the
    codec's unit of surprise.
    """

    block: Count
    factor: float = Field(gt=0, le=1, description="weight of the newest block in the moving average")
    mean: float
    spread: float = Field(gt=0)
    clip: float = Field(default=4.0, gt=0, description="spreads from the mean at which a block's mean is cut off")
    warning: Limit
    drift: Limit
    autocorrelation: float = Field(description="of neighbouring blocks: the limits allow for it")
    blocks: Count = Field(ge=2, description="how many blocks it was learned from")
    data: Text = Field(description="which data that was")
    ranges: dict[Text, tuple[float, float]] = Field(
        default_factory=dict, description="least and greatest value of a feature in training, in data units"
    )


class Meaning(Part):
    """What a tensor, or a column of the rows that callers send, is to people."""

    unit: ShortText | None = None
    description: Text | None = None


class Manifest(Part):
    """All that a reader must know to serve the graph, and what its users should know.

    Attributes:
        settings: Inputs that callers may set, for a session or a request.
        sample_rate: Samples a second of the signal that callers send.
        frame_length: Samples that one step holds.
        meanings: By the name of an input, an output, a setting or a feature.
    """

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
    task: TaskName
    cell: Text = Field(description="lstm, gru, rnn or foreign")
    inputs: tuple[TensorSpec, ...] = Field(min_length=1, max_length=MAX_MODEL_TENSORS)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1, max_length=MAX_MODEL_TENSORS)
    states: tuple[StateSpec, ...] = Field(min_length=1, max_length=MAX_MODEL_TENSORS)
    settings: tuple[SettingSpec, ...] = Field(default=(), max_length=MAX_MODEL_TENSORS)
    features: tuple[Text, ...] = ()
    sample_rate: float | None = Field(default=None, gt=0, description="Hz")
    frame_length: Count | None = Field(default=None, description="samples a step")
    meanings: dict[Text, Meaning] = Field(default_factory=dict)
    lengths: TensorName | None = None
    codec: Codec
    batch_invariant: bool = True
    files: dict[str, str] = Field(
        default_factory=dict, max_length=MAX_BUNDLE_FILES, description="sha256 of every file but the manifest"
    )
    proof: Proof | None = None
    drift: DriftCalibration | None = None
    provenance: dict[str, Json] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_sound(self) -> Manifest:
        names = [spec.name for spec in self.sources] + [state.input for state in self.states]
        _check_once("input", names if self.lengths is None else [*names, self.lengths])
        _check_once("output", [spec.name for spec in self.outputs])
        _check_once("output", [state.output for state in self.states])
        if self.state_bytes > MAX_STATE_BYTES:
            raise ValueError(f"the states of a session have {self.state_bytes:,} bytes, at most {MAX_STATE_BYTES:,}")
        for name in self.files:
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"the manifest lists {name!r}, which is not a plain file name")
        known = {spec.name for spec in (*self.sources, *self.outputs)} | set(self.features)
        for name in self.meanings:
            if name not in known:
                meant = known_names(name, sorted(known), "there are")
                raise ValueError(f"it says what {name!r} means, which is no input, output or feature{meant}")
        # Where the disk takes capitals for small letters, they would be one file.
        _check_once("file", [name.lower() for name in (MANIFEST, *self.files)])
        return self

    @property
    def sources(self) -> tuple[TensorSpec, ...]:
        """What callers feed: the sequence's inputs, then the settings."""
        return (*self.inputs, *self.settings)

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
        tensors: tuple[TensorSpec | StateSpec, ...] = (*self.sources, *self.states)
        return all(tensor.batch_axis is not None for tensor in tensors)

    def output(self, name: str) -> TensorSpec:
        """Return the spec of the output called ``name``; KeyError where there is none."""
        return {spec.name: spec for spec in self.outputs}[name]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: Its folder.
        manifest: What it says.
        sha256: Names the content: the manifest lists the rest.
        files: What was read of every file that the manifest lists. A model that is loaded holds them no longer.
    """

    path: Path
    manifest: Manifest
    sha256: str
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def graph(self) -> bytes:
        """The content of the ONNX file."""
        return self.files[GRAPH]

    def read(self, name: str, kind: type[P]) -> P:
        """Return what a JSON file of the bundle says.

        Raises:
            ValueError: It is none, or says something else.
        """
        try:
            return _parse_json(self.files[name], kind)
        except ValidationError as error:
            raise ValueError(_first_complaint(error)) from None


def write_bundle(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write a bundle under ``root`` and return its folder.

    The folder appears at once and whole: it is filled beside its place and renamed into it. An existing version with
    other content is refused, for a loaded version never changes under its readers.
    """
    target = root / manifest.name / manifest.version
    complete = manifest.model_copy(update={"files": {name: _sha256(data) for name, data in sorted(files.items())}})
    unsaid = {name for name in _OPTIONAL if not getattr(complete, name)}
    text = complete.model_dump_json(indent=2, exclude=unsaid).encode() + b"\n"
    if target.exists():
        if (target / MANIFEST).read_bytes() == text:
            return target
        raise BundleError(f"{target} exists with other content: choose a new version", reason="VERSION_EXISTS")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{manifest.version}.", dir=target.parent))
    try:
        for name, data in {**files, MANIFEST: text}.items():
            (staging / name).write_bytes(data)
        _parse_manifest(text, target)
        staging.chmod(0o755)
        staging.replace(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return target


def read_bundle(path: Path) -> Bundle:
    """Read and verify the bundle in the folder ``path``: manifest, checksum of every file, recorded proof, and that all
    weights of the graph lie in it.

    Files that the manifest does not list are not looked at.

    Raises:
        BundleError: With the file and the reason.
    """
    text = _read_file(path, MANIFEST, MAX_MANIFEST_BYTES)
    manifest = _parse_manifest(text, path)
    if (manifest.name, manifest.version) != (path.parent.name, path.name):
        raise BundleError(f"{path}: the manifest names {manifest.name}/{manifest.version}, its folder does not")
    for name in filter(None, (GRAPH, manifest.codec.file)):
        if name not in manifest.files:
            raise BundleError(f"{path}: the manifest lists no {name}")
    files, room = {}, MAX_CODEC_BYTES
    for name, expected in manifest.files.items():
        data = _read_file(path, name, MAX_GRAPH_BYTES if name == GRAPH else room)
        room -= 0 if name == GRAPH else len(data)
        if _sha256(data) != expected:
            raise BundleError(f"{path}/{name}: checksum differs from the manifest's", reason="CHECKSUM_MISMATCH")
        files[name] = data
    if manifest.proof is None or not manifest.proof.passed:
        raise BundleError(f"{path}: no passed streaming proof is recorded", reason="NOT_STREAMABLE")
    check_graph(files[GRAPH], f"{path}/{GRAPH}")
    return Bundle(path, manifest, _sha256(text), files)


def find_bundles(root: Path) -> Iterator[Path]:
    """Yield the folders ``<name>/<version>`` under ``root``, by name, then rising version.

    What cannot be looked into (a link to nowhere, a folder that is not readable) is yielded as well, so that whoever
    reads it says why.

    Raises:
        OSError: ``root`` itself cannot be read.
    """
    for name in sorted(entry for entry in root.iterdir() if not entry.name.startswith(".")):
        try:
            if not stat.S_ISDIR(name.stat().st_mode):
                continue
            entries = [entry for entry in name.iterdir() if entry.name.isascii() and entry.name.isdigit()]
        except OSError:
            yield name
        else:
            yield from sorted(entries, key=lambda entry: (int(entry.name), entry.name))


def is_version(name: str) -> bool:
    """Whether a folder of this name may hold a version: a whole number from 1, without zeros in front."""
    return _VERSION.fullmatch(name) is not None


def next_version(root: Path, name: str) -> str:
    """Return the lowest version above those that ``root`` holds of ``name``."""
    found = find_bundles(root) if root.is_dir() else ()
    taken = [int(path.name) for path in found if path.parent.name == name and is_version(path.name)]
    return str(max(taken, default=0) + 1)


_OPTIONAL = ("settings", "sample_rate", "frame_length", "meanings")
"""Fields that a manifest has only if they say something: servers from before them read the others."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def _check_axes(name: str, axes: tuple[Axis, ...]) -> None:
    for axis in axes:
        if not (0 < len(axis) <= MAX_LABEL_LENGTH if isinstance(axis, str) else 0 < axis <= MAX_TENSOR_ELEMENTS):
            raise ValueError(
                f"{name}: an axis is a label or a size from 1 to {MAX_TENSOR_ELEMENTS:,}, got {axis!r:.40}"
            )
    if axes.count(BATCH) > 1 or axes.count(TIME) > 1:
        raise ValueError(f"{name}: an axis 'batch' or 'time' is there twice, got {axes}")
    size = math.prod(axis for axis in axes if isinstance(axis, int))
    if size > MAX_TENSOR_ELEMENTS:
        raise ValueError(f"{name}: {size:,} elements in the shape {axes}, at most {MAX_TENSOR_ELEMENTS:,}")


def _check_once(kind: str, names: Iterable[str]) -> None:
    known: set[str] = set()
    for name in names:
        if name in known:
            raise ValueError(f"the {kind} {name!r} is there twice")
        known.add(name)


def _parse_manifest(text: bytes, path: Path) -> Manifest:
    try:
        return _parse_json(text, Manifest)
    except ValidationError as error:
        raise BundleError(f"{path}/{MANIFEST}: {_first_complaint(error)}") from error
    except ValueError as error:
        raise BundleError(f"{path}/{MANIFEST}: not JSON: {error}") from error


def _first_complaint(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the document"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def _parse_json(text: bytes, kind: type[P]) -> P:
    """Return what every reader of the JSON would read: no key twice, no number that is none, all text UTF-8.

    Raises:
        ValueError: It is not JSON, or one that readers do not agree on, or says something else.
    """
    try:
        json.loads(text.decode(), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("too many brackets within each other") from None
    return kind.model_validate_json(text, strict=True)


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _check_once("key", [key for key, _ in pairs])
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _read_file(folder: Path, name: str, most: int) -> bytes:
    """Read a regular file of the bundle, once.

    A link is followed within the folder of the model, where volumes of Kubernetes have theirs (``..data``): what lies
    elsewhere does not belong to the bundle, whatever its checksum.
    """
    file = folder / name
    try:
        home = os.path.realpath(folder.parent, strict=True)
        place = Path(os.path.realpath(file, strict=True))
        if not place.is_relative_to(home):
            raise BundleError(f"{file}: a link to a file outside the model's folder: copy the file into the bundle")
        # Asked before it is opened too, for opening a device or a FIFO may do something, or wait.
        if stat.S_ISREG(place.stat().st_mode):
            descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as stream:  # noqa: PTH123 - of a descriptor
                found = os.fstat(descriptor)
                if stat.S_ISREG(found.st_mode):
                    if found.st_size > most:
                        raise BundleError(f"{file}: {found.st_size:,} bytes, at most {most:,} are read")
                    return stream.read(found.st_size)
        raise BundleError(f"{file}: not a regular file")
    except OSError as error:
        if name == MANIFEST:
            raise BundleError(f"{folder}: no readable {MANIFEST} ({error.strerror})") from error
        raise BundleError(f"{file}: cannot be read ({error.strerror})") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
