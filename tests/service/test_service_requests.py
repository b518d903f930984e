"""Requests without a session, bad input, deadlines and the way out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import VOCABULARY
from tests.clock import ManualClock
from tests.service.serving import collect, serving, write_bundles
from tidegate.api import GenerationDone, Input, Sampling, SessionRequest, StepOptions
from tidegate.errors import (
    DeadlineExceededError,
    InvalidInputError,
    NotFoundError,
    NotSupportedError,
    TidegateError,
    TooLargeError,
    UnavailableError,
)
from tidegate.limits import MAX_SEQUENCES, MAX_STEPS, QUEUE_SHARE

ABC = Input(text="abc")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundles(tmp_path_factory.mktemp("bundles"))


BAD_INPUT = [
    ("tiny-lstm", Input(text=""), "EMPTY_SEQUENCE"),
    ("tiny-lstm", Input(tokens=[]), "EMPTY_SEQUENCE"),
    ("tiny-lstm", Input(text="a€c"), "UNKNOWN_TOKEN"),
    ("tiny-lstm", Input(tokens=[0, 65]), "TOKEN_OUT_OF_RANGE"),
    ("tiny-lstm", Input(tokens=[-1]), "TOKEN_OUT_OF_RANGE"),
    ("tiny-lstm", Input(values=np.zeros((1, 2))), "WRONG_KIND"),
    ("tiny-forecast", Input(values=np.zeros((0, 2))), "EMPTY_SEQUENCE"),
    ("tiny-forecast", Input(values=np.zeros((3, 5))), "WRONG_WIDTH"),
    ("tiny-forecast", Input(values=np.array([[1.0, np.nan]])), "NOT_FINITE"),
    ("tiny-forecast", Input(values=np.array([[np.inf, 1.0]])), "NOT_FINITE"),
    ("tiny-forecast", ABC, "WRONG_KIND"),
    ("tiny-stream", Input(values=np.array([[1.0], [2.0]])), "WRONG_WIDTH"),
]


@pytest.mark.parametrize(("model", "source", "reason"), BAD_INPUT)
async def test_bad_input_is_refused_and_disturbs_nothing(root: Path, model: str, source: Input, reason: str) -> None:
    good = ABC if model == "tiny-lstm" else Input(values=np.ones((3, 2)))
    async with serving(root) as service:
        session = (await service.open_session(SessionRequest(model))).id
        running = service.step(session, good)
        with pytest.raises(InvalidInputError) as caught:
            service.step(session, source)
        assert caught.value.reason == reason
        with pytest.raises(InvalidInputError, match=r"^sequence 1: ") as indexed:
            await service.predict(model, None, [good, source, good], StepOptions())
        assert (indexed.value.reason, indexed.value.details) == (reason, {"sequence": "1"})
        assert (await running).position == 3
        assert sum(model.num_steps for model in service.statistics().models) == 3


async def test_the_unknown_character_is_named_with_its_place(root: Path) -> None:
    async with serving(root) as service:
        with pytest.raises(InvalidInputError, match=r"sequence 0: unknown character '€' at step 1"):
            await service.predict("tiny-lstm", None, [Input(text="a€c")], StepOptions())


async def test_a_prediction_needs_a_model_and_a_sequence(root: Path) -> None:
    async with serving(root) as service:
        with pytest.raises(NotFoundError, match="unknown model 'nobody'"):
            await service.predict("nobody", None, [ABC], StepOptions())
        with pytest.raises(NotFoundError, match="has no version '7': it has 1"):
            await service.predict("tiny-lstm", "7", [ABC], StepOptions())
        with pytest.raises(InvalidInputError, match="at least one sequence"):
            await service.predict("tiny-lstm", None, [], StepOptions())
        with pytest.raises(InvalidInputError, match="top must be at least 0"):
            await service.predict("tiny-lstm", None, [ABC], StepOptions(top=-1))
        with pytest.raises(NotFoundError):
            service.generate("nobody", None, ABC, Sampling())


async def test_ragged_sequences_are_answered_in_order(root: Path) -> None:
    texts = ["a", VOCABULARY * 3, "bc", "a", "defgh" * 20]
    async with serving(root) as service:
        result = await service.predict("tiny-gru", "1", [Input(text=text) for text in texts], StepOptions())
        alone = [
            (await service.predict("tiny-gru", None, [Input(text=text)], StepOptions())).predictions[0]
            for text in texts
        ]
    assert (result.model, result.version) == ("tiny-gru", "1")
    assert [prediction.length for prediction in result.predictions] == [len(text) for text in texts]
    best = [[step[0].id for step in prediction.next or []] for prediction in result.predictions]
    assert best == [[step[0].id for step in prediction.next or []] for prediction in alone]


async def test_a_reply_that_would_be_too_large_is_refused_before_anything_runs(root: Path) -> None:
    async with serving(root, max_message_mb=0.25) as service:
        long, every = Input(text="abc" * 1000), StepOptions(top=65, every_step=True)
        session = (await service.open_session(SessionRequest("tiny-rnn"))).id
        with pytest.raises(TooLargeError) as caught:
            service.step(session, long, every)
        assert caught.value.reason == "REPLY_TOO_LARGE"
        with pytest.raises(TooLargeError):
            await service.predict("tiny-rnn", None, [long], every)
        assert (await service.step(session, long)).position == 3000


async def test_too_many_sequences_or_steps_are_refused_whole(root: Path) -> None:
    async with serving(root) as service:
        for sequences in ([ABC] * (MAX_SEQUENCES + 1), [Input(tokens=range(MAX_STEPS)), ABC]):
            with pytest.raises(TooLargeError) as caught:
                await service.predict("tiny-lstm", None, sequences, StepOptions())
            assert caught.value.reason == "REQUEST_TOO_LARGE"
        assert sum(model.num_steps for model in service.statistics().models) == 0


async def test_a_long_list_of_sequences_leaves_room_in_the_queue(root: Path) -> None:
    async with serving(root, max_queue=3 * QUEUE_SHARE) as service:
        session = (await service.open_session(SessionRequest("tiny-lstm"))).id
        predicting = asyncio.create_task(service.predict("tiny-lstm", None, [ABC] * (9 * QUEUE_SHARE), StepOptions()))
        queued = []
        for position in range(20):
            result = await service.step(session, Input(text="a"))
            assert result.position == position + 1
            queued.append(sum(model.queued for model in service.statistics().models))
        assert max(queued) == 3
        assert len((await predicting).predictions) == 9 * QUEUE_SHARE


async def test_where_a_sequence_fails_those_behind_it_are_not_run(root: Path) -> None:
    clock = ManualClock()
    async with serving(root, clock, max_queue=QUEUE_SHARE) as service:
        with pytest.raises(DeadlineExceededError):
            await service.predict("tiny-lstm", None, [ABC] * 9, StepOptions(), deadline=clock.now)
        assert sum(model.num_steps for model in service.statistics().models) == 0


async def test_a_prediction_whose_caller_leaves_runs_no_further(root: Path) -> None:
    async with serving(root, max_steps=16) as service:
        task = asyncio.create_task(service.predict("tiny-lstm", None, [Input(text="a" * 4000)], StepOptions()))
        for _ in range(20):
            await asyncio.sleep(0)
        assert sum(model.num_steps for model in service.statistics().models) > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await service.drain()
        assert sum(model.num_steps for model in service.statistics().models) < 4000


async def test_what_comes_too_late_is_not_run(root: Path) -> None:
    clock = ManualClock()
    async with serving(root, clock) as service:
        session = (await service.open_session(SessionRequest("tiny-lstm"))).id
        late, good = service.step(session, ABC, deadline=clock.now), service.step(session, ABC, deadline=clock.now + 1)
        with pytest.raises(DeadlineExceededError):
            await late
        assert (await good).position == 3
        with pytest.raises(DeadlineExceededError):
            await service.predict("tiny-lstm", None, [ABC], StepOptions(), deadline=clock.now - 1)
        with pytest.raises(DeadlineExceededError):
            await collect(service.generate("tiny-lstm", None, ABC, Sampling(), deadline=clock.now))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=0),
        Sampling(max_tokens=100_001),
        Sampling(temperature=-0.1),
        Sampling(temperature=float("nan")),
        Sampling(temperature=float("inf")),
        Sampling(top_k=-1),
        Sampling(top_p=0),
        Sampling(top_p=1.1),
        Sampling(top_p=float("nan")),
        Sampling(stop=("a", "")),
        Sampling(seed=-1),
        Sampling(seed=1 << 64),
    ],
)
async def test_bad_sampling_is_refused(root: Path, sampling: Sampling) -> None:
    async with serving(root) as service:
        with pytest.raises(InvalidInputError) as caught:
            await collect(service.generate("tiny-lstm", None, ABC, sampling))
        assert caught.value.reason == "BAD_SAMPLING"


async def test_only_models_of_tokens_generate(root: Path) -> None:
    async with serving(root) as service:
        for model in ("tiny-forecast", "tiny-stream"):
            with pytest.raises(NotSupportedError):
                await collect(service.generate(model, None, Input(values=np.ones((1, 2))), Sampling()))
        with pytest.raises(NotSupportedError):
            await collect(service.generate("tiny-forecast", None, None, Sampling()))
        with pytest.raises(InvalidInputError, match="needs a prompt"):
            await collect(service.generate("tiny-lstm", None, None, Sampling()))


async def test_extreme_but_valid_sampling_disturbs_nobody(root: Path) -> None:
    extremes = [Sampling(4, temperature=5e-324), Sampling(4, top_k=1 << 80), Sampling(4, top_p=5e-324)]
    async with serving(root) as service:
        jobs = [service.generate("tiny-lstm", None, ABC, sampling) for sampling in (*extremes, Sampling(4, seed=1))]
        ends = [done for _, done in await asyncio.gather(*map(collect, jobs))]
        assert [len(done.tokens) for done in ends] == [4] * 4
        assert ends[0].tokens == ends[2].tokens


async def test_stop_strings_and_seeds_through_the_whole_house(root: Path) -> None:
    async with serving(root) as service:
        _, free = await collect(service.generate("tiny-lstm", None, ABC, Sampling(40, seed=8)))
        stop = free.text[10:12]
        tokens, done = await collect(service.generate("tiny-lstm", None, ABC, Sampling(40, seed=8, stop=(stop,))))
        end = free.text.index(stop)
        assert done == GenerationDone(free.text[:end], free.tokens[: end + 2], "stop", 3 + end + 2)
        assert "".join(token.text for token in tokens) == done.text


async def test_without_a_seed_generations_differ(root: Path) -> None:
    async with serving(root) as service:
        runs = [await collect(service.generate("tiny-lstm", None, ABC, Sampling(30))) for _ in range(3)]
        assert len({done.text for _, done in runs}) == 3


async def test_draining_answers_what_is_there_and_refuses_what_comes(root: Path) -> None:
    async with serving(root) as service:
        session = (await service.open_session(SessionRequest("tiny-lstm"))).id
        running = service.step(session, Input(text="abc" * 200))
        await service.drain()
        assert (service.is_ready, service.is_draining) == (False, True)
        assert running.result().position == 600
        for attempt in (
            lambda: service.open_session(SessionRequest("tiny-lstm")),
            lambda: service.predict("tiny-lstm", None, [ABC], StepOptions()),
            lambda: anext(service.generate("tiny-lstm", None, ABC, Sampling())),
        ):
            with pytest.raises(UnavailableError) as caught:
                await attempt()
            assert caught.value.reason == "DRAINING"
        with pytest.raises(UnavailableError):
            service.step(session, ABC)


async def test_stopping_answers_everything_at_once(root: Path) -> None:
    async with serving(root) as service:
        session = (await service.open_session(SessionRequest("tiny-lstm"))).id
        waiting = [service.step(session, ABC), service.step(session, ABC)]
        await service.stop()
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, TidegateError) and error.reason == "DRAINING" for error in errors)
