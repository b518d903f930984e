"""The types that everything speaks, whatever the transport, and `Core`, the interface that every transport asks.

Knows shapes and units. Knows nothing of JSON, protobuf or onnxruntime.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tidegate.errors import InvalidInputError, TidegateError, TooLargeError
from tidegate.histogram import HistogramSnapshot
from tidegate.limits import LARGE_REPLY_BYTES, MAX_MODEL_TENSORS, MAX_SEQUENCES, MAX_STEPS

if TYPE_CHECKING:
    from tidegate.bundle import Manifest
    from tidegate.clock import Clock
    from tidegate.config import Settings
    from tidegate.reply import DirectReply, RowReply, RowsReply

FloatArray = NDArray[np.floating]
Tensor = NDArray[np.generic]
Entry = TypeVar("Entry")

_NUMBERS_AT_ONCE = 1024
_NUMBER_BYTES = 8


LAST_POSITION = 2**63 - 1
"""No session steps beyond it: what holds positions, here and at clients, may hold signed numbers of 64 bits."""

LATEST = 253_402_300_799.0
"""Seconds since the epoch until the end of the year 9999: what times are told in holds none beyond."""


class InputValue(NamedTuple):
    """What a caller gives for one of the model's settings: nested lists of this shape. ``data`` are their numbers in C
    order, as 64-bit floats: equal values are equal bytes, and many are no objects.
    """

    name: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, name: str, value: object) -> InputValue:
        """Return a number, or an array of numbers, by its name.

        Raises:
            ValueError: It is neither.
        """
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} is no number and no array of numbers")
        return cls(name, array.shape, array.astype("<f8").tobytes())

    @property
    def numbers(self) -> FloatArray:
        """The numbers in C order."""
        return np.frombuffer(self.data, "<f8")


class Input(NamedTuple):
    """One sequence as a caller gives it: exactly one of the first three is set; a model's codec turns it into tensors.

    ``values`` is [steps, features] in data units. ``inputs`` are the settings that hold for this sequence alone, by
    rising name.
    """

    text: str | None = None
    tokens: Sequence[int] | None = None
    values: FloatArray | None = None
    inputs: tuple[InputValue, ...] = ()

    @property
    def num_steps(self) -> int:
        """How many steps it has at most; a text has one a character."""
        text, tokens, values, _ = self
        if text is not None:
            return len(text)
        return len(tokens) if tokens is not None else 0 if values is None else len(values)

    def part(self, start: int, stop: int) -> Input:
        """Return some of the steps of tokens or values."""
        if self.tokens is not None:
            return Input(None, self.tokens[start:stop], None, self.inputs)
        return Input(None, None, None if self.values is None else self.values[start:stop], self.inputs)


class RowSteps(NamedTuple):
    """Steps of many sessions: of ``source``, the steps of all, one session's after the other's, ``lengths[i]`` are of
    session i, or one each where ``lengths`` is empty; at ``positions[i]``, where ``positions`` is not empty.
    """

    source: Input
    lengths: Sequence[int] = ()
    positions: Sequence[int] = ()

    def starts(self) -> Sequence[int]:
        """Return where each session's steps begin in ``source``; empty where each has one."""
        return list(accumulate(self.lengths, initial=0))[:-1] if self.lengths else ()

    def of(self, row: int, starts: Sequence[int]) -> tuple[Input, int | None]:
        """Return one session's steps and its position."""
        start = starts[row] if starts else row
        length = self.lengths[row] if starts else 1
        return self.source.part(start, start + length), self.positions[row] if self.positions else None

    def select(self, rows: Sequence[int]) -> RowSteps:
        """Return the steps of some of the sessions."""
        starts = self.starts()
        if isinstance(rows, range) and rows.step == 1:
            first, last = (
                (starts[rows[0]], starts[rows[-1]] + self.lengths[rows[-1]]) if starts else (rows[0], rows.stop)
            )
            some = slice(rows.start, rows.stop)
            return RowSteps(self.source.part(first, last), self.lengths[some], self.positions[some])
        lengths = [self.lengths[row] for row in rows] if starts else []
        places = [starts[row] + step for row in rows for step in range(self.lengths[row])] if starts else list(rows)
        tokens, values = self.source.tokens, self.source.values
        source = Input(
            None,
            None if tokens is None else [tokens[place] for place in places],
            None if values is None else values[places],
            self.source.inputs,
        )
        return RowSteps(source, lengths, [self.positions[row] for row in rows] if self.positions else ())


def check_sequences(num_sequences: int) -> None:
    """Raise an error where a prediction has no sequences, or more than it may: ask before they are looked at."""
    if not num_sequences:
        raise InvalidInputError("a prediction needs at least one sequence", reason="EMPTY_SEQUENCE")
    if num_sequences > MAX_SEQUENCES:
        raise TooLargeError(
            f"a prediction takes at most {MAX_SEQUENCES} sequences, not {num_sequences}: send several requests",
            reason="REQUEST_TOO_LARGE",
        )


def check_inputs(num_inputs: int) -> None:
    """Raise InvalidInputError where more settings are given than any model has: ask before they are looked at."""
    if num_inputs > MAX_MODEL_TENSORS:
        raise InvalidInputError(
            f"inputs: {num_inputs} values, and no model has more than {MAX_MODEL_TENSORS:,} settings",
            reason="UNKNOWN_INPUT",
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

    def take(self, rows: slice | Sequence[int]) -> Predictions:
        """Return some rows alone."""
        outputs = None if self.outputs is None else {name: array[rows] for name, array in self.outputs.items()}
        ids, probabilities, forecast, surprise = (
            None if array is None else array[rows]
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


class SessionKey(NamedTuple):
    """Whose session it is, and its id: unique together. A tenant is 1 to 64 of A-Z a-z 0-9 . _ ~ -."""

    tenant: str
    id: str


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """A wish to open a session. Seconds of None mean the server's default; with ``drift`` it has a chart of its own.

    ``inputs`` are the session's values of the model's settings, by rising name.
    """

    model: str
    version: str | None = None
    durable: bool = False
    ttl_seconds: float | None = None
    idle_seconds: float | None = None
    id: str | None = None
    seed: int | None = None
    drift: bool = False
    origin: str = "v1"
    inputs: tuple[InputValue, ...] = ()


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
    unit: str | None = None
    description: str | None = None


class SettingInfo(NamedTuple):
    """A setting of a model as shown to callers: an input that is neither a sequence nor a state.

    ``shape`` is that of one value; ``default`` is one number for all of it, or each in C order.
    """

    name: str
    dtype: str
    shape: list[int]
    default: list[float]
    unit: str | None = None
    description: str | None = None


class ColumnInfo(NamedTuple):
    """What one of a model's features is."""

    name: str
    unit: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One loaded version of a model; ``versions`` are all of that name, rising.

    ``sample_rate`` is in samples a second, ``frame_length`` in samples a step, where callers send a signal.
    ``columns`` are the features of which more than the name is known.
    """

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
    settings: list[SettingInfo] = field(default_factory=list)
    sample_rate: float | None = None
    frame_length: int | None = None
    columns: list[ColumnInfo] = field(default_factory=list)


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


class EngineStatsSnapshot(NamedTuple):
    """Counters since the start.

    Attributes:
        steps: Steps that were run, by kind.
        num_repeats: Chunks answered from the last reply.
        num_conflicts: Chunks refused for their position.
        num_generated: Sampled tokens that were consumed.
        queue: Seconds from arrival in the engine to the first run.
        ticks: Seconds from a plan to its replies; a commit to the store is not among them.
    """

    steps: dict[str, int]
    num_repeats: int
    num_conflicts: int
    num_generated: int
    queue: HistogramSnapshot
    ticks: HistogramSnapshot


class QualitySnapshot(NamedTuple):
    """Counters since the start.

    Attributes:
        unit: Of surprise; empty where the model has none.
        num_steps: Steps whose surprise is a number, and no outlier.
        surprise: The sum over them.
        num_nan: Steps whose surprise is no number.
        num_outliers: Steps whose surprise is beyond what a mean is made of.
        blocks: Means of blocks, by size.
        drift: Where the model's chart is; None where it has none.
        changes: How often the chart's state became each.
        num_unknown: Tokens that the vocabulary lacks, and requests refused for one.
        num_out_of_range: Values beyond those of the training.
        num_missing: Requests refused for a value that is not finite.
        num_inside: Inputs that the 80 % interval of the step before held.
        num_outside: Inputs that it did not hold.
    """

    unit: str
    num_steps: int
    surprise: float
    num_nan: int
    num_outliers: int
    blocks: HistogramSnapshot
    drift: DriftReport | None
    changes: dict[str, int]
    num_unknown: int
    num_out_of_range: int
    num_missing: int
    num_inside: int
    num_outside: int


class EngineStatistics(NamedTuple):
    """What one loaded model has done, and holds."""

    model: str
    version: str
    provider: str
    task: str
    cell: str
    num_runs: int
    num_rows: int
    num_steps: int
    num_failed_runs: int
    rows_per_run: dict[int, int]
    run_seconds: float
    queued: int
    arena_slots_used: int
    arena_bytes: int
    num_padding_steps: int
    stats: EngineStatsSnapshot
    quality: QualitySnapshot


class StoreStatistics(NamedTuple):
    """Counters since the start; ``seconds`` that each group of writes took; ``is_available`` as of now.

    ``num_damaged`` counts how often a damaged record was met.
    """

    num_groups: int
    num_writes: int
    num_conflicts: int
    num_failures: int
    seconds: HistogramSnapshot
    is_available: bool
    num_damaged: int = 0


class ServiceStatistics(NamedTuple):
    """What the whole service has done, and holds; ``ended`` counts sessions by reason.

    ``num_sessions`` are those held here, ``num_durable`` of them copies of durable ones; ``num_evicted`` counts such
    copies that left for want of room. ``store`` is None where there is none. ``done`` counts what was done to sessions
    (`fork` and the like) and bundles that were ``loaded`` or ``refused``.
    """

    models: list[EngineStatistics]
    num_sessions: int
    ended: dict[str, int]
    num_durable: int = 0
    num_evicted: int = 0
    store: StoreStatistics | None = None
    done: Mapping[str, int] = {}


class ServedModel(NamedTuple):
    """One version of a model that is offered, and all versions of that name, rising."""

    manifest: Manifest
    sha256: str
    versions: list[str]

    @property
    def key(self) -> tuple[str, str]:
        return self.manifest.name, self.manifest.version


class EngineCounts(NamedTuple):
    """What a model's engine has done for everybody: runs, and seconds in them."""

    num_runs: int
    run_seconds: float


class KnownSession(NamedTuple):
    """A sequence's session that is known: the version that it runs on, or ran on.

    ``recall`` is there where it ended with a step: it returns the stored reply if a request, its inputs and position,
    repeats that step.
    """

    version: str
    recall: Callable[[tuple[Tensor, ...], int], StepResult | None] | None = None

    @property
    def is_running(self) -> bool:
        return self.recall is None


Events = AsyncGenerator[GeneratedToken | GenerationDone]
"""What a generation yields. Closing it ends the generation: nothing is committed afterwards."""


class SessionGroup:
    """Sessions that one caller steps together, again and again: whoever keeps them looks them up once.

    Args:
        ids: Of the sessions, all different, in the caller's order.

    Attributes:
        found: What the keeper remembers of the look-up.
    """

    __slots__ = ("found", "ids")

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        self.found: Any = None


class SequenceCore(Protocol):
    """Sessions of the Open Inference Protocol's sequences, which take and give tensors."""

    async def open_sequence(self, model: str, version: str, session: str) -> str:
        """Open the session, in the place of one of that id, and return the version that it runs on.

        Args:
            model: Whose settings say whether the session is durable.
            version: Empty: the highest.
            session: Its id.
        """

    async def find_sequence(self, model: str, session: str) -> KnownSession | None:
        """Return what is known of a session, even if another process opened it or it has ended."""

    async def close_sequence(self, session: str, *, is_restart: bool) -> None:
        """End the session; one that has ended already is no error. ``is_restart``: another takes its place."""

    def is_open(self, session: str) -> bool:
        """Return whether the session has not ended, as far as is known here."""

    def step_sequence(
        self, session: str, inputs: tuple[Tensor, ...], position: int | None, deadline: float | None, *, ends: bool
    ) -> Future[StepResult]:
        """Queue steps, each input [steps, …], behind the session's other work, and return at once. Values of the
        model's settings may follow, for these steps alone.

        With ``ends`` the session is over when they are answered; a repeat, at the same position with the same inputs,
        gets the stored reply. The result holds the graph's outputs of every step, unread by the codec.

        Raises:
            SessionEndedError, NotFoundError: The session is over; raised here or by the future.
        """


class Core(SequenceCore, Protocol):
    """What a transport may ask: of the service, of the router between workers, or of the fake in tests.

    All methods belong to one event loop. They raise errors of `tidegate.errors` only. Deadlines are seconds of
    ``clock.monotonic``. Cancelling an awaiting task or a future abandons the work: nothing of it is committed
    afterwards.
    """

    @property
    def settings(self) -> Settings: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome; not while the store of durable sessions is away."""

    @property
    def is_draining(self) -> bool: ...

    @property
    def is_store_away(self) -> bool:
        """Whether there is a store of durable sessions that does not answer."""

    def statistics(self) -> ServiceStatistics:
        """Return counters and gauges of this process."""

    # ---- models

    def models(self, limit: int = 0, page_token: str = "") -> ModelPage:
        """Return a page of the offered models, by name, then version."""

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        """Return one version, or the highest; NotFoundError."""

    def get_served(self, name: str, version: str = "") -> ServedModel:
        """Return one version with its manifest, or the highest; NotFoundError where it is not offered."""

    def list_served(self) -> list[ServedModel]:
        """Return what is offered with its manifests, by name, then rising version."""

    def count_runs(self, name: str, version: str) -> EngineCounts:
        """Return what a loaded model's engine has done; zeros of one that is not loaded."""

    async def reload(self) -> ReloadReport:
        """Read the bundle directory again, on every worker. Running sessions stay on their version."""

    # ---- whole sequences, from the initial state

    async def predict(
        self,
        model: str,
        version: str | None,
        sequences: Sequence[Input],
        options: StepOptions,
        deadline: float | None = None,
    ) -> PredictResult:
        """Run whole sequences of any lengths.

        Raises:
            InvalidInputError: Naming the sequence by its index; nothing was run.
        """

    def predict_tensors(
        self, model: str, version: str, rows: Sequence[tuple[Tensor, ...]], deadline: float | None
    ) -> list[Future[Prediction]]:
        """Run each row: the graph's own inputs, each [steps, …], then, if any, a value of each of its settings. The
        results hold its outputs of every step.
        """

    def generate(
        self,
        model: str,
        version: str | None,
        prompt: Input | None,
        sampling: Sampling,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> Events:
        """Sample after a prompt; the last event is the end, the only one if not streamed."""

    # ---- sessions

    async def open_session(self, request: SessionRequest) -> SessionInfo:
        """Open a session, or return the one that an equal request with the same id opened.

        Raises:
            AlreadyExistsError: The id is taken by another request.
            OverloadedError: The arena is full and nothing in it may be evicted.
            FailedPreconditionError: It is to be durable, and there is no store.
        """

    async def get_session(self, session: str) -> SessionInfo:
        """Return the session; NotFoundError, SessionEndedError."""

    async def get_sessions(self, sessions: Sequence[str]) -> list[SessionInfo | TidegateError]:
        """Return each session, or why it cannot be had. The caller bounds their number."""

    async def list_sessions(self, limit: int = 0, page_token: str = "") -> SessionPage:
        """Return a page of the sessions by rising id."""

    async def close_session(self, session: str) -> None:
        """End the session; closing twice succeeds."""

    async def fork_session(
        self, session: str, ids: Sequence[str] | None = None, count: int | None = None
    ) -> list[SessionInfo]:
        """Open sessions that go on from where this one is: with ``ids``, or ``count`` of them, one where neither is
        given. An equal repeat with ids returns what exists.

        Raises:
            AlreadyExistsError: An id is taken by another session.
        """

    async def checkpoint_session(self, session: str, name: str | None = None) -> CheckpointInfo:
        """Keep where the session is under a name; the oldest of more than eight is dropped."""

    async def rewind_session(self, session: str, checkpoint: str) -> SessionInfo:
        """Take the session back to a checkpoint, which stays; NotFoundError where there is none of that name."""

    async def upgrade_session(self, session: str, version: str | None = None) -> SessionInfo:
        """Move the session to a version of its model, the highest where None.

        Raises:
            FailedPreconditionError: Its states have other names, dtypes or shapes.
        """

    async def snapshot_session(self, session: str) -> bytes:
        """Return the session as portable bytes."""

    async def restore_session(self, snapshot: bytes, request: RestoreRequest) -> SessionInfo:
        """Open a session from a snapshot; an equal repeat with an id returns what exists.

        Raises:
            InvalidInputError: The bytes are not a snapshot, or were altered.
            FailedPreconditionError: Its model is not here in that version, with that content, or has no chart.
        """

    def step(
        self,
        session: str,
        source: Input,
        options: StepOptions = ...,
        position: int | None = None,
        deadline: float | None = None,
    ) -> Future[StepResult]:
        """Queue a chunk behind the session's other work, and return at once."""

    def submit_step(
        self,
        session: str,
        source: Input,
        options: StepOptions,
        position: int | None,
        deadline: float | None,
        reply: DirectReply | RowReply,
    ) -> None:
        """As `step`, but ``reply`` takes the result: it calls back as soon as it is there."""

    def submit_columns(
        self,
        group: SessionGroup,
        rows: Sequence[int],
        steps: RowSteps,
        options: StepOptions,
        deadline: float | None,
        reply: RowsReply,
    ) -> None:
        """Queue steps of many sessions, each behind its session's other requests, and return at once.

        Sessions that are alike go together, in requests of many rows: of one length, behind the same request, all
        durable or all ephemeral.

        Args:
            group: The sessions.
            rows: Their numbers in ``reply``, which takes each one's result or error.
            steps: Of each.
            options: What each reply shall hold.
            deadline: As of `step`.
            reply: It calls back when all are there.
        """

    def generate_on_session(
        self,
        session: str,
        prompt: Input | None,
        sampling: Sampling,
        position: int | None = None,
        deadline: float | None = None,
        *,
        is_streamed: bool = True,
    ) -> Events:
        """Sample on a session, after a prompt or from its last step; every token told is consumed and committed."""
