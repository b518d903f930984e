"""The lanes of a columnar stream: small numbers that stand for sessions, so that a message need not name them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tidegate.api import Core, SessionInfo
from tidegate.errors import InvalidInputError, TidegateError
from tidegate.faults import conceal
from tidegate.limits import MAX_LANES, MAX_STORE_SUMMARIES
from tidegate.sessions.party import Party
from tidegate.slices import Slices, in_slices
from tidegate.v1 import predictor_pb2
from tidegate.wire.columns import fill_lane_errors, fit_lane_errors


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

    def __init__(self, service: Core) -> None:
        self._service = service
        self._max_bytes = int(service.settings.max_message_mb * 2**20)
        self._lanes: dict[int, Lane] = {}
        self._refusals: dict[tuple[type[TidegateError], str], TidegateError] = {}
        self._last: tuple[list[int], list[Lane], list[Group]] | None = None  # streams send the same lanes again

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

    async def take(self, numbers: list[int]) -> tuple[list[Lane], list[Group]]:
        """The lanes of these numbers, and how they may go together.

        Raises:
            InvalidInputError: A lane is unknown, two lanes are one session, or the models differ.
        """
        if self._last is None or self._last[0] != numbers:
            lanes, groups = await in_slices(self._find_lanes(numbers))
            self._last = numbers, lanes, groups
        return self._last[1], self._last[2]

    def _find_lanes(self, numbers: list[int]) -> Slices[tuple[list[Lane], list[Group]]]:
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
        groups = []
        for start in range(0, len(lanes), self._service.settings.max_rows):
            yield
            groups.append(_group(lanes, start, self._service.settings.max_rows))
        return lanes, groups

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


def _group(lanes: list[Lane], start: int, size: int) -> Group:
    some = lanes[start : start + size]
    is_whole = len(some) > 1 and all(lane.failure is None for lane in some)
    return Group(start, start + len(some), Party([lane.session for lane in some]) if is_whole else None)
