"""One row that cannot be read, scored, stored or answered fails itself: whoever shares its run is told what they would
be told alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.service.engine.house import POISON, House, house
from tests.service.engine.test_durable import Records
from tidegate.api import LAST_POSITION, Predictions, Sampling, StepOptions, Tensor
from tidegate.codecs.scores import Scores
from tidegate.codecs.tokens import Tokens
from tidegate.engine.output import Batch
from tidegate.engine.quality import Quality
from tidegate.engine.session import Session
from tidegate.errors import FailedPreconditionError, InternalError, InvalidInputError, PositionConflictError
from tidegate.watchdog import RUN_TIMEOUT, RunLimit

pytestmark = pytest.mark.usefixtures("arena")

BAD = 4
LAST_STEP = StepOptions()
"""The token of "d" plus the state of a first step."""


class Unreadable(Tokens):
    """Cannot read a run that holds the row of a first step of "d"."""

    def _check(self, outputs: Mapping[str, Tensor], rows: Sequence[int] | slice) -> None:
        if (np.asarray(outputs["surprise"])[rows, -1] == BAD).any():
            raise OverflowError("no such number")

    def read(self, outputs: Mapping[str, Tensor], rows: slice | Sequence[int], length: int, top: int) -> Predictions:
        self._check(outputs, rows)
        return super().read(outputs, rows, length, top)

    def cut(self, outputs: Mapping[str, Tensor], row: int, options: StepOptions, *, is_last: bool) -> dict[str, Tensor]:
        self._check(outputs, [row])
        return super().cut(outputs, row, options, is_last=is_last)


def kinds(results: Sequence[object]) -> list[str]:
    return [type(result).__name__ for result in results]


async def step_each(
    it: House, sessions: Sequence[Session], text: str, options: StepOptions = LAST_STEP
) -> list[object]:
    steps = [it.step(session, character, 0, options) for session, character in zip(sessions, text, strict=True)]
    return [*await asyncio.gather(*steps, return_exceptions=True)]


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("options", [StepOptions(), StepOptions(every_step=True)])
async def test_a_row_that_cannot_be_read_fails_itself(durable: bool, options: StepOptions) -> None:
    records = Records()
    async with house(kind=Unreadable, committer=records) as it:
        records.it = it
        sessions = [it.open(durable=durable) for _ in range(3)]
        found = await step_each(it, sessions, "adb", options)
        assert kinds(found) == ["StepResult", "InternalError", "StepResult"]
        assert [session.position for session in sessions] == [1, 0, 1]
        assert (await it.step(sessions[1], "a", 0, options)).position == 1
        assert len(it.runner.runs) == 2


@dataclass
class Slow:
    """Runs by number, from 0, that are ended when they have taken all the time that they may; what each could take."""

    limit: RunLimit
    numbers: Sequence[int]
    taken: list[float] = field(default_factory=list)

    def put_into(self, it: House) -> None:
        def take() -> None:
            self.taken.append(self.limit.seconds)
            if len(self.taken) - 1 in self.numbers:
                it.now += self.limit.seconds
                raise InternalError("the run was ended", reason=RUN_TIMEOUT)

        it.runner.during = dict.fromkeys(range(10), take)


async def test_a_row_that_never_ends_fails_itself_and_the_tries_share_the_time_of_one_run() -> None:
    slow = Slow(RunLimit(30, 30, lambda: 0.0), [0, 2])
    async with house(limit=slow.limit) as it:
        slow.put_into(it)
        found = await step_each(it, [it.open() for _ in range(3)], "abc")
        assert kinds(found) == ["StepResult", "InternalError", "StepResult"]
        assert isinstance(found[1], InternalError)
        assert found[1].reason == RUN_TIMEOUT
        assert slow.taken == pytest.approx([30, 10, 15, 15], abs=0.1)
        assert (await it.step(it.sessions[1], "b", 0)).position == 1
        assert slow.taken[-1] == 30


async def test_rows_of_a_graph_that_never_ends_all_fail_within_the_time_of_two_runs() -> None:
    slow = Slow(RunLimit(30, 30, lambda: 0.0), range(10))
    async with house(limit=slow.limit) as it:
        slow.put_into(it)
        began = it.now
        assert kinds(await it.step_rows([it.open() for _ in range(4)], "abcd").results()) == ["InternalError"] * 4
        assert it.now - began == pytest.approx(60, abs=0.1)
        assert it.engine.stats.num_failed_runs == 4


async def test_a_lane_that_cannot_be_read_fails_itself() -> None:
    async with house(kind=Unreadable) as it:
        sessions = [it.open() for _ in range(4)]
        assert kinds(await it.step_rows(sessions, "abdc").results()) == [
            "StepResult",
            "StepResult",
            "InternalError",
            "StepResult",
        ]
        assert [session.position for session in sessions] == [1, 1, 0, 1]
        assert kinds(await it.step_rows(sessions, "aaaa").results()) == ["StepResult"] * 4


class Short(Quality):
    """Cannot look at anything."""

    def take(self, batch: Batch) -> None:
        raise OverflowError("the average is too large")


async def test_a_fault_of_who_watches_the_models_quality_costs_nobody_the_answer() -> None:
    async with house(quality=Short(Scores(surprise="surprise"), None, "fake")) as it:
        sessions = [it.open() for _ in range(2)]
        assert kinds(await step_each(it, sessions, "ab")) == ["StepResult"] * 2
        assert kinds(await it.step_rows(sessions, "ab").results()) == ["StepResult"] * 2


async def test_a_row_that_the_graph_refuses_is_its_senders_fault_and_no_failure_of_the_engine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with house() as it:
        it.runner.failure = InvalidInputError("out of range", reason="REFUSED_BY_MODEL")
        sessions = [it.open() for _ in range(3)]
        found = await step_each(it, sessions, f"a{POISON}b")
        assert kinds(found) == ["StepResult", "InvalidInputError", "StepResult"]
        assert it.engine.stats.num_failed_runs == 0
    assert caplog.messages == []


async def test_a_run_that_fails_is_told_by_a_number_and_logged_under_it(caplog: pytest.LogCaptureFixture) -> None:
    async with house() as it:
        (found,) = await step_each(it, [it.open()], POISON)
        assert isinstance(found, InternalError)
        assert it.engine.stats.num_failed_runs == 1
    assert "poison" not in found.message
    assert f"fault {found.details['fault']}: a run of 1 rows failed" in caplog.text
    assert "ArithmeticError: poison" in caplog.text


class Broken:
    """A caller that cannot be answered."""

    def done(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        raise RuntimeError("broken")

    set_exception = set_result


async def test_a_caller_that_cannot_be_answered_keeps_nobody_from_their_answer() -> None:
    async with house() as it:
        broken, sound = it.open(), it.open()
        await asyncio.gather(it.step(broken, "a"), it.step(sound, "a"))
        first, second = it.step(broken, "b"), it.step(sound, "b")
        broken.queue[0].reply = Broken()
        behind = it.step(broken, "c")
        assert (await second).position == 2
        assert (await behind).position == 3
        first.cancel()


async def test_a_generation_whose_token_cannot_be_drawn_fails_itself() -> None:
    records = Records()
    async with house(committer=records) as it:
        records.it = it
        for durable in (False, True):
            good, bad = it.open(durable=durable), it.open(durable=durable)
            undrawable = Sampling(max_tokens=3, top_p="none")  # type: ignore[arg-type]
            streams = [it.generate(good, "ab", Sampling(max_tokens=3)), it.generate(bad, "ab", undrawable)]
            found = await asyncio.gather(*(stream.reply for stream in streams), return_exceptions=True)
            assert kinds(found) == ["GenerationDone", "InternalError"]


# ---- the last position


async def test_nothing_steps_beyond_the_last_position() -> None:
    async with house() as it:
        near, other = it.open(), it.open()
        near.position = LAST_POSITION - 2
        with pytest.raises(FailedPreconditionError) as caught:
            await it.step(near, "abc")
        assert caught.value.reason == "LAST_POSITION"
        stream = it.generate(near, "a", Sampling(max_tokens=2))
        with pytest.raises(FailedPreconditionError):
            await stream.reply
        assert (await it.step(near, "ab", LAST_POSITION - 2)).position == LAST_POSITION
        found = await it.step_rows([near, other], "ab").results()
        assert kinds(found) == ["FailedPreconditionError", "StepResult"]


async def test_a_position_that_no_session_comes_to_is_no_conflict() -> None:
    async with house() as it:
        session = it.open()
        with pytest.raises(PositionConflictError):
            await it.step(session, "a", LAST_POSITION)
        for position in (LAST_POSITION + 1, 10**5000):
            with pytest.raises(InvalidInputError) as caught:
                await it.step(session, "a", position)
            assert caught.value.reason == "BAD_POSITION"
