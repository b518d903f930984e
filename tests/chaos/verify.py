"""Whether one session could have answered as clients were told: a search for an order of all operations that explains
every answer, each operation between its beginning and its end (G. Lowe, Testing for linearizability, 2017, after Wing
and Gong, 1993). An operation of unknown outcome may take effect at any time after its beginning, or never.

The session's rules are written down a second time here, in `after`, on whole sequences and without tidegate's own code;
what a reply should say comes from `offline`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tests.chaos.history import Asked, At, Conflict, Failure, Keep, Operation, Read, Reply, Rewind, Step, Told
from tests.chaos.offline import Sequence


class Last(NamedTuple):
    """The chunk that the session remembers. ``reply`` None: stored, but nobody was told yet."""

    start: int
    tokens: tuple[int, ...]
    reply: Reply | None


@dataclass(frozen=True, slots=True)
class Session:
    """What has been consumed, what is remembered, and the checkpoints."""

    consumed: Sequence
    last: Last | None = None
    checkpoints: tuple[tuple[str, Sequence], ...] = ()


def after(session: Session, operation: Operation) -> Session | None:
    """The session after ``operation``, or None where it would not have answered so."""
    told = operation.told
    match operation.asked:
        case Step(start, tokens):
            return _after_step(session, start, tokens, told)
        case Read():
            return session if told == At(session.consumed.position) else None
        case Keep(name):
            return _unless_elsewhere(_kept(session, name), told)
        case Rewind(name):
            kept = dict(session.checkpoints).get(name)
            if kept is None:
                return session if told == Failure("UNKNOWN_CHECKPOINT") else None
            return _unless_elsewhere(replace(session, consumed=kept, last=None), told)


def _after_step(session: Session, start: int, tokens: tuple[int, ...], told: Told | None) -> Session | None:
    last = session.last
    applies = start == session.consumed.position
    repeats = not applies and last is not None and last[:2] == (start, tokens)
    match told:
        case None if applies:
            return replace(session, consumed=session.consumed.then(tokens), last=Last(start, tokens, None))
        case Reply() if applies:
            consumed = session.consumed.then(tokens)
            fits = consumed.gives(told, len(tokens))
            return replace(session, consumed=consumed, last=Last(start, tokens, told)) if fits else None
        case Reply() if repeats:
            assert last is not None
            if last.reply is not None:
                return session if told == last.reply else None  # bit for bit
            fits = session.consumed.gives(told, len(tokens))
            return replace(session, last=last._replace(reply=told)) if fits else None
        case Conflict(position) if not applies and not repeats and position == session.consumed.position:
            return session
    return None


def _kept(session: Session, name: str) -> Session:
    others = tuple(pair for pair in session.checkpoints if pair[0] != name)
    return replace(session, checkpoints=(*others, (name, session.consumed)))


def _unless_elsewhere(session: Session, told: Told | None) -> Session | None:
    return session if told is None or told == At(session.consumed.position) else None


class Verdict(NamedTuple):
    """What one session's history comes to.

    Attributes:
        num_acknowledged: Steps whose chunk was answered, each counted once.
        num_lost: Acknowledged steps that later answers do not know.
        num_twice: Steps that later answers have consumed once too often.
        problem: The first answer that nothing explains, in words; None: all are explained. Counting ends there.
    """

    num_acknowledged: int
    num_lost: int = 0
    num_twice: int = 0
    problem: str | None = None


def verify(operations: Iterable[Operation], empty: Sequence) -> Verdict:
    """Search for an order that explains the operations of one session, opened at position 0."""
    return _Search(sorted(operations, key=lambda each: each.began)).run(Session(empty))


Used = tuple[int, ...]
"""How many of each kind of unknown operations have taken effect."""


@dataclass(slots=True)
class _Frame:
    """A point of the search: what has happened (answered ones by their bits), and what may happen next.

    ``first`` is the place among the answered operations before which all have happened.
    """

    session: Session
    used: Used
    done: int = 0
    first: int = 0
    num_told: int = 0
    num_acknowledged: int = 0
    following: Iterator[_Frame] = field(default_factory=lambda: iter(()))


class _Search:
    """Depth first. Unknown operations that ask for the same are interchangeable, so that only their number counts."""

    def __init__(self, operations: Many[Operation]) -> None:
        self._told = [each for each in operations if each.told is not None]
        kinds: dict[tuple[type, Asked], list[Operation]] = {}
        for each in operations:
            if each.told is None and not isinstance(each.asked, Read):
                kinds.setdefault((type(each.asked), each.asked), []).append(each)
        self._unknown = list(kinds.values())
        # Where the search has been, and what had been used there. Who comes again with more can do nothing more.
        self._seen: dict[tuple[int, Session], list[Used]] = {}

    def run(self, start: Session) -> Verdict:
        path = [self._entered(_Frame(start, (0,) * len(self._unknown)))]
        deepest = path[0]
        while path:
            if path[-1].num_told == len(self._told):
                return Verdict(path[-1].num_acknowledged)
            following = next(path[-1].following, None)
            if following is None:
                path.pop()
                continue
            if self._is_new(following):
                path.append(self._entered(following))
            if following.num_told > deepest.num_told:
                deepest = following
        return self._diagnosed(deepest)

    def _is_new(self, frame: _Frame) -> bool:
        before = self._seen.setdefault((frame.done, frame.session), [])
        if any(all(map(operator.le, less, frame.used)) for less in before):
            return False
        before.append(frame.used)
        return True

    def _entered(self, frame: _Frame) -> _Frame:
        while frame.first < len(self._told) and frame.done >> frame.first & 1:
            frame.first += 1
        frame.following = self._followers(frame)
        return frame

    def _followers(self, frame: _Frame) -> Iterator[_Frame]:
        places, first_end = self._open(frame)
        for place in places:
            operation = self._told[place]
            if (session := after(frame.session, operation)) is not None:
                news = _num_newly_acknowledged(frame.session, session, operation)
                yield replace(
                    frame,
                    session=session,
                    done=frame.done | 1 << place,
                    num_told=frame.num_told + 1,
                    num_acknowledged=frame.num_acknowledged + news,
                )
        for kind, (number, operations) in enumerate(zip(frame.used, self._unknown, strict=True)):
            if number == len(operations) or operations[number].began > first_end:
                continue
            session = after(frame.session, operations[number])
            if session is not None and session != frame.session:
                used = (*frame.used[:kind], number + 1, *frame.used[kind + 1 :])
                yield replace(frame, session=session, used=used)

    def _open(self, frame: _Frame) -> tuple[list[int], float]:
        """The answered operations that may be next, and when the first of them ends: nothing that began after that
        can come before it.
        """
        found, first_end = [], float("inf")
        for place, operation in enumerate(itertools.islice(self._told, frame.first, None), frame.first):
            if operation.began > first_end:
                break
            if not frame.done >> place & 1:
                found.append(place)
                assert operation.ended is not None
                first_end = min(first_end, operation.ended)
        return found, first_end

    def _diagnosed(self, frame: _Frame) -> Verdict:
        blocked = sorted((self._told[place] for place in self._open(frame)[0]), key=lambda each: each.ended or 0)
        found = [(operation, *_error_of(frame.session, operation)) for operation in blocked]
        operation, num_lost, num_twice = max(found, key=lambda each: each[1] + each[2])
        return Verdict(frame.num_acknowledged, num_lost, num_twice, _in_words(frame.session, operation))


def _num_newly_acknowledged(before: Session, later: Session, operation: Operation) -> int:
    is_news = isinstance(operation.told, Reply) and before != later
    return len(operation.asked.tokens) if is_news and isinstance(operation.asked, Step) else 0


def _error_of(session: Session, operation: Operation) -> tuple[int, int]:
    """How many steps the answer shows to be lost, and consumed twice."""
    position = session.consumed.position
    match operation.told:
        case At(told) | Conflict(told):
            return max(0, position - told), max(0, told - position)
        case Failure("UNKNOWN_SESSION"):
            return position, 0
        case Reply() as reply if isinstance(operation.asked, Step):
            return _error_of_reply(session, operation.asked.tokens, reply)
    return 0, 0


def _error_of_reply(session: Session, tokens: tuple[int, ...], reply: Reply) -> tuple[int, int]:
    """As `_error_of`: what else must have been consumed for the model to say this, whatever position was told."""

    def said_after(consumed: Sequence) -> bool:
        final = consumed.then(tokens)
        return final.gives(reply._replace(position=final.position), len(tokens))

    repeated = [tokens] if session.last is None else [tokens, session.last.tokens]
    for again in repeated:
        if said_after(session.consumed.then(again)):
            return 0, len(again)
    shorter = itertools.islice(session.consumed.backwards(), 1, None)
    return next((number for number, consumed in enumerate(shorter, 1) if said_after(consumed)), 0), 0


def _in_words(session: Session, operation: Operation) -> str:
    return (
        f"session {operation.session} at {session.consumed.position}, remembering {session.last}: {operation.client} "
        f"asked {operation.asked} and was told {operation.told} (from {operation.began} to {operation.ended})"
    )
