"""The few types that everything speaks, whatever the transport: what is asked, what is answered, who is running.

Knows shapes and units. Knows nothing of JSON, protobuf, onnxruntime or asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tidegate.errors import InvalidInputError, TooLargeError
from tidegate.limits import LARGE_REPLY_BYTES, MAX_SEQUENCES, MAX_STEPS

FloatArray = NDArray[np.floating]
Tensor = NDArray[np.generic]
Entry = TypeVar("Entry")

_NUMBERS_AT_ONCE = 1024
_NUMBER_BYTES = 8


LAST_POSITION = 2**63 - 1
"""No session steps beyond it: what holds positions, here and at clients, may hold signed numbers of 64 bits."""

LATEST = 253_402_300_799.0
"""Seconds since the epoch until the end of the year 9999: what times are told in holds none beyond."""


class Input(NamedTuple):
    """One sequence as a caller gives it: exactly one of the three is set; a model's codec turns it into tensors.

    ``values`` is [steps, features] in data units.
    """

    text: str | None = None
    tokens: Sequence[int] | None = None
    values: FloatArray | None = None

    @property
    def num_steps(self) -> int:
        """How many steps it has at most; a text has one a character."""
        text, tokens, values = self
        if text is not None:
            return len(text)
        return len(tokens) if tokens is not None else 0 if values is None else len(values)


def check_sequences(num_sequences: int) -> None:
    """Raise an error where a prediction has no sequences, or more than it may: ask before they are looked at."""
    if not num_sequences:
        raise InvalidInputError("a prediction needs at least one sequence", reason="EMPTY_SEQUENCE")
    if num_sequences > MAX_SEQUENCES:
        raise TooLargeError(
            f"a prediction takes at most {MAX_SEQUENCES} sequences, not {num_sequences}: send several requests",
            reason="REQUEST_TOO_LARGE",
        )


def check_steps(num_steps: int) -> None:
    """Raise TooLargeError where a request has more steps than one may."""
    if num_steps > MAX_STEPS:
        raise TooLargeError(
            f"a request takes at most {MAX_STEPS} steps, not {num_steps}: step a session chunk by chunk",
            reason="REQUEST_TOO_LARGE",
        )


class StepOptions(NamedTuple):
    """What a reply shall hold: candidates a step, and whether every step is told or only the last.

    With ``is_raw`` it holds the graph's outputs as they are, of every step, unread by the model's codec.
    """

    top: int = 1
    every_step: bool = False
    is_raw: bool = False


RAW = StepOptions(0, every_step=True, is_raw=True)
"""The graph's outputs of every step, as they are."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to generate: at most ``max_tokens``; temperature 0 takes the most probable; ``top_k`` 0 and ``top_p`` 1 cut
    nothing.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Rows(Sequence[Entry]):
    """What a prediction says step by step, kept as arrays and made when it is asked for: objects take ten times as much
    memory.

    Args:
        make: Makes the entries of some steps of ``arrays``.
        arrays: Each [steps, …]; they are kept, so they must not be views of larger ones.
    """

    __slots__ = ("_arrays", "_make")

    def __init__(self, make: Callable[..., list[Entry]], *arrays: Tensor) -> None:
        self._make = make
        self._arrays = arrays

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """What the entries are made of, each [steps, …]."""
        return self._arrays

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self._arrays)

    def __len__(self) -> int:
        return len(self._arrays[0])

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return self._make(*(array[index] for array in self._arrays))
        place = range(len(self))[index]
        return self[place : place + 1][0]

    def __iter__(self) -> Iterator[Entry]:
        step = max(1, _NUMBERS_AT_ONCE // max(1, self._arrays[0][:1].size))
        for start in range(0, len(self), step):
            yield from self[start : start + step]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Candidate(NamedTuple):
    """A possible next token."""

    token: str
    id: int
    probability: float


class Forecast(NamedTuple):
    """Quantiles of the target, ``values[horizon][quantile]``, in data units."""

    quantiles: tuple[float, ...]
    values: list[list[float]]


class Surprise(NamedTuple):
    """The mean over the steps in ``unit`` and, where every step was asked for, each."""

    mean: float
    unit: str
    steps: Sequence[float] | None = None


class Drift(NamedTuple):
    """Where a session's own control chart is after ``blocks`` blocks of steps: ``normal``, ``warning`` or ``drift``."""

    state: str
    ewma: float
    blocks: int


class DriftReport(NamedTuple):
    """Where a model's control chart is, and what it is held against, in units of surprise.

    ``mean`` and ``spread`` are those of blocks of ``block`` steps where all is well; ``warning`` and ``drift`` are the
    limits, low and high, of the average ``ewma``.
    """

    state: str
    ewma: float
    blocks: int
    block: int
    mean: float
    spread: float
    warning: tuple[float, float]
    drift: tuple[float, float]


class SurpriseReport(NamedTuple):
    """How surprised a model was since the start: the mean over ``steps`` steps, None before the first."""

    mean: float | None
    steps: int


@dataclass(slots=True)
class Prediction:
    """What the model says after ``length`` steps. ``next``, ``forecast`` and ``outputs`` have one entry, or one a
    step. ``drift`` is there where a session with a chart of its own completed a block.
    """

    length: int
    every_step: bool = False
    next: Sequence[Sequence[Candidate]] | None = None
    forecast: Sequence[Forecast] | None = None
    outputs: dict[str, Tensor] | None = None
    surprise: Surprise | None = None
    drift: Drift | None = None

    @property
    def num_bytes(self) -> int:
        """What its arrays take, which is most of a large one."""
        steps = None if self.surprise is None else self.surprise.steps
        arrays = 0 if self.outputs is None else sum(array.nbytes for array in self.outputs.values())
        return arrays + sum(told.num_bytes for told in (self.next, self.forecast, steps) if isinstance(told, Rows))

    @property
    def is_large(self) -> bool:
        """Whether it is so large that it is to be written in slices."""
        if not self.every_step and type(self.next) is list:
            return False
        # A stored reply, once it is decoded, has lists for arrays.
        num_listed = sum(map(len, self.next)) if type(self.next) is list else 0
        if type(self.forecast) is list:
            num_listed += sum(len(each.values) * len(each.quantiles) for each in self.forecast)
        return self.num_bytes + _NUMBER_BYTES * num_listed > LARGE_REPLY_BYTES


class Predictions(NamedTuple):
    """What the model says after the last step of many rows of a run: as `Prediction`, but in arrays, row by row.

    ``ids`` and ``probabilities`` are [row, top], ``forecast`` [row, horizon, quantile], each of ``outputs`` [row, …],
    ``surprise`` [row], the mean over the row's steps; None and empty where the task has none.
    """

    length: int
    ids: Tensor | None = None
    probabilities: Tensor | None = None
    quantiles: tuple[float, ...] = ()
    forecast: Tensor | None = None
    outputs: Mapping[str, Tensor] | None = None
    surprise: Tensor | None = None

    def row(self, index: int) -> Predictions:
        """Return one row alone."""
        some = slice(index, index + 1)
        outputs = None if self.outputs is None else {name: array[some] for name, array in self.outputs.items()}
        ids, probabilities, forecast, surprise = (
            None if array is None else array[some]
            for array in (self.ids, self.probabilities, self.forecast, self.surprise)
        )
        return Predictions(self.length, ids, probabilities, self.quantiles, forecast, outputs, surprise)


class StepResult(NamedTuple):
    """The reply to one chunk: the session's position after it, and the prediction."""

    session: str
    position: int
    prediction: Prediction


class PredictResult(NamedTuple):
    """The reply to a stateless call: a prediction for each sequence, in order."""

    model: str
    version: str
    predictions: list[Prediction]


class GeneratedToken(NamedTuple):
    """A token that was sampled, consumed and committed. ``text`` is empty where a stop string withholds it."""

    id: int
    text: str
    position: int


class GenerationDone(NamedTuple):
    """The end of a generation: its text without the stop string, every token, and why it ended: ``stop`` or
    ``length``.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    position: int


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """A wish to open a session. Seconds of None mean the server's default; with ``drift`` it has a chart of its own."""

    model: str
    version: str | None = None
    durable: bool = False
    ttl_seconds: float | None = None
    idle_seconds: float | None = None
    id: str | None = None
    seed: int | None = None
    drift: bool = False
    origin: str = "v1"


class SessionInfo(NamedTuple):
    """What a caller may know of a session. Times are seconds since the epoch; ``expires_at`` None means never.

    ``drift`` is there where the session has a chart of its own, and has completed a block.
    """

    id: str
    model: str
    version: str
    position: int
    durable: bool
    created_at: float
    expires_at: float | None
    state_bytes: int
    checkpoints: tuple[str, ...] = ()
    origin: str = "v1"
    drift: Drift | None = None


class CheckpointInfo(NamedTuple):
    """A retained checkpoint: its name, and the session's position there."""

    checkpoint: str
    position: int


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """How to open a session from a snapshot; as in ``SessionRequest``, and None means as the session before had it."""

    id: str | None = None
    durable: bool = False
    ttl_seconds: float | None = None
    idle_seconds: float | None = None
    drift: bool | None = None


class SessionPage(NamedTuple):
    """Some sessions by rising id; ``next_page_token`` is empty on the last page."""

    sessions: list[SessionInfo]
    next_page_token: str


class TensorInfo(NamedTuple):
    """A tensor of a graph as shown to callers."""

    name: str
    dtype: str
    axes: list[str]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One loaded version of a model; ``versions`` are all of that name, rising."""

    name: str
    version: str
    versions: list[str]
    task: str
    cell: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    features: list[str]
    state_bytes: int
    surprise_unit: str
    batch_invariant: bool
    sha256: str
    provider: str
    surprise: SurpriseReport | None = None
    drift: DriftReport | None = None


class ModelPage(NamedTuple):
    """Some models by name, then version; ``next_page_token`` is empty on the last page."""

    models: list[ModelInfo]
    next_page_token: str


class Refusal(NamedTuple):
    """A bundle that was not loaded, and why."""

    bundle: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload did; versions are written ``name/version``."""

    loaded: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
