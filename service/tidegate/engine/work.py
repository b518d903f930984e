"""Work for the engine: a chunk, or a generation, which is a chunk that feeds itself.

Work knows its inputs, how far it has come and how to answer. It does not know when it runs or with whom.
A chunk is atomic: until its last piece is committed its working state lies in ``scratch``, beside its session's slot.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tidegate.api import GeneratedToken, GenerationDone, Sampling, StepOptions, Tensor
from tidegate.engine.course import Course
from tidegate.engine.session import LastReply, Session
from tidegate.engine.stopping import StopMatcher
from tidegate.errors import TidegateError
from tidegate.limits import MAX_DIGESTS

_DIGEST_BYTES = 32

KINDS = ("step", "prompt", "predict", "generated")
"""What steps are: a session's, a generation's prompt's, a stateless sequence's, sampled. Work tells by index."""

STEP, PROMPT, PREDICT, GENERATED = range(len(KINDS))


class Reply(Protocol):
    """Where a result goes; an ``asyncio.Future`` is one. It is ``done`` early when the caller has gone."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...


class Work:
    """Consecutive steps of one session, or of none (stateless: ``session`` is None and the final state is dropped).

    Args:
        session: Whose state advances.
        inputs: The graph's inputs, each [length, …].
        options: What the reply shall hold.
        position: The session's position before the chunk, where the caller gave it.
        deadline: Monotonic seconds after which it must not be committed.
        reply: Where the result goes.

    ``is_stored`` says whether its steps must be stored before they are told, ``ends`` whether a session that is stored
    ends with them, in the same commit; ``kind`` is what they count as.
    """

    __slots__ = (
        "arrived", "course", "deadline", "ends", "inputs", "is_checked", "is_stored", "kind", "length", "offset",
        "options", "pieces", "position", "reply", "scratch", "session", "start"
    )  # fmt: skip

    def __init__(
        self,
        session: Session | None,
        inputs: tuple[Tensor, ...],
        options: StepOptions,
        position: int | None,
        deadline: float | None,
        reply: Reply,
    ) -> None:
        self.session = session
        self.is_stored = session is not None and session.is_durable
        self.ends = False
        self.inputs = inputs
        self.options = options
        self.position = position
        self.deadline = deadline
        self.reply = reply
        self.length = len(inputs[0]) if inputs else 0
        self.offset = 0
        self.start = 0  # the session's position when the work began
        self.is_checked = False  # whether a durable session's record was read since the work waits at its position
        self.scratch: int | None = None
        self.pieces: list[Mapping[str, Tensor]] = []
        self.kind = PREDICT if session is None else STEP
        self.arrived: float | None = None  # when it came, monotonic seconds; None once that was counted
        self.course: Course | None = None  # where its request is traced

    @property
    def remaining(self) -> int:
        """Steps that wait to be run."""
        return self.length - self.offset

    @property
    def most_steps(self) -> int:
        """How far it may take its session."""
        return self.length

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self.reply.done()

    def is_late(self, now: float) -> bool:
        return self.deadline is not None and self.deadline <= now

    def fail(self, error: TidegateError) -> None:
        """Answer with an error, unless the caller has gone."""
        if not self.reply.done():
            self.reply.set_exception(error)

    def fingerprint(self) -> Hashable:
        """Return what names the request: two chunks with equal input and options, and only such, have it equal."""
        return (digest if self.is_stored else name_of)(self.inputs, self.options)

    @property
    def can_start_over(self) -> bool:
        """Whether nothing of it is committed or told, so that it may be decided and run again."""
        return True

    def start_over(self) -> None:
        """Forget what was run of it. Ask ``can_start_over`` first."""
        self.offset = 0
        self.pieces.clear()
        self.is_checked = False

    def answer(self, result: Any) -> None:
        """Answer with the chunk's result, unless the caller has gone."""
        if not self.reply.done():
            self.reply.set_result(result)

    def repeat(self, last: LastReply) -> None:
        """Answer with what was answered before."""
        self.answer(last.result)


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


class Generation(Work):
    """A prompt, then sampled tokens, each consumed as a chunk of one step before it is sent.

    Args:
        prompt: The graph's inputs of the prompt, or () to go on from the session's last step.
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
    ) -> None:
        super().__init__(session, prompt, StepOptions(), position, deadline, reply)
        self.sampling = sampling
        self.seed = seed
        self.vocabulary = vocabulary
        self.transcript = Transcript()
        self.consumed = 0
        self._emit = emit
        self._matcher = StopMatcher(sampling.stop)
        self._is_prompt = True
        self.kind = PROMPT
        self._prompt: tuple[Tensor, ...] | None = prompt
        self._fingerprint = digest(prompt, sampling)

    def fingerprint(self) -> Hashable:
        return self._fingerprint

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
        self.length = len(self._prompt[0]) if self._prompt else 0
        self._is_prompt = True
        self.kind = PROMPT

    @property
    def transcript_ahead(self) -> Transcript:
        """The transcript as it will be once the current steps are committed."""
        ahead = Transcript()
        ahead.tokens = [*self.transcript.tokens, *([] if self._is_prompt else self.inputs[0].tolist())]
        return ahead

    def push(self, token: int) -> None:
        """Make a sampled token the next step."""
        self._is_prompt = False
        self.kind = GENERATED
        self.inputs = (np.array([token], dtype=np.int64),)
        self.length, self.offset = 1, 0
        self.pieces.clear()

    def accept(self, position: int) -> bool:
        """Take note that the current steps are committed, up to ``position``; return whether the generation is over.

        Without a session the position is the number of steps consumed so far.
        """
        self._prompt = None
        self.consumed += self.length
        if self._is_prompt:
            return False
        token = int(self.inputs[0][0])
        self.transcript.tokens.append(token)
        return self._tell(token, self.consumed if self.session is None else position)

    def resume(self, last: LastReply) -> bool:
        """Send again what was generated before, and take its transcript over; return whether it had ended."""
        assert isinstance(last.result, Transcript)
        self._prompt = None
        self.start, self.transcript = last.start, last.result
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
        self.answer(done)

    def _send(self, events: Sequence[GeneratedToken | GenerationDone]) -> None:
        if self._emit is not None and not self.is_abandoned:
            for event in events:
                self._emit(event)


class Turn(Work):
    """Something to be done to a session when its turn comes, behind the work before it: runs nothing.

    Args:
        act: What to do; the reply is what it returns, or the error that it raises.
    """

    __slots__ = ("act",)

    def __init__(self, session: Session, act: Callable[[], Any], reply: Reply) -> None:
        super().__init__(session, (), StepOptions(), None, None, reply)
        self.act = act


def digest(inputs: Sequence[Tensor], options: StepOptions | Sampling) -> bytes:
    """Return the SHA-256 of a request's canonical input and options: the same in every process and version."""
    parts = tuple((tensor.dtype, tensor.shape, tensor.tobytes()) for tensor in inputs)
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


@functools.lru_cache(MAX_DIGESTS)
def _canonical(options: StepOptions) -> bytes:
    return f"ask {options.top} {options.every_step:d} {options.is_raw:d}\n".encode()


def _canonical_sampling(options: Sampling) -> bytes:
    parts = (options.max_tokens, options.temperature, options.top_k, options.top_p, options.seed, list(options.stop))
    return f"sampling {json.dumps(parts)}\n".encode()


def repeats(last: LastReply, inputs: Sequence[Tensor], options: StepOptions, position: int) -> bool:
    """Whether a request is the one that a session of either kind answered last."""
    name = digest if isinstance(last.fingerprint, bytes) else name_of
    return position == last.start and name(inputs, options) == last.fingerprint


def name_of(inputs: Sequence[Tensor], options: StepOptions) -> Hashable:
    """Return the options and the canonical input; of input longer than its SHA-256, the SHA-256."""
    parts = [tensor.tobytes() for tensor in inputs]
    return options, *[part if len(part) <= _DIGEST_BYTES else hashlib.sha256(part).digest() for part in parts]
