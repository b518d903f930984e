"""The scheduling policy, pure: which waiting requests share the next run, for how many steps, and whether it pays to
wait for more.

All rows of a run have the same number of steps, because padding costs real time. Requests wait in one of three queues
by the steps they still have: single steps, short ones and long ones. The queues take turns, so a single step never
waits for more than one piece of each other kind, and a long prompt always advances. Within a queue rows run in
lockstep: as many steps as the shortest has left, then who is done leaves and the others come again, behind those that
wait.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from tidegate.engine.request import Request

SHORT = 2
LONG = 16
_CALM = 8

_MEMORY = 1 / 8
_WORTH = 0.25
_TRY_EVERY = 32


class Plan(NamedTuple):
    """The next run: ``length`` steps of each row of ``requests``; and those that fell out because their time or their
    caller is gone.
    """

    requests: list[Request]
    length: int
    dropped: list[Request]

    @property
    def num_rows(self) -> int:
        return sum([request.num_rows for request in self.requests])


class Scheduler:
    """Queues of waiting requests.

    Args:
        max_rows: Rows of one run.
        max_steps: Rows times steps of one run.
        max_piece: Steps of a long row in one run while single steps are about.
    """

    def __init__(self, max_rows: int, max_steps: int, max_piece: int = 68) -> None:
        self._max_rows = min(max_rows, max_steps)
        self._max_steps = max_steps
        self._max_piece = max_piece
        # Insertion-ordered sets: first come, first served, and removal anywhere costs nothing. The value is how many
        # rows the request counts for.
        self._queues: tuple[dict[Request, int], ...] = ({}, {}, {})
        self._num_rows = 0
        self._turn = 0
        self._calm = _CALM

    @property
    def max_rows(self) -> int:
        """Rows of one run, and of one request at most."""
        return self._max_rows

    @property
    def num_rows(self) -> int:
        """Rows that wait."""
        return self._num_rows

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def add(self, request: Request) -> None:
        """Let a request wait behind its like."""
        remaining = request.length - request.offset
        self._queues[0 if remaining < SHORT else 1 if remaining < LONG else 2][request] = request.num_rows
        self._num_rows += request.num_rows

    def discard(self, request: Request) -> None:
        """Take a waiting request out; one that does not wait is left alone."""
        for queue in self._queues:
            self._num_rows -= queue.pop(request, 0)

    def plan(self, now: float) -> Plan | None:
        """Take the next run's requests out of the queues, or return None where nothing waits."""
        for _ in self._queues:
            kind, self._turn = self._turn, (self._turn + 1) % len(self._queues)
            if self._queues[kind]:
                self._calm = min(self._calm + 1, _CALM) if kind == len(self._queues) - 1 else 0
                return self._take(self._queues[kind], now)
        return None

    def _take(self, queue: dict[Request, int], now: float) -> Plan:
        requests: list[Request] = []
        dropped: list[Request] = []
        length, room = self._piece, self._max_rows
        for request in queue:
            if request.reply.done() or (request.deadline is not None and request.deadline <= now):
                dropped.append(request)
                continue
            if request.num_rows > room:  # first come, first served: nobody behind it overtakes it
                break
            requests.append(request)
            room -= request.num_rows
            length = min(length, request.length - request.offset)
            if not room:
                break
        for request in (*requests, *dropped):
            self._num_rows -= queue.pop(request)
        num_rows = self._max_rows - room
        return Plan(requests, max(1, min(length, self._max_steps // max(1, num_rows))), dropped)

    @property
    def _piece(self) -> int:
        """Longer pieces while only long work has run for a while: fewer runs, and nobody waits."""
        return self._max_piece * 4 if self._calm == _CALM else self._max_piece


class BatchingWindow:
    """How long the next run is held back: while callers that were answered a moment ago are on their way back.

    A client that streams answers within milliseconds, so each that makes it into this run saves a run of its own. When
    all who step are here already, waiting gains nothing. Whether waiting pays is learned from whether it did: clients
    with a slow rate of their own never hurry back.

    A caller is known by its session, or by the group of sessions that it steps together. One without has no name:
    whoever comes next counts as the one who was answered first.

    Args:
        horizon: Seconds after which an answered caller is no longer expected back.
    """

    def __init__(self, horizon: float) -> None:
        self._horizon = horizon
        # Oldest first: a caller is put at the end whenever it is answered.
        self._away: dict[object, float] = {}
        self._nameless: deque[float] = deque()
        self._hope = 1.0
        self._num_declined = 0

    def on_answer(self, caller: object | None, now: float) -> None:
        """The caller got a reply and may come back soon."""
        if caller is None:
            self._nameless.append(now)
            return
        self._away.pop(caller, None)
        self._away[caller] = now

    def on_arrival(self, caller: object | None) -> None:
        """The caller is back, or its session is over."""
        if caller is not None:
            self._away.pop(caller, None)
        elif self._nameless:
            self._nameless.popleft()

    def num_expected(self, now: float) -> int:
        """How many are expected back."""
        away, nameless, oldest = self._away, self._nameless, now - self._horizon
        while away and away[first := next(iter(away))] <= oldest:
            del away[first]
        while nameless and nameless[0] <= oldest:
            nameless.popleft()
        return len(away) + len(nameless)

    def is_worthwhile(self) -> bool:
        """Whether to wait now: where it mostly paid lately, and once in a while to find out."""
        if self._hope >= _WORTH:
            return True
        self._num_declined = (self._num_declined + 1) % _TRY_EVERY
        return self._num_declined == 0

    def learn(self, *, came: bool) -> None:
        """Take note whether anybody came while waiting."""
        self._hope += _MEMORY * (came - self._hope)
