"""The lanes of a columnar stream: small numbers that stand for sessions, so that a message need not name them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tidegate.api import Core, SessionGroup, SessionInfo
from tidegate.errors import InvalidInputError, TidegateError
from tidegate.faults import conceal
from tidegate.limits import MAX_LANES, MAX_STORE_SUMMARIES
from tidegate.slices import Slices, in_slices
from tidegate.v1 import predictor_pb2
from tidegate.wire.columns import fill_lane_errors, fit_lane_errors


class Lane(NamedTuple):
    """A session, its model and version, and, where it cannot be had, the error that answers every step of the lane."""

    session: str
    model: tuple[str, str] | None
    failure: TidegateError | None


Groups = list[tuple[SessionGroup, Sequence[int]]]
"""Sessions of a message, no more than one run takes, with their numbers in it."""


class Lanes:
    """The lanes of one stream, numbered below `MAX_LANES`."""

    def __init__(self, service: Core) -> None:
        self._service = service
        self._max_bytes = int(service.settings.max_message_mb * 2**20)
        self._lanes: dict[int, Lane] = {}
        self._refusals: dict[tuple[type[TidegateError], str], TidegateError] = {}
        # Streams send the same lanes again.
        self._last: tuple[list[int], Groups, dict[int, TidegateError]] | None = None

    async def attach(self, message: predictor_pb2.Attach) -> predictor_pb2.Attached:
        """Give the message's sessions their lanes, and tell each session's position or error."""
        first = message.first_lane
        numbers = range(first, first + len(message.sessions))
        if numbers.stop > MAX_LANES:
            raise InvalidInputError(f"lanes are numbered below {MAX_LANES}")
        attached = predictor_pb2.Attached(first_lane=first)
        lanes: list[list[Lane]] = []
        # In slices, one after the other: each is one question for the store, and others have their turn between them.
        for start in range(0, len(numbers), MAX_STORE_SUMMARIES):
            some = message.sessions[start : start + MAX_STORE_SUMMARIES]
            found = await self._find(some)
            lanes.append([self._lane(session, each) for session, each in zip(some, found, strict=True)])
            attached.positions.extend([0 if isinstance(each, TidegateError) else each.position for each in found])
            fill_lane_errors(attached, _failures(numbers[start:], found))
            await asyncio.sleep(0)
        fit_lane_errors(attached, self._max_bytes)
        self._last = None
        for start, each in zip(range(0, len(numbers), MAX_STORE_SUMMARIES), lanes, strict=True):
            self._lanes.update(zip(numbers[start:], each, strict=False))
            await asyncio.sleep(0)
        return attached

    async def take(self, numbers: list[int]) -> tuple[Groups, dict[int, TidegateError]]:
        """Return the sessions of these lanes, and the errors of lanes whose session could not be had, by row.

        Raises:
            InvalidInputError: A lane is unknown, two lanes are one session, or the models differ.
        """
        if self._last is None or self._last[0] != numbers:
            groups, failures = await in_slices(self._find_lanes(numbers))
            self._last = numbers, groups, failures
        return self._last[1], self._last[2]

    def _find_lanes(self, numbers: list[int]) -> Slices[tuple[Groups, dict[int, TidegateError]]]:
        try:
            lanes = [self._lanes[number] for number in numbers]
        except KeyError as error:
            raise InvalidInputError(f"lane {error} is not attached") from None
        yield
        if len({lane[0] for lane in lanes}) != len(lanes):
            raise InvalidInputError("two lanes of the message are one session")
        yield
        if len({lane[1] for lane in lanes} - {None}) > 1:
            raise InvalidInputError("the sessions of a message must be of one model and version")
        failures = {row: lane.failure for row, lane in enumerate(lanes) if lane.failure is not None}
        rows: Sequence[int] = range(len(lanes))
        if failures:
            rows = [row for row in rows if row not in failures]
        groups: Groups = []
        for start in range(0, len(rows), self._service.settings.max_rows):
            yield
            some = rows[start : start + self._service.settings.max_rows]
            groups.append((SessionGroup([lanes[row].session for row in some]), some))
        return groups, failures

    def _lane(self, session: str, found: SessionInfo | TidegateError) -> Lane:
        if isinstance(found, TidegateError):
            return Lane(session, None, self._refusal(found))
        return Lane(session, (found.model, found.version), None)

    def _refusal(self, error: TidegateError) -> TidegateError:
        """What steps of a lane are told that met the error; one for all lanes, for there may be 65,536."""
        key = type(error), error.reason
        if key not in self._refusals:
            self._refusals[key] = type(error)(
                f"the lane's session could not be had when it was attached: {error.reason}",
                reason=error.reason,
                retry_after=error.retry_after,
            )
        return self._refusals[key]

    async def _find(self, sessions: Sequence[str]) -> list[SessionInfo | TidegateError]:
        """Each session, or the error that answers every step of its lane."""
        try:
            return await self._service.get_sessions(sessions)
        except Exception as error:  # noqa: BLE001 - it is these lanes' answer
            return [conceal(error)] * len(sessions)


def _failures(
    numbers: Sequence[int], found: Sequence[SessionInfo | TidegateError]
) -> Iterator[tuple[int, TidegateError]]:
    for number, each in zip(numbers, found, strict=False):
        if isinstance(each, TidegateError):
            yield number, each
