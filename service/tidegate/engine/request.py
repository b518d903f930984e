"""Requests to the engine: steps of sessions that are asked for together. A single step is a request of one row.

A request knows its inputs, how far it has come and how to answer. It does not know when it runs or with whom.
It is atomic by row: until a row's last piece is committed its working state lies in ``scratch``, beside its session's
slot.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from tidegate.api import (
    Drift,
    GeneratedToken,
    GenerationDone,
    Prediction,
    Predictions,
    Sampling,
    StepOptions,
    StepResult,
)
from tidegate.codecs.settings import Given
from tidegate.engine.session import DurableSession, LastReply, Session
from tidegate.engine.stopping import StopMatcher
from tidegate.errors import TidegateError
from tidegate.limits import MAX_DIGESTS, MAX_TIMINGS
from tidegate.reply import Reply, RowsReply

if TYPE_CHECKING:
    from tidegate.api import Tensor
    from tidegate.engine.quality import RequestScores

_DIGEST_BYTES = 32
_ROW_BYTES = 48  # beside its arrays: where it started, and a reference to its session's id

KINDS = ("step", "prompt", "predict", "generated")
"""What steps are: a session's, a generation's prompt's, a stateless sequence's, sampled; `Request.kind` is an index."""

STEP, PROMPT, PREDICT, GENERATED = range(len(KINDS))


class StepBlock(NamedTuple):
    """The results of a request's rows as arrays; a row's own is made when somebody asks for it.

    An ephemeral session that was stepped in it remembers it as its last reply.

    Attributes:
        ids: Of the sessions, by row. Not the sessions: they remember this.
        starts: Each session's position before its steps.
        inputs: The graph's, each [row, length, …].
        options: What the replies hold.
        predictions: One for each row.
        results: What the rows are answered, once they are committed.
        drift: By row, where its session's own chart took in a block of steps.
        split: Makes predictions of rows: the codec's.
        settings: That the rows' request gave.
    """

    ids: Sequence[str]
    starts: Sequence[int]
    inputs: tuple[Tensor, ...]
    options: StepOptions
    predictions: Predictions
    drift: Mapping[int, Drift]
    split: Callable[[Predictions], list[Prediction]]
    settings: Given = ()

    @property
    def length(self) -> int:
        """Steps of each row."""
        return self.predictions.length

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory."""
        made = self.predictions
        arrays = (
            *self.inputs,
            *(made.outputs or {}).values(),
            made.ids,
            made.probabilities,
            made.forecast,
            made.surprise,
        )
        return _ROW_BYTES * len(self.ids) + sum(array.nbytes for array in arrays if array is not None)

    def result(self, row: int) -> StepResult:
        (prediction,) = self.split(self.predictions.take(slice(row, row + 1)))
        prediction.drift = self.drift.get(row)
        return StepResult(self.ids[row], self.starts[row] + self.length, prediction)

    def recall(self, session: Session) -> LastReply:
        """Return what the session would remember had it been stepped alone."""
        row = self.ids.index(session.id)
        name = short_fingerprint([array[row] for array in self.inputs], self.options, self.settings)
        return LastReply(self.starts[row], name, self.result(row))


class RequestTimings:
    """When a request arrived, ran and was stored, in monotonic seconds; made only where it is traced.

    Attributes:
        arrived: When the engine took it.
        first_run: When its first run began; None: it never ran.
        last_run: When its last run ended.
        run_seconds: Inside onnxruntime, all runs together.
        num_runs: Pieces, or sampled tokens, that it ran in.
        num_rows: Rows of the largest of these runs.
        num_steps: Steps of its own.
        stored: When its last commit began and ended; None: nothing of it was stored.
        num_commits: To the store.
    """

    __slots__ = (
        "arrived", "first_run", "last_run", "num_commits", "num_rows", "num_runs", "num_steps", "run_seconds", "stored"
    )  # fmt: skip

    def __init__(self, arrived: float) -> None:
        self.arrived = arrived
        self.first_run: float | None = None
        self.last_run = arrived
        self.run_seconds = 0.0
        self.num_runs = self.num_rows = self.num_steps = self.num_commits = 0
        self.stored: tuple[float, float] | None = None

    def add_run(self, began: float, ended: float, rows: int, steps: int) -> None:
        if self.first_run is None:
            self.first_run = began
        self.last_run = ended
        self.run_seconds += ended - began
        self.num_runs += 1
        self.num_rows = max(self.num_rows, rows)
        self.num_steps += steps

    def add_commit(self, began: float, ended: float) -> None:
        self.stored = began, ended
        self.num_commits += 1


TIMINGS: ContextVar[list[RequestTimings] | None] = ContextVar("tidegate_timings", default=None)
"""Where the timings of what is submitted now are noted; None, the default: nowhere."""


def begin_timings(now: float) -> RequestTimings | None:
    """Return timings for a request that arrives now, if it is traced."""
    noted = TIMINGS.get()
    if noted is None or len(noted) >= MAX_TIMINGS:
        return None
    timings = RequestTimings(now)
    noted.append(timings)
    return timings


class Request:
    """Consecutive steps of each of some sessions, equally many, or of none (stateless: the final states are dropped).

    Args:
        sessions: Whose states advance, by row: of one model, all durable or all ephemeral. Empty where stateless.
        inputs: The graph's inputs, each [row, length, …].
        options: What each reply shall hold.
        positions: Each session's position before the steps; empty where the caller gave none.
        deadline: Monotonic seconds after which nothing must be committed.
        reply: Where results go: a `Reply` of the only row, or with ``lanes`` a `RowsReply`.
        lanes: The number of each row in a `RowsReply`.
        caller: Who may come back when it is answered; by default the session.
        settings: Values of the model's settings for these steps alone, the same for all rows.

    Attributes:
        num_behind: In how many of its sessions' queues it is not yet the head. It starts when it heads them all.
        starts: The sessions' positions when it started.
        is_stored: Whether its steps must be stored before they are told.
        ends: Whether a session that is stored ends with them, in the same commit.
        kind: What its steps count as.
        is_checked: Whether the durable session's record was read since the request waits at its position.
        has_gone: Whether a session ended while it ran.
        scratch: By row, the slot of the working state; empty where there is none.
        pieces: By row, what its prediction needs of each run so far.
        rows: Where its rows are in the run at hand.
        predictions: By row, what is told of it; or, where rows are read as one, ``together``.
        results: What the rows are answered, once they are committed.
        drift: By row, where its session's own chart took in a block, of ``together``.
        scored: What its steps say of the model's quality.
        arrived: When it came, monotonic seconds; None once that was counted.
        timings: Noted where it is traced.
    """

    __slots__ = (
        "arrived", "caller", "deadline", "drift", "ends", "has_gone", "inputs", "is_checked", "is_stored", "kind",
        "lanes", "length", "num_behind", "num_rows", "offset", "options", "pieces", "positions", "predictions", "reply",
        "results", "rows", "scored", "scratch", "sessions", "settings", "starts", "timings", "together"
    )  # fmt: skip

    def __init__(  # noqa: PLR0913
        self,
        sessions: Sequence[Session],
        inputs: tuple[Tensor, ...],
        options: StepOptions,
        positions: Sequence[int],
        deadline: float | None,
        reply: Reply | RowsReply,
        *,
        lanes: Sequence[int] | None = None,
        caller: object | None = None,
        settings: Given = (),
    ) -> None:
        self.sessions = sessions
        self.settings = settings
        self.inputs = inputs
        self.options = options
        self.positions = positions
        self.deadline = deadline
        self.reply = reply
        self.lanes = lanes
        self.num_rows: int = len(inputs[0]) if inputs else 1
        self.length: int = inputs[0].shape[1] if inputs else 0
        if sessions:
            self.caller = caller or sessions[0]
            self.is_stored = sessions[0].is_durable
            self.kind = STEP
        else:
            self.caller = None
            self.is_stored = False
            self.kind = PREDICT
        self.offset = self.num_behind = 0
        self.starts: Sequence[int] = ()
        self.ends = self.is_checked = self.has_gone = False
        self.scratch: Sequence[int] = ()
        self.pieces: list[list[Mapping[str, Tensor]]] = []
        self.rows: Sequence[int] = ()
        self.predictions: list[Prediction] | None = None
        self.together: Predictions | None = None
        self.results: Sequence[Any] | None = None
        self.drift: dict[int, Drift] = {}
        self.scored: RequestScores | None = None
        self.arrived: float | None = None
        self.timings: RequestTimings | None = None

    @property
    def remaining(self) -> int:
        """Steps of each row that wait to be run."""
        return self.length - self.offset

    @property
    def most_steps(self) -> int:
        """How far it may take its sessions."""
        return self.length

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for the results any more."""
        return self.reply.done()

    def is_late(self, now: float) -> bool:
        return self.deadline is not None and self.deadline <= now

    def fingerprint(self, row: int) -> Hashable:
        """Return what names a row: two chunks with equal input and options, and only such, have it equal."""
        name = digest if self.is_stored else short_fingerprint
        return name([array[row] for array in self.inputs], self.options, self.settings)

    # ---- answers

    def answer(self, row: int, result: Any) -> None:
        """Answer one row, with an error too, unless the caller has gone."""
        reply = self.reply
        if reply.done():
            return
        if self.lanes is not None:
            cast("RowsReply", reply).put(self.lanes[row], result)
        elif isinstance(result, TidegateError):
            reply.set_exception(result)
        else:
            reply.set_result(result)

    def answer_together(self, block: StepBlock) -> None:
        """Answer all rows, unless the caller has gone."""
        if not self.reply.done():
            assert self.lanes is not None
            cast("RowsReply", self.reply).put_block(self.lanes, block)

    def fail(self, error: TidegateError) -> None:
        """Answer all rows with an error, unless the caller has gone."""
        for row in range(self.num_rows):
            self.answer(row, error)

    def set_drift(self, row: int, drift: Drift) -> None:
        """Put into a row's prediction where its session's own chart is."""
        if self.predictions is not None:
            self.predictions[row].drift = drift
        else:
            self.drift[row] = drift

    # ---- rows that part

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some rows only."""
        self.num_rows = len(rows)
        self.drift = {place: self.drift[row] for place, row in enumerate(rows) if row in self.drift}
        self.inputs = tuple(array[rows] for array in self.inputs)
        if self.together is not None:
            self.together = self.together.take(rows)
        self.sessions = [self.sessions[row] for row in rows] if self.sessions else ()
        self.lanes = None if self.lanes is None else [self.lanes[row] for row in rows]
        self.positions = [self.positions[row] for row in rows] if self.positions else ()
        self.starts = [self.starts[row] for row in rows] if self.starts else ()
        self.scratch = [self.scratch[row] for row in rows] if self.scratch else ()
        self.pieces = [self.pieces[row] for row in rows] if self.pieces else []
        self.rows = [self.rows[row] for row in rows] if self.rows else ()
        self.predictions = None if self.predictions is None else [self.predictions[row] for row in rows]

    def split_off(self, row: int) -> Request:
        """Return a request of one row that goes on from where this one is; it takes the row's scratch slot over."""
        some = slice(row, row + 1)
        lanes = None if self.lanes is None else self.lanes[some]
        inputs = tuple(array[some] for array in self.inputs)
        alone = Request(
            self.sessions[some],
            inputs,
            self.options,
            self.positions[some],
            self.deadline,
            self.reply,
            lanes=lanes,
            settings=self.settings,
        )
        alone.offset, alone.starts, alone.scratch = self.offset, self.starts[some], self.scratch[some]
        alone.pieces, alone.rows = self.pieces[some], self.rows[some]
        alone.is_checked, alone.has_gone, alone.arrived = self.is_checked, self.has_gone, self.arrived
        alone.timings = self.timings
        return alone

    @property
    def can_start_over(self) -> bool:
        """Whether nothing of it is committed or told, so that it may be decided and run again."""
        return True

    def start_over(self) -> None:
        """Forget what was run of it. Ask ``can_start_over`` first."""
        self.offset = 0
        self.pieces = []
        self.predictions = self.together = None
        self.is_checked = False


def chunk(
    session: Session | None,
    inputs: Sequence[Tensor],
    options: StepOptions,
    position: int | None,
    deadline: float | None,
    reply: Reply,
    settings: Given = (),
) -> Request:
    """Return a request of one row: ``inputs`` are [length, …], of a session or of none."""
    return Request(
        () if session is None else (session,),
        tuple([array[None] for array in inputs]),
        options,
        () if position is None else [position],
        deadline,
        reply,
        settings=settings,
    )


class Transcript:
    """What a generation has sampled, consumed and committed so far: what a repeat replays."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, a number of its own for each token."""
        return 36 * len(self.tokens)


Emit = Callable[[GeneratedToken | GenerationDone], None]


class Generation(Request):
    """A prompt, then sampled tokens, each consumed as a chunk of one step before it is sent. It has one row.

    Args:
        prompt: The graph's inputs of the prompt, [length, …], or () to go on from the session's last step.
        seed: Of the counter-based random numbers, with the position as the counter.
        vocabulary: Text of each token.
        emit: Takes each event; the last one is ``GenerationDone``. ``reply`` resolves after it, or carries the error.
            None where only the whole is wanted, which ``reply`` resolves to.
    """

    __slots__ = (
        "_emit", "_fingerprint", "_is_prompt", "_matcher", "_prompt", "consumed", "sampling", "seed", "transcript",
        "vocabulary"
    )  # fmt: skip

    def __init__(  # noqa: PLR0913
        self,
        session: Session | None,
        prompt: tuple[Tensor, ...],
        sampling: Sampling,
        seed: int,
        position: int | None,
        deadline: float | None,
        reply: Reply,
        *,
        vocabulary: Sequence[str],
        emit: Emit | None,
        settings: Given = (),
    ) -> None:
        inputs = tuple(array[None] for array in prompt)
        positions = () if position is None else [position]
        sessions = () if session is None else (session,)
        super().__init__(sessions, inputs, StepOptions(), positions, deadline, reply, settings=settings)
        self.sampling = sampling
        self.seed = seed
        self.vocabulary = vocabulary
        self.transcript = Transcript()
        self.consumed = 0
        self._emit = emit
        self._matcher = StopMatcher(sampling.stop)
        self._is_prompt = True
        self.kind = PROMPT
        self._prompt: tuple[Tensor, ...] | None = inputs
        self._fingerprint = digest(prompt, sampling, settings)

    def fingerprint(self, row: int) -> Hashable:
        return self._fingerprint

    @property
    def session(self) -> Session | None:
        return self.sessions[0] if self.sessions else None

    @property
    def position(self) -> int:
        """Steps that its sequence has consumed: the counter of the random numbers."""
        return self.sessions[0].position if self.sessions else self.consumed

    @property
    def most_steps(self) -> int:
        return self.length + self.sampling.max_tokens

    @property
    def can_start_over(self) -> bool:
        return self._prompt is not None

    def start_over(self) -> None:
        super().start_over()
        assert self._prompt is not None
        self.inputs = self._prompt
        self.length = self._prompt[0].shape[1] if self._prompt else 0
        self._is_prompt = True
        self.kind = PROMPT

    @property
    def next_transcript(self) -> Transcript:
        """The transcript as it will be once the current steps are committed."""
        ahead = Transcript()
        ahead.tokens = [*self.transcript.tokens, *([] if self._is_prompt else self.inputs[0][0].tolist())]
        return ahead

    def push(self, token: int) -> None:
        """Make a sampled token the next step."""
        self._is_prompt = False
        self.kind = GENERATED
        self.inputs = (np.array([[token]], dtype=np.int64),)
        self.length, self.offset = 1, 0
        self.pieces = []

    def accept(self, position: int) -> bool:
        """Take note that the current steps are committed, up to ``position``; return whether the generation is over.

        Without a session the position is the number of steps consumed so far.
        """
        self._prompt = None
        self.consumed += self.length
        if self._is_prompt:
            return False
        token = int(self.inputs[0][0, 0])
        self.transcript.tokens.append(token)
        return self._tell(token, position if self.sessions else self.consumed)

    def resume(self, last: LastReply) -> bool:
        """Send again what was generated before, and take its transcript over; return whether it had ended."""
        assert isinstance(last.result, Transcript)
        self._prompt = None
        self.starts, self.transcript = [last.start], last.result
        is_over = False
        for position, token in enumerate(self.transcript.tokens, last.start + self.length + 1):
            is_over = self._tell(token, position)
        self.inputs, self.length = (), 0
        return is_over

    def _tell(self, token: int, position: int) -> bool:
        events, is_stopped = self._matcher.push(token, self.vocabulary[token], position)
        self._send(events)
        if is_stopped or self._matcher.num_tokens >= self.sampling.max_tokens:
            self._finish("stop" if is_stopped else "length", position)
            return True
        return False

    def _finish(self, reason: str, position: int) -> None:
        self._send(self._matcher.flush())
        done = GenerationDone(self._matcher.text, list(self._matcher.tokens), reason, position)
        self._send([done])
        self.answer(0, done)

    def _send(self, events: Sequence[GeneratedToken | GenerationDone]) -> None:
        if self._emit is not None and not self.is_abandoned:
            for event in events:
                self._emit(event)


class Barrier(Request):
    """Something to be done to a session when its turn comes, behind the requests before it: runs nothing.

    Args:
        act: What to do; the reply is what it returns, or the error that it raises.
    """

    __slots__ = ("act",)

    def __init__(self, session: Session, act: Callable[[], Any], reply: Reply) -> None:
        super().__init__((session,), (), StepOptions(), (), None, reply)
        self.act = act


class Step(NamedTuple):
    """A row of a durable session that has run and waits to be stored before anybody is told.

    ``position`` and ``state`` (as the arena dumps it) are those after its steps; ``logits``, of a generation, its last
    step's; ``scored`` is the request's, None where nobody watches the model, and ``row`` its row there.
    """

    request: Request
    row: int
    session: DurableSession
    position: int
    state: bytes
    last: LastReply
    logits: Tensor | None
    scored: RequestScores | None


Outcome = bytes | TidegateError | None
"""What became of a step: the revision it was stored as; why it may not have been; or None, another was faster."""


def digest(inputs: Sequence[Tensor], options: StepOptions | Sampling, settings: Given = ()) -> bytes:
    """Return the SHA-256 of a request's canonical input, options and settings: the same in every process and
    version.
    """
    parts = tuple((tensor.dtype, tensor.shape, tensor.tobytes()) for tensor in (*inputs, *_canonical_given(settings)))
    if isinstance(options, Sampling):
        return _hash(parts, _canonical_sampling(options))
    if len(parts) == 1 and len(parts[0][2]) <= _DIGEST_BYTES:
        return _hash_again(parts, _canonical(options))
    return _hash(parts, _canonical(options))


_Parts = tuple[tuple["np.dtype[Any]", tuple[int, ...], bytes], ...]


def _hash(parts: _Parts, options: bytes) -> bytes:
    hasher = hashlib.sha256(options)
    for dtype, shape, content in parts:
        hasher.update(f"{dtype.str}{shape}".encode())
        hasher.update(content)
    return hasher.digest()


# Single steps of a vocabulary come again and again. An entry is some 300 bytes: the input has at most 32.
_hash_again = functools.lru_cache(MAX_DIGESTS)(_hash)


def _canonical_given(settings: Given) -> list[Tensor]:
    return [_NOT_GIVEN if each is None else each for each in settings]


_NOT_GIVEN = np.empty(0, "V1")


@functools.lru_cache(MAX_DIGESTS)
def _canonical(options: StepOptions) -> bytes:
    return f"ask {options.top} {options.every_step:d} {options.is_raw:d}\n".encode()


def _canonical_sampling(options: Sampling) -> bytes:
    parts = (options.max_tokens, options.temperature, options.top_k, options.top_p, options.seed, list(options.stop))
    return f"sampling {json.dumps(parts)}\n".encode()


def repeats(last: LastReply, inputs: Sequence[Tensor], options: StepOptions, position: int) -> bool:
    """Whether a request is the one that a session of either kind answered last."""
    name = digest if isinstance(last.fingerprint, bytes) else short_fingerprint
    return position == last.start and name(inputs, options) == last.fingerprint


def short_fingerprint(inputs: Sequence[Tensor], options: StepOptions, settings: Given = ()) -> Hashable:
    """Return the options, the canonical input and the settings; of input longer than its SHA-256, the SHA-256."""
    parts = [tensor.tobytes() for tensor in (*inputs, *_canonical_given(settings))]
    return options, *[part if len(part) <= _DIGEST_BYTES else hashlib.sha256(part).digest() for part in parts]
