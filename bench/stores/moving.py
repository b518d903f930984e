"""A session moves: what its first step on another replica costs beyond a step where it is at home.

Two servers over one store, a step at a time. Each session is stepped at the first server, then at the second, which
has not met it, and at the second again; at last at the first, whose copy is old by then. What the second step at the
second took less than the first one is what moving added.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from statistics import median, quantiles
from typing import NamedTuple

import grpc

from bench.measure import Goal, Plan, Rounds, Row, absolute, interleaved, skipped
from bench.processes import Running, server
from bench.sessions import open_sessions
from bench.stores.places import PLACES, MissingError
from tidegate.v1 import sessions_pb2, sessions_pb2_grpc

GOAL = Goal("≤ 5 ms more than a step at home, at the median", 5.0, is_least=False)
SESSIONS = 100
TOKENS = [7]


class Moves(NamedTuple):
    """Milliseconds of each session's step: at home, the first elsewhere, and the first back at an old copy."""

    home: Sequence[float]
    moved: Sequence[float]
    back: Sequence[float]

    @property
    def added(self) -> float:
        return median(moved - home for moved, home in zip(self.moved, self.home, strict=True))

    @property
    def added_back(self) -> float:
        return median(back - home for back, home in zip(self.back, self.home, strict=True))


def moving(plan: Plan) -> Iterator[Row]:
    """On each store that replicas can share."""
    for name in ("sqlite", "redis"):
        try:
            yield _row(name, plan)
        except MissingError as error:
            yield skipped(f"store-move-{name}", "ms", GOAL.text, str(error))


def _row(name: str, plan: Plan) -> Row:
    with ExitStack() as stack:
        place = stack.enter_context(PLACES[name]())
        one, other = (stack.enter_context(server(*place.flags)) for _ in range(2))
        move_all(one, other)  # what is done for the first time is not what is measured
        rounds = interleaved(plan.rounds, {"moves": lambda: move_all(one, other)})
    return row_of(name, rounds)


def row_of(name: str, rounds: Rounds[Moves]) -> Row:
    return absolute(
        f"store-move-{name}",
        "ms",
        GOAL,
        rounds.spread("moves", lambda moves: moves.added),
        home_ms=rounds.median("moves", lambda moves: median(moves.home)),
        moved_ms=rounds.median("moves", lambda moves: median(moves.moved)),
        moved_p99_ms=rounds.median("moves", lambda moves: quantiles(moves.moved, n=100)[98]),
        added_back_at_an_old_copy_ms=rounds.median("moves", lambda moves: moves.added_back),
        sessions_a_round=SESSIONS,
        load_average=os.getloadavg()[0],
    )


def move_all(one: Running, other: Running) -> Moves:
    """Move new sessions from one server to another and back."""
    ids = open_sessions(one, SESSIONS, durable=True)
    with _channel(one) as here, _channel(other) as there:
        home, moved, back = [], [], []
        first, second = (sessions_pb2_grpc.SessionsStub(channel) for channel in (here, there))
        for id_ in ids:
            _step(first, id_, 0)
            moved.append(_step(second, id_, 1))
            home.append(_step(second, id_, 2))
            back.append(_step(first, id_, 3))
    return Moves(home, moved, back)


def _step(stub: sessions_pb2_grpc.SessionsStub, id_: str, position: int) -> float:
    """Make a step; returns how many milliseconds it took."""
    request = sessions_pb2.StepRequest(session=id_, position=position, tokens=TOKENS)
    started = time.perf_counter()
    reply = stub.Step(request)
    taken = (time.perf_counter() - started) * 1000
    assert reply.position == position + 1, reply
    return taken


def _channel(target: Running) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{target.port('grpc')}")
