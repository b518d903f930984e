"""Generation: a chunk that feeds itself."""

from __future__ import annotations

import asyncio
from asyncio import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service.engine.house import POISON, VOCABULARY, House, Stream, house
from tidegate.api import GeneratedToken, GenerationDone, Sampling
from tidegate.engine.request import Generation
from tidegate.errors import (
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    PositionConflictError,
    SessionEndedError,
)

pytestmark = pytest.mark.usefixtures("arena")

TWELVE = Sampling(max_tokens=12, seed=5)
PROMPT = "abcabcabcabcabcabcabcabc"


def spelled(tokens: list[int]) -> str:
    return "".join(VOCABULARY[token] for token in tokens)


async def finished(stream: Stream) -> GenerationDone:
    done = await stream.reply
    assert stream.events[-1] == done
    return done


async def alone(sampling: Sampling = TWELVE, prompt: str = PROMPT) -> GenerationDone:
    """What an undisturbed generation without a session gives."""
    async with house() as it:
        return await finished(it.generate(None, prompt, sampling))


async def test_every_token_is_told_with_its_position_then_the_end() -> None:
    async with house() as it:
        stream = it.generate(None, "abc", TWELVE)
        done = await finished(stream)
    told = [event for event in stream.events if isinstance(event, GeneratedToken)]
    assert [event.position for event in told] == list(range(4, 16))
    assert [event.text for event in told] == [VOCABULARY[event.id] for event in told]
    assert done == GenerationDone(spelled(stream.tokens), stream.tokens, "length", 15)


async def test_a_seed_reproduces_and_another_differs() -> None:
    first, again, other = await alone(), await alone(), await alone(Sampling(max_tokens=12, seed=6))
    assert first == again
    assert first.tokens != other.tokens


async def test_the_most_probable_tokens_need_no_seed() -> None:
    assert await alone(Sampling(max_tokens=8, temperature=0, seed=1)) == await alone(
        Sampling(max_tokens=8, temperature=0, seed=2)
    )


async def test_on_a_session_it_generates_what_it_generates_without_and_consumes_it() -> None:
    async with house() as it:
        session = it.open()
        await it.step(session, PROMPT[:10])
        done = await finished(it.generate(session, PROMPT[10:], TWELVE))
        after = await it.step(session, "a")
        expected = await it.predict(f"{PROMPT}{done.text}a")
    assert done == await alone()
    assert (done.position, after.position) == (len(PROMPT) + 12, len(PROMPT) + 13)
    assert after.prediction.next == expected.next


async def test_without_a_seed_a_session_uses_its_own() -> None:
    async with house() as it:
        own, asked = it.open(seed=9), it.open(seed=1)
        first = await finished(it.generate(own, PROMPT, Sampling(max_tokens=12)))
        second = await finished(it.generate(asked, PROMPT, Sampling(max_tokens=12, seed=9)))
    assert first == second


@given(company=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9), st.booleans()), max_size=6))
def test_company_changes_nothing(company: list[tuple[int, int, bool]]) -> None:
    async def check() -> None:
        async with house(max_rows=4, max_steps=20) as it:
            streams = [
                it.generate(it.open() if on_session else None, "abcdefg"[: size % 7 + 1], Sampling(size, seed=seed))
                for size, seed, on_session in company
            ]
            mine = it.generate(None, PROMPT, TWELVE)
            steps = [it.step(it.open(), "abcabcabcabcabcabcabcabcabc"[:size]) for size, _, _ in company]
            done = await finished(mine)
            await asyncio.gather(*(stream.reply for stream in streams), *steps)
            assert done == await alone()

    asyncio.run(check())


async def test_without_a_prompt_it_goes_on_from_the_last_step() -> None:
    async with house() as it:
        session, other = it.open(), it.open()
        await it.step(session, PROMPT)
        done = await finished(it.generate(session, None, TWELVE, position=len(PROMPT)))
        await finished(it.generate(other, PROMPT, Sampling(max_tokens=5, seed=5)))
        rest = await finished(it.generate(other, None, Sampling(max_tokens=7, seed=5)))
    expected = await alone()
    assert done == expected
    assert (rest.tokens, rest.position) == (expected.tokens[5:], expected.position)


async def test_without_a_prompt_there_must_be_a_step() -> None:
    async with house() as it:
        session = it.open()
        with pytest.raises(InvalidInputError, match="needs a prompt") as caught:
            await it.generate(session, None, TWELVE).reply
        assert caught.value.reason == "EMPTY_SEQUENCE"
        assert (await it.step(session, "a", position=0)).position == 1


async def test_a_session_that_ended_is_told_even_without_a_prompt() -> None:
    async with house() as it:
        session = it.open()
        await it.step(session, "abc")
        it.end(session)
        with pytest.raises(SessionEndedError):
            await it.generate(session, None, TWELVE).reply


@pytest.mark.parametrize("max_tokens", [1, 2, 40])
async def test_it_ends_at_max_tokens(max_tokens: int) -> None:
    done = await alone(Sampling(max_tokens=max_tokens, seed=1))
    assert (len(done.tokens), done.finish_reason, done.position) == (max_tokens, "length", len(PROMPT) + max_tokens)


async def test_a_stop_string_ends_it_its_tokens_are_consumed_its_text_is_withheld() -> None:
    free = await alone(Sampling(max_tokens=30, seed=5))
    stop = free.text[6:9]
    end = free.text.index(stop)
    async with house() as it:
        session = it.open()
        stream = it.generate(session, PROMPT, Sampling(max_tokens=30, seed=5, stop=(stop, "zz")))
        done = await finished(stream)
        assert session.position == done.position
    assert done == GenerationDone(free.text[:end], free.tokens[: end + 3], "stop", len(PROMPT) + end + 3)
    told = [event for event in stream.events if isinstance(event, GeneratedToken)]
    assert "".join(event.text for event in told) == done.text
    assert [event.position for event in told] == list(range(len(PROMPT) + 1, done.position + 1))


async def test_what_is_held_for_a_stop_string_is_told_when_the_length_ends_it() -> None:
    free = await alone()
    done = await alone(Sampling(max_tokens=12, seed=5, stop=(free.text[-2:] + "!",)))
    assert done == free


# ---- cut off, and repeated


async def cut_off(it: House, run: int) -> Stream:
    """Cut a generation on the only session off in the given run, counted from its submission."""
    stream = it.generate(it.sessions[0], PROMPT, TWELVE, position=0)
    it.runner.during[len(it.runner.runs) + run] = stream.reply.cancel
    with pytest.raises(asyncio.CancelledError):
        await stream.reply
    await it.loop.wait_idle()
    return stream


@pytest.mark.parametrize("run", range(16))
async def test_a_repeat_replays_and_goes_on_as_if_nothing_had_happened(run: int) -> None:
    async with house(max_piece=3) as it:
        it.open()
        first = await cut_off(it, run)
        second = it.generate(it.sessions[0], PROMPT, TWELVE, position=0)
        done = await finished(second)
        runs = len(it.runner.runs)
        third = it.generate(it.sessions[0], PROMPT, TWELVE, position=0)
        assert await finished(third) == done
        assert len(it.runner.runs) == runs
    assert done == await alone()
    assert second.events[: len(first.events)] == first.events
    assert third.events == second.events


async def test_a_generation_can_be_cut_off_and_repeated_over_and_over() -> None:
    async with house() as it:
        session = it.open()
        for run in (2, 1, 0, 3, 1):
            await cut_off(it, run)
        done = await finished(it.generate(session, PROMPT, TWELVE, position=0))
        assert session.position == done.position
    assert done == await alone()


async def test_a_repeat_without_prompt_goes_on_too() -> None:
    async with house() as it:
        session = it.open()
        await it.step(session, PROMPT)
        first = it.generate(session, None, TWELVE, position=len(PROMPT))
        it.runner.during[len(it.runner.runs) + 4] = first.reply.cancel
        with pytest.raises(asyncio.CancelledError):
            await first.reply
        await it.loop.wait_idle()
        assert session.position == len(PROMPT) + len(first.tokens) == len(PROMPT) + 4
        second = it.generate(session, None, TWELVE, position=len(PROMPT))
        assert await finished(second) == await alone()


async def test_after_a_cut_off_another_chunk_may_go_on_from_what_was_told() -> None:
    async with house() as it:
        session = it.open()
        first = await cut_off(it, 6)
        position = len(PROMPT) + len(first.tokens)
        with pytest.raises(PositionConflictError, match=f"at position {position}"):
            await it.step(session, "a", position=len(PROMPT))
        after = await it.step(session, "a", position=position)
        expected = await it.predict(f"{PROMPT}{spelled(first.tokens)}a")
        assert after.prediction.next == expected.next
        with pytest.raises(PositionConflictError):
            await it.generate(session, PROMPT, TWELVE, position=0).reply


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [(PROMPT[:-1], TWELVE), (PROMPT, Sampling(max_tokens=13, seed=5)), (PROMPT, Sampling(max_tokens=12))],
    ids=["prompt", "length", "seed"],
)
async def test_a_repeat_that_differs_is_a_conflict(prompt: str, sampling: Sampling) -> None:
    async with house() as it:
        session = it.open()
        done = await finished(it.generate(session, PROMPT, TWELVE))
        with pytest.raises(PositionConflictError) as caught:
            await it.generate(session, prompt, sampling, position=0).reply
        assert caught.value.position == done.position


async def test_a_step_is_not_the_repeat_of_a_generation_nor_the_other_way_round() -> None:
    async with house() as it:
        session, other = it.open(), it.open()
        await finished(it.generate(session, PROMPT, TWELVE))
        await it.step(other, PROMPT)
        with pytest.raises(PositionConflictError):
            await it.step(session, PROMPT, position=0)
        with pytest.raises(PositionConflictError):
            await it.generate(other, PROMPT, TWELVE, position=0).reply


async def test_a_deadline_in_the_middle_keeps_what_was_told() -> None:
    async with house() as it:
        session = it.open()
        stream = it.generate(session, PROMPT, TWELVE, position=0, deadline=it.now + 5)
        it.runner.during[7] = lambda: setattr(it, "now", it.now + 6)
        with pytest.raises(DeadlineExceededError):
            await stream.reply
        assert 0 < len(stream.tokens) < 12
        assert not isinstance(stream.events[-1], GenerationDone)
        assert session.position == len(PROMPT) + len(stream.tokens)
        done = await finished(it.generate(session, PROMPT, TWELVE, position=0))
    assert done == await alone()


async def test_a_deadline_within_the_prompt_leaves_the_session_untouched() -> None:
    async with house(max_piece=4) as it:
        session = it.open()
        stream = it.generate(session, PROMPT, TWELVE, deadline=it.now + 5)
        it.runner.during[2] = lambda: setattr(it, "now", it.now + 6)
        with pytest.raises(DeadlineExceededError):
            await stream.reply
        assert (session.position, stream.events) == (0, [])


async def test_chunks_behind_a_generation_wait_for_its_end() -> None:
    async with house() as it:
        session = it.open()
        stream, behind = it.generate(session, PROMPT, TWELVE), it.step(session, "a")
        assert (await behind).position == len(PROMPT) + 13
        assert stream.reply.done()


async def test_closing_the_session_ends_its_generation_and_frees_everything() -> None:
    async with house() as it:
        session = it.open()
        stream = it.generate(session, PROMPT, TWELVE)
        it.runner.during[5] = lambda: it.end(session)
        with pytest.raises(SessionEndedError):
            await stream.reply
        assert it.arena.num_used == 0


async def test_a_generation_beside_a_failing_run_is_not_disturbed_unless_it_shares_it() -> None:
    async with house(max_rows=1) as it:
        stream = it.generate(None, PROMPT, TWELVE)
        failing = [it.step(it.open(), POISON) for _ in range(3)]
        done = await finished(stream)
        await asyncio.gather(*failing, return_exceptions=True)
    assert done == await alone()


async def test_a_generation_without_a_session_needs_a_free_slot_while_it_runs() -> None:
    async with house(slots=1) as it:
        assert await finished(it.generate(None, PROMPT, TWELVE)) == await alone()
        it.open()
        with pytest.raises(OverloadedError, match="the arena is full"):
            await it.generate(None, PROMPT, TWELVE).reply


@pytest.mark.parametrize("durable", [False, True])
async def test_options_are_remembered_by_a_digest(*, durable: bool) -> None:
    async with house() as it:
        session = it.open(durable=durable)
        asked = [
            Generation(session, (), Sampling(stop=stop), 0, None, None, Future(), vocabulary=VOCABULARY, emit=None)
            for stop in (("x" * 64,), ("x" * 64,), ("y" * 64,))
        ]
        first, same, other = (request.fingerprint(0) for request in asked)
    assert isinstance(first, bytes)
    assert len(first) == 32
    assert first == same != other
