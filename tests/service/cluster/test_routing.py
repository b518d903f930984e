"""A session is served the same, whichever worker is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import numpy as np
import pytest

from tests.clock import START
from tests.service.cluster.conftest import Pair
from tests.service.fake_core import FakeCore
from tidegate.api import GeneratedToken, GenerationDone, Input, Sampling, SessionRequest, StepOptions
from tidegate.cluster.info import WorkerInfo
from tidegate.cluster.peers import Peers
from tidegate.cluster.router import Router
from tidegate.errors import (
    DeadlineExceededError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    PositionConflictError,
    TidegateError,
    UnavailableError,
)

INPUTS = [Input(text="abc"), Input(tokens=[4, 9]), Input(values=np.ones((2, 3), np.float32))]


def chosen_id(worker: WorkerInfo, number: int) -> str:
    """An id a client might choose that belongs to worker ``number``."""
    return next(name for i in count() if worker.owner(name := f"mine-{i}") == number)


async def text_of(events: AsyncIterator[GeneratedToken | GenerationDone]) -> str:
    last = [event async for event in events][-1]
    assert isinstance(last, GenerationDone)
    return last.text


@pytest.mark.parametrize("source", INPUTS, ids=["text", "tokens", "values"])
@pytest.mark.parametrize("options", [StepOptions(), StepOptions(3, every_step=True)], ids=["last", "every"])
async def test_a_step_says_the_same_near_and_far(pair: Pair, source: Input, options: StepOptions) -> None:
    pair.near.add_sessions(pair.id_of(0))
    pair.far.add_sessions(pair.id_of(1))
    near = await pair.face.step(pair.id_of(0), source, options, 0)
    far = await pair.face.step(pair.id_of(1), source, options, 0)
    assert far == near._replace(session=pair.id_of(1))
    assert [call.session for call in pair.near.steps] == [pair.id_of(0)]
    assert [call.session for call in pair.far.steps] == [pair.id_of(1)]


async def test_steps_that_overlap_stay_in_order(pair: Pair) -> None:
    pair.far.add_sessions(pair.id_of(1))
    steps = [pair.face.step(pair.id_of(1), Input(tokens=[token])) for token in range(50)]
    assert [(await step).position for step in steps] == list(range(1, 51))
    assert [call.input.tokens for call in pair.far.steps] == [[token] for token in range(50)]


async def test_a_step_that_fails_does_not_hold_up_the_next(pair: Pair) -> None:
    pair.far.add_sessions(pair.id_of(1))
    wrong, right = (pair.face.step(pair.id_of(1), Input(text="x"), StepOptions(), position) for position in (7, 0))
    with pytest.raises(PositionConflictError) as caught:
        await wrong
    assert caught.value.position == 0
    assert (await right).position == 1


async def test_a_step_that_its_caller_leaves_is_cancelled_far_away(pair: Pair) -> None:
    pair.far.add_sessions(pair.id_of(1))
    pair.far.is_holding = True
    step = pair.face.step(pair.id_of(1), Input(text="x"))
    await pair.far.submitted.get()
    step.cancel()
    assert await pair.far.cancelled.get() == pair.id_of(1)


async def test_a_deadline_travels(pair: Pair) -> None:
    pair.far.add_sessions(pair.id_of(1))
    pair.near.time.now += 1_000_000  # a clock belongs to a process: what travels is the seconds that are left
    now = pair.near.time.now
    await pair.face.step(pair.id_of(1), Input(text="x"), deadline=now + 20)
    deadline = pair.far.steps[0].deadline
    assert deadline is not None
    # gRPC rounds a timeout up to few digits on the wire.
    assert START < deadline <= START + 21
    with pytest.raises(DeadlineExceededError):
        await pair.face.step(pair.id_of(1), Input(text="x"), deadline=now)


async def test_an_error_far_away_keeps_its_facts(pair: Pair) -> None:
    pair.far.failures[pair.id_of(1)] = [OverloadedError("full", reason="QUEUE_FULL", retry_after=2.0)]
    with pytest.raises(OverloadedError) as caught:
        await pair.face.step(pair.id_of(1), Input(text="x"))
    assert (caught.value.message, caught.value.reason, caught.value.retry_after) == ("full", "QUEUE_FULL", 2.0)


async def test_generation_streams_from_far_away(pair: Pair) -> None:
    pair.far.add_sessions(pair.id_of(1))
    events = pair.face.generate_on_session(pair.id_of(1), Input(text="xy"), Sampling(max_tokens=3, seed=7), 0)
    assert await text_of(events) == "abc"
    asked = pair.far.generations[0]
    assert (asked.prompt, asked.sampling, asked.position) == (Input(text="xy"), Sampling(max_tokens=3, seed=7), 0)


async def test_a_generation_that_is_not_streamed_has_one_event(pair: Pair) -> None:
    pair.far.add_sessions(pair.id_of(1))
    sampling = Sampling(max_tokens=3)
    events = [event async for event in pair.face.generate_on_session(pair.id_of(1), None, sampling, is_streamed=False)]
    assert [type(event) for event in events] == [GenerationDone]


async def test_closing_a_generation_ends_it_far_away(pair: Pair) -> None:
    pair.far.add_sessions(pair.id_of(1))
    pair.far.is_holding = True
    events = pair.face.generate_on_session(pair.id_of(1), None, Sampling())
    assert isinstance(await anext(events), GeneratedToken)
    await pair.far.submitted.get()
    await events.aclose()
    assert await pair.far.cancelled.get() == pair.id_of(1)


async def test_a_session_without_an_id_is_opened_where_it_was_asked_for(pair: Pair) -> None:
    info = await pair.face.open_session(SessionRequest("echo"))
    assert list(pair.near.sessions) == [info.id]
    assert not pair.far.sessions


@pytest.mark.parametrize("number", [0, 1])
async def test_a_chosen_id_has_one_home(pair: Pair, number: int) -> None:
    home = (pair.near, pair.far)[number]
    request = SessionRequest("echo", "2", id=chosen_id(pair.worker, number), ttl_seconds=60, seed=3)
    info = await pair.face.open_session(request)
    assert home.opened == [request]
    assert await pair.face.get_session(info.id) == home.sessions[info.id] == info
    assert (await pair.face.step(info.id, Input(text="x"))).position == 1
    await pair.face.close_session(info.id)
    assert not home.sessions
    with pytest.raises(NotFoundError):
        await pair.face.get_session(info.id)


async def test_what_no_message_can_carry_is_invalid(pair: Pair) -> None:
    with pytest.raises(InvalidInputError, match="tokens must be a list of whole numbers from"):
        pair.face.step(pair.id_of(1), Input(tokens=[2**70]))
    with pytest.raises(InvalidInputError, match="top_k must be a whole number from 0 to"):
        pair.face.generate_on_session(pair.id_of(1), None, Sampling(top_k=-1))


async def test_lists_show_the_sessions_of_all_workers_page_by_page(pair: Pair) -> None:
    pair.near.add_sessions("a", "d", "e")
    pair.far.add_sessions("b", "c")
    page = await pair.face.list_sessions(3)
    assert [session.id for session in page.sessions] == ["a", "b", "c"]
    assert page.next_page_token == "c"  # noqa: S105 - no password
    page = await pair.face.list_sessions(10)
    assert [session.id for session in page.sessions] == ["a", "b", "c", "d", "e"]
    assert page.next_page_token == ""


async def test_what_no_session_decides_is_answered_here(pair: Pair) -> None:
    assert pair.face.is_ready
    assert (await pair.face.predict("echo", None, [Input(text="ab")], StepOptions())).predictions[0].length == 2
    assert len(pair.near.predicted) == 1
    assert not pair.far.predicted


async def test_a_sequence_that_is_restarted_is_told_so(pair: Pair) -> None:
    await pair.face.close_sequence("q~i~echo~5", is_restart=True)
    assert pair.near.closed == [("q~i~echo~5", True)]


async def test_a_reload_reaches_every_worker(pair: Pair) -> None:
    assert (await pair.face.reload()).loaded == ["echo/3"]
    assert (pair.near.num_reloads, pair.far.num_reloads) == (1, 1)


async def test_a_worker_that_is_away_is_told_without_its_address(pair: Pair) -> None:
    worker = WorkerInfo("test", 0, 3, pair.worker.folder)  # of three, so that nobody is at the third
    core = FakeCore()
    peers = Peers(worker, core.settings, core.clock)
    face = Router(core, peers)
    calls = [face.get_session("e~test-2~x"), face.step("e~test-2~x", Input(text="x"))]
    for call in calls:
        await away(call)
    await away(anext(face.generate_on_session("e~test-2~x", None, Sampling())))
    await peers.close()


async def away(call: object) -> None:
    with pytest.raises(TidegateError) as caught:
        await call  # type: ignore[misc]
    assert isinstance(caught.value, UnavailableError)
    assert caught.value.reason == "WORKER_AWAY"
    assert ".sock" not in caught.value.message
