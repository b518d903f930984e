"""The lanes of a columnar stream: small numbers that stand for sessions, so that a message need not name them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from tidegate.errors import InvalidInputError, TidegateError
from tidegate.faults import conceal
from tidegate.limits import MAX_LANES
from tidegate.sessions.party import Party
from tidegate.v1 import predictor_pb2
from tidegate.wire.columns import fill_lane_errors

if TYPE_CHECKING:
    from tidegate.service import Service


class Lane(NamedTuple):
    """A session, its model and version, and, where it cannot be had, the error that answers every step of the lane."""

    session: str
    model: tuple[str, str] | None
    failure: TidegateError | None


class Group(NamedTuple):
    """Neighbouring lanes of a message, from ``start`` to ``stop``, no more than one run takes; ``party`` is None where
    one of them cannot be had, or there is but one.
    """

    start: int
    stop: int
    party: Party | None


class Lanes:
    """The lanes of one stream, numbered below `MAX_LANES`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lanes: dict[int, Lane] = {}
        self._last: tuple[list[int], list[Lane], list[Group]] | None = None  # streams send the same lanes again

    async def attach(self, message: predictor_pb2.Attach) -> predictor_pb2.Attached:
        """Give the message's sessions their lanes, and tell each session's position or error."""
        first = message.first_lane
        numbers = range(first, first + len(message.sessions))
        if numbers.stop > MAX_LANES:
            raise InvalidInputError(f"lanes are numbered below {MAX_LANES}")
        found = await asyncio.gather(*(self._find(session) for session in message.sessions))
        attached = predictor_pb2.Attached(first_lane=first, positions=[position for _, position in found])
        self._last = None
        self._lanes.update(zip(numbers, (lane for lane, _ in found), strict=True))
        failures = [
            (number, lane.failure) for number, (lane, _) in zip(numbers, found, strict=True) if lane.failure is not None
        ]
        fill_lane_errors(attached, failures)
        return attached

    def take(self, numbers: list[int]) -> tuple[list[Lane], list[Group]]:
        """The lanes of these numbers, and how they may go together.

        Raises:
            InvalidInputError: A lane is unknown, two lanes are one session, or the models differ.
        """
        if self._last is None or self._last[0] != numbers:
            lanes = self._check(numbers)
            self._last = numbers, lanes, _grouped(lanes, self._service.settings.max_rows)
        return self._last[1], self._last[2]

    def _check(self, numbers: list[int]) -> list[Lane]:
        try:
            lanes = [self._lanes[number] for number in numbers]
        except KeyError as error:
            raise InvalidInputError(f"lane {error} is not attached") from None
        if len({lane[0] for lane in lanes}) != len(lanes):
            raise InvalidInputError("two lanes of the message are one session")
        if len({lane[1] for lane in lanes} - {None}) > 1:
            raise InvalidInputError("the sessions of a message must be of one model and version")
        return lanes

    async def _find(self, session: str) -> tuple[Lane, int]:
        """The lane of a session, and its position."""
        try:
            info = await self._service.get_session(session)
        except Exception as error:  # noqa: BLE001 - it is this lane's answer
            return Lane(session, None, conceal(error)), 0
        return Lane(session, (info.model, info.version), None), info.position


def _grouped(lanes: list[Lane], size: int) -> list[Group]:
    groups = []
    for start in range(0, len(lanes), size):
        some = lanes[start : start + size]
        is_whole = len(some) > 1 and all(lane.failure is None for lane in some)
        groups.append(Group(start, start + len(some), Party([lane.session for lane in some]) if is_whole else None))
    return groups
