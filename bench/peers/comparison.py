"""Rows of peers: each peer and tidegate's gRPC stream in turns, 64 sessions, a step a message."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distributions
from itertools import product
from operator import attrgetter
from typing import Any

from bench.answers import check_answers
from bench.client import Figures, LoadError, Options, drive
from bench.measure import Goal, Plan, Rounds, Row, against, interleaved, skipped
from bench.peers.catalogue import HERE, Peer, Way, serving
from bench.peers.running import PeerError, family_of
from bench.processes import Running, server
from bench.sessions import sessions

BEST = "grpc-stream-64-peers"
GOAL = Goal("≥ 6 times the best Python peer", 6.0)
SESSIONS = 64
FEWER_SESSIONS = (1, 16)
CHECKED_SESSIONS = 8
"""Enough to be batched; of more, some peers leave many without an answer for the moment that the check takes."""
NO_TARGET = "none, for comparison"
FIGURES = {
    "p50": "p50_us",
    "p99": "p99_us",
    "server_us_per_step": "us_per_step",
    "server_cpu": "cpu",
    "client_cpu": "client_cpu",
}
"""What is told of both sides beside their rates: an attribute of `Figures`, and its name with the unit."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured of a peer: ``tidegate`` and ``peer`` in turns, and further figures."""

    rounds: Rounds[Figures]
    details: Mapping[str, Any]


def peer_rows(peers: Iterable[Peer], plan: Plan) -> Iterator[Row]:
    """A row for each peer, whether it can be measured or not, and at last one for the best of them."""
    measured: dict[str, Rounds[Figures]] = {}
    for peer in peers:
        name = f"peer-{peer.name}"
        try:
            with serving(peer) as theirs:
                comparison = compare(peer.way, theirs, family_of(theirs.pid), plan)
        except (PeerError, LoadError) as error:
            yield skipped(name, "steps/s", NO_TARGET, str(error))
            continue
        measured[peer.name] = comparison.rounds
        yield row_of(name, f"{_version(peer)}, {peer.way.interface}.", comparison)
    yield best_row(measured)


def best_row(measured: dict[str, Rounds[Figures]]) -> Row:
    """Ours against the best peer: by its ratio, since each was measured at another time."""
    if not measured:
        return skipped(BEST, "steps/s", GOAL.text, "no peer could be measured")
    best = max(measured, key=lambda name: measured[name].ratio("peer", "tidegate", steps_per_s).median)
    rounds = measured[best]
    return against(BEST, "steps/s", GOAL, rounds, ("tidegate", "peer"), steps_per_s, best_peer=best)


def steps_per_s(figures: Figures) -> float:
    return figures.steps_per_s


def compare(way: Way, theirs: Running, watched: Sequence[int], plan: Plan) -> Comparison:
    """Check the peer's answers, then drive it and ours; ``watched`` are its processes.

    Raises:
        LoadError: Its answers are not the model's, or some are errors.
    """
    load: Options = {**plan.load, **way.load, "watch": watched}
    checked = {**load, "connections": CHECKED_SESSIONS}
    num_checked = check_answers(way.mode, theirs, new_names(CHECKED_SESSIONS), checked)
    fewer = {f"peer_per_s_of_{count}": _drive_peer(way, theirs, load, count).steps_per_s for count in FEWER_SESSIONS}
    with server() as ours:
        rounds = interleaved(
            plan.rounds,
            {
                "tidegate": partial(_drive_ours, ours, plan),
                "peer": partial(_drive_peer, way, theirs, load, SESSIONS),
            },
        )
    method = {"rounds": plan.rounds, "seconds_a_round": plan.seconds, "answers_checked": num_checked}
    return Comparison(rounds, {**fewer, "ready_after_s": theirs.ready_after, **method})


def _drive_peer(way: Way, theirs: Running, load: Options, count: int) -> Figures:
    return drive(way.mode, theirs, {**load, "connections": count}, new_names(count))


def _drive_ours(ours: Running, plan: Plan) -> Figures:
    with sessions(ours, SESSIONS) as ids:
        return drive("stream", ours, plan.load | {"connections": SESSIONS}, ids)


def new_names(count: int) -> list[str]:
    """Sessions that a peer has not seen: they begin with their first step."""
    return [uuid.uuid4().hex for _ in range(count)]


def row_of(name: str, note: str, comparison: Comparison) -> Row:
    """The peer's line: its steps a second, held against tidegate's, with no target."""
    rounds, details = comparison.rounds, dict(comparison.details)
    for side, (figure, unit) in product(rounds.names, FIGURES.items()):
        details[f"{side}_{unit}"] = rounds.median(side, attrgetter(figure))
    value, floor = rounds.median("peer", steps_per_s), rounds.median("tidegate", steps_per_s)
    ratio = rounds.ratio("peer", "tidegate", steps_per_s)
    bounds = (ratio.low, ratio.high)
    return Row(name, value, "steps/s", floor, ratio.median, bounds, NO_TARGET, None, None, details, note)


def _version(peer: Peer) -> str:
    """The peer's package as it is installed in its own environment."""
    folders = [str(folder) for folder in (HERE / peer.name / ".venv" / "lib").glob("python*/site-packages")]
    found = next(iter(distributions(name=peer.package, path=folders)), None)
    return f"{peer.package} {found.version if found else '(version unknown)'}"
