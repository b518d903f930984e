"""What clients asked and what they were told, in the order in which it happened.

One event loop drives all clients, so a counter is the clock: an operation that ended below another's beginning was over
before that began. Knows nothing of servers, nor of which histories are right.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias


class Step(NamedTuple):
    """A chunk of ``tokens`` sent with the position ``start``."""

    start: int
    tokens: tuple[int, ...]


class Read(NamedTuple):
    """Where is the session?"""


class Keep(NamedTuple):
    """Keep where the session is, under a name."""

    checkpoint: str


class Rewind(NamedTuple):
    """Take the session back to a checkpoint."""

    checkpoint: str


Asked: TypeAlias = Step | Read | Keep | Rewind


class Reply(NamedTuple):
    """The answer to a chunk: the position after it and what the model says there, in float32.

    ``best`` is the most probable next token, ``surprise`` the mean over the chunk, in bits.
    """

    position: int
    surprise: float
    best: int
    probability: float


class At(NamedTuple):
    """The session is at ``position``: the answer to everything but a chunk."""

    position: int


class Conflict(NamedTuple):
    """Refused: the session is at ``position``, which is not where the chunk starts."""

    position: int


class Failure(NamedTuple):
    """An error that no fault excuses: the session is unknown, an internal error."""

    reason: str


Told: TypeAlias = Reply | At | Conflict | Failure

KINDS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (Step, Read, Keep, Rewind, Reply, At, Conflict, Failure)
}


@dataclass(slots=True, eq=False)
class Operation:
    """One request and its answer. ``told`` None: the outcome is unknown, it may take effect at any time or never."""

    session: str
    client: str
    asked: Asked
    began: int
    ended: int | None = None
    told: Told | None = None


@dataclass(slots=True)
class History:
    """All operations, those under way too.

    Attributes:
        num_ended: Operations that are over, whatever their outcome: what faults are timed by.
        unavailable: Why outcomes are unknown, counted by reason.
    """

    operations: list[Operation] = field(default_factory=list)
    num_ended: int = 0
    unavailable: Counter[str] = field(default_factory=Counter)
    _clock: Iterator[int] = field(default_factory=itertools.count)
    _waiting: list[tuple[int, int, asyncio.Future[None]]] = field(default_factory=list)

    def begin(self, session: str, client: str, asked: Asked) -> Operation:
        operation = Operation(session, client, asked, next(self._clock))
        self.operations.append(operation)
        return operation

    def end(self, operation: Operation, told: Told) -> None:
        operation.ended, operation.told = next(self._clock), told
        self._count()

    def lose(self, operation: Operation, reason: str) -> None:
        """Its outcome is not known and never will be."""
        self.unavailable[reason] += 1
        self._count()

    async def pass_by(self, number: int) -> None:
        """Return when that many more operations have ended."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self.num_ended + number, next(self._clock), future))
        await future

    def by_session(self) -> dict[str, list[Operation]]:
        """The operations of each session, by their beginnings."""
        found: dict[str, list[Operation]] = {}
        for operation in self.operations:
            found.setdefault(operation.session, []).append(operation)
        return found

    def _count(self) -> None:
        self.num_ended += 1
        while self._waiting and self._waiting[0][0] <= self.num_ended:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)


def write(path: Path, operations: Iterable[Operation]) -> None:
    """Write operations as JSON lines."""
    path.write_text("".join(json.dumps(_encoded(operation)) + "\n" for operation in operations))


def read(path: Path) -> list[Operation]:
    """The inverse of `write`."""
    return [_decoded(json.loads(line)) for line in path.read_text().splitlines()]


def _encoded(operation: Operation) -> dict[str, Any]:
    fields = asdict(operation)
    for name in ("asked", "told"):
        message = getattr(operation, name)
        fields[name] = None if message is None else [type(message).__name__, *message]
    return fields


def _decoded(fields: dict[str, Any]) -> Operation:
    for name in ("asked", "told"):
        if fields[name] is not None:
            kind, *values = fields[name]
            fields[name] = KINDS[kind](*(tuple(value) if isinstance(value, list) else value for value in values))
    return Operation(**fields)
