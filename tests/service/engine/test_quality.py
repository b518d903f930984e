"""What counts towards a model's surprise and its charts, however the steps come: whole, cut, interleaved, stored."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service.engine.house import VOCABULARY, House, house, whole
from tests.service.engine.test_durable import Records
from tidegate.api import Drift, FloatArray, Prediction, Sampling, StepOptions, Tensor
from tidegate.bundle import DriftCalibration, Limit
from tidegate.codecs.scores import Band, Ranges, Scores
from tidegate.drift import Chart, ChartState
from tidegate.engine.output import Batch
from tidegate.engine.quality import Quality
from tidegate.engine.request import chunk
from tidegate.engine.session import LastReply, Session

BLOCK = 4
DRIFT = DriftCalibration(
    block=BLOCK,
    factor=0.5,
    mean=48.0,
    spread=10.0,
    warning=Limit(width=0.5, run_length=1),
    drift=Limit(width=1.5, run_length=1),
    autocorrelation=0.0,
    blocks=10,
    data="made up",
)
LETTERS = VOCABULARY[:-1]
TEXT = "abcdefgabbacddefgabcagfedcbaabcdefg"


class Recorder(Chart):
    """A chart that remembers the means of the blocks that it takes in for the model, which has no session."""

    def __init__(self) -> None:
        super().__init__(DRIFT)
        self.means: list[float] = []

    def advance(self, charted: ChartState, mean: float) -> ChartState:
        self.means.append(mean)
        return super().advance(charted, mean)


class Watched:
    """A quality, and what its chart took in."""

    def __init__(self, unknown: int | None = None) -> None:
        self.chart = Recorder()
        self.quality = Quality(Scores("surprise", "bits", unknown=unknown), self.chart, "fake/1")

    @property
    def means(self) -> list[float]:
        return self.chart.means

    def counted(self) -> tuple[int, float]:
        reading = self.quality.snapshot()
        return reading.num_steps, reading.surprise


def means_of(text: str) -> list[float]:
    """The means of the whole blocks of a sequence but its first."""
    values = whole(text)["surprise"].astype(np.float64)
    count = len(values) // BLOCK
    found: list[float] = values[: count * BLOCK].reshape(count, BLOCK).mean(axis=1)[1:].tolist()
    return found


def total_of(text: str) -> float:
    return float(whole(text)["surprise"].sum())


texts = st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=8)


@given(st.lists(texts, min_size=1, max_size=4), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_splits_and_company_change_no_block(
    sessions: list[list[str]], durable: bool, every_step: bool, random: object
) -> None:
    order = [index for index, chunks in enumerate(sessions) for _ in chunks]
    random.shuffle(order)  # type: ignore[attr-defined]

    async def run() -> Watched:
        watched, records = Watched(), Records()
        async with house(committer=records, quality=watched.quality, max_piece=3) as it:
            records.it = it
            live = [it.open(durable=durable) for _ in sessions]
            chunks = [iter(each) for each in sessions]
            options = StepOptions(every_step=every_step)
            await asyncio.gather(*(it.step(live[index], next(chunks[index]), options=options) for index in order))
        return watched

    watched = asyncio.run(run())
    wholes = ["".join(chunks) for chunks in sessions]
    assert sorted(watched.means) == sorted(mean for text in wholes for mean in means_of(text))
    assert watched.counted() == (sum(map(len, wholes)), sum(map(total_of, wholes)))


@pytest.mark.parametrize("durable", [False, True])
async def test_a_repeat_counts_once_and_tells_the_same_chart(durable: bool) -> None:
    watched, records = Watched(), Records()
    async with house(committer=records, quality=watched.quality) as it:
        records.it = it
        session = it.open(durable=durable, drift=True)
        await it.step(session, TEXT[:6], position=0)
        first = await it.step(session, TEXT[6:8], position=6)
        again = await it.step(session, TEXT[6:8], position=6)
    assert first.prediction.drift is not None
    assert again.prediction.drift == first.prediction.drift
    assert watched.counted() == (8, total_of(TEXT[:8]))
    assert watched.quality.snapshot().drift is not None


@pytest.mark.parametrize("durable", [False, True])
async def test_a_step_that_was_not_stored_or_not_wanted_does_not_count(durable: bool) -> None:
    watched, records = Watched(), Records()
    async with house(committer=records, quality=watched.quality) as it:
        records.it = it
        session = it.open(durable=durable)
        await it.step(session, TEXT[:4])
        records.away = {session.id} if durable else set()
        lost = it.step(session, "a")
        if not durable:
            it.runner.during[len(it.runner.runs)] = lost.cancel
        await asyncio.gather(lost, return_exceptions=True)
        await it.step(session, TEXT[4:8])
    assert watched.counted() == (8, total_of(TEXT[:8]))
    # What had to be read again from the store has lost its unfinished block.
    assert watched.means == ([] if durable else means_of(TEXT[:8]))


@pytest.mark.parametrize("durable", [False, True])
async def test_what_is_generated_and_its_prompt_do_not_count_and_break_the_block(durable: bool) -> None:
    watched, records = Watched(), Records()
    async with house(committer=records, quality=watched.quality) as it:
        records.it = it
        session = it.open(durable=durable)
        await it.step(session, TEXT[:9])
        await it.generate(session, "abc", Sampling(max_tokens=2)).reply
        await it.generate(None, "abcdefga", Sampling(max_tokens=9)).reply
        assert watched.means == means_of(TEXT[:8])
        assert session.position == 14
        await it.step(session, "ab")  # ends a block that is not whole
        assert watched.means == means_of(TEXT[:8])
        await it.step(session, "abcd")
    assert len(watched.means) == len(means_of(TEXT[:8])) + 1
    assert watched.counted()[0] == 9 + 6


async def test_stateless_sequences_count_like_sessions() -> None:
    watched = Watched()
    async with house(quality=watched.quality, max_piece=3) as it:
        await asyncio.gather(it.predict(TEXT), it.predict(TEXT[:9], StepOptions(every_step=True)), it.predict("a"))
    assert sorted(watched.means) == sorted([*means_of(TEXT), *means_of(TEXT[:9])])
    assert watched.counted()[0] == len(TEXT) + 9 + 1


async def test_a_session_that_is_moved_begins_its_chart_anew() -> None:
    watched = Watched()
    async with house(quality=watched.quality) as it:
        session = it.open(drift=True)
        await it.step(session, TEXT[:10])
        state, position = it.engine.dump(session), session.position
        told = (await it.step(session, TEXT[10:14])).prediction.drift
        assert told is not None
        assert told.blocks == 2
        it.engine.load(session, state)
        session.position = position
        assert (await it.step(session, TEXT[10:14])).prediction.drift is None
        told = (await it.step(session, TEXT[14:16])).prediction.drift
        assert told is not None
        assert told.blocks == 1


async def charts(it: House, session: Session, text: str, size: int) -> list[Drift]:
    """What the session's replies tell of its chart, in chunks of ``size`` steps."""
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    results = [await it.step(session, chunk) for chunk in chunks]
    return [result.prediction.drift for result in results if result.prediction.drift is not None]


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4, 11])
async def test_a_sessions_own_chart_is_told_with_each_block(size: int, durable: bool) -> None:
    watched, records = Watched(), Records()
    async with house(committer=records, quality=watched.quality) as it:
        records.it = it
        told = await charts(it, it.open(durable=durable, drift=True), TEXT, size)
        silent = await charts(it, it.open(durable=durable), TEXT, size)
    assert silent == []
    chart, charted, expected = Chart(DRIFT), Chart(DRIFT).start(), []
    for mean in means_of(TEXT):
        charted = chart.advance(charted, mean)
        expected.append(Drift(charted.state, charted.ewma, charted.blocks))
    assert told[-1] == expected[-1]
    assert all(each in expected for each in told)
    if size <= BLOCK:
        assert told == expected
    assert len({each.state for each in expected}) > 1


async def test_changes_of_state_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    quality = Quality(Scores("surprise", "bits"), Chart(DRIFT), "fake/1")
    async with house(quality=quality) as it:
        session = it.open()
        with caplog.at_level(logging.WARNING, "tidegate.engine.quality"):
            await it.step(session, TEXT * 3)
    reading = quality.snapshot()
    assert reading.drift is not None
    assert reading.blocks.num_values == reading.drift.blocks == len(means_of(TEXT * 3))
    assert sum(reading.changes.values()) == len(caplog.records) > 0
    assert f"model fake/1: {reading.drift.state}, was" in caplog.records[-1].message


async def test_without_a_calibration_surprise_is_summed_and_nothing_is_charted() -> None:
    quality = Quality(Scores("surprise", "bits"), None, "fake/1")
    async with house(quality=quality) as it:
        await it.step(it.open(), TEXT)
        await it.step(it.open(), "a")
    reading = quality.snapshot()
    assert (reading.num_steps, reading.surprise) == (len(TEXT) + 1, total_of(TEXT) + total_of("a"))
    assert reading.drift is quality.drift is None
    assert reading.blocks.num_values == 0


async def test_unknown_tokens_are_counted_in_single_steps_and_in_chunks() -> None:
    watched = Watched(unknown=VOCABULARY.index("c"))
    async with house(quality=watched.quality) as it:
        session = it.open()
        for letter in "abccd":
            await it.step(session, letter)
        await asyncio.gather(it.step(session, "ccab"), it.predict("c"))
    assert watched.quality.snapshot().num_unknown == 5
    assert watched.means == means_of("abccdccab")


# ---- by hand: what the fake model never says


class Nobody:
    """A caller that has gone."""

    def done(self) -> bool:
        return True

    def set_result(self, result: object, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...


def new_session() -> Session:
    async def made() -> Session:
        async with house() as it:
            return it.open()

    return asyncio.run(made())


def take(quality: Quality, session: Session, values: Sequence[float], rows: FloatArray, bands: FloatArray) -> None:
    """Let the session's chunk of these surprises, inputs and forecasts be committed."""
    request = chunk(session, (rows.astype(np.float32),), StepOptions(), None, None, Nobody())
    quantiles = np.stack([bands[:, :1], bands.mean(axis=1, keepdims=True), bands[:, 1:]], axis=2)
    outputs: dict[str, Tensor] = {
        "surprise": np.array([values], np.float32),
        "quantiles": quantiles[None].astype(np.float32),
    }
    request.offset, request.rows, request.starts = request.length, [0], [session.position]
    request.predictions = [Prediction(request.length)]
    quality.take(Batch([request], list(request.inputs), outputs, []))
    session.advance(request.length, LastReply(0, b"", None), 0.0)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_no_number_is_counted_and_not_averaged(size: int) -> None:
    watched, session = Watched(), new_session()
    values = [math.nan, 1.0, 2.0, 3.0, 4.0, math.inf, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    bands = np.zeros((size, 2))
    for start in range(0, len(values), size):
        some = values[start : start + size]
        take(watched.quality, session, some, np.zeros((len(some), 1)), bands[: len(some)])
    assert watched.counted() == (10, 55.0)
    assert watched.quality.snapshot().num_nan == 2
    assert watched.means == [8.5]


@pytest.mark.parametrize("size", [1, 5, 12])
@pytest.mark.parametrize("absurd", [1e38, -1e38, 3.4e38])
def test_an_absurd_step_is_counted_and_poisons_no_figure(size: int, absurd: float) -> None:
    watched, session = Watched(), new_session()
    values = [1.0, 2.0, 3.0, 4.0, 5.0, absurd, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    bands = np.zeros((size, 2))
    for start in range(0, len(values), size):
        some = values[start : start + size]
        take(watched.quality, session, some, np.zeros((len(some), 1)), bands[: len(some)])
    reading = watched.quality.snapshot()
    assert (reading.num_steps, reading.surprise, reading.num_outliers, reading.num_nan) == (11, 66.0, 1, 0)
    assert watched.quality.surprise is not None
    assert watched.quality.surprise.mean == 6.0
    assert reading.blocks.num_values == 2
    assert abs(reading.blocks.total) <= watched.chart.most + 9.5
    # The chart takes such a block for one at its rim, and is back after a few.
    assert reading.drift is not None
    assert abs(reading.drift.ewma - DRIFT.mean) <= DRIFT.clip * DRIFT.spread


def test_a_model_without_a_chart_takes_more_for_usual_and_no_end_of_it() -> None:
    quality, session = Quality(Scores("surprise", "squares"), None, "fake/1"), new_session()
    values = [5e5, 5e5, 1e7, 1e38]
    take(quality, session, values, np.zeros((4, 1)), np.zeros((4, 2)))
    reading = quality.snapshot()
    assert (reading.num_steps, reading.surprise, reading.num_outliers) == (2, 1e6, 2)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_forecasts_are_held_against_the_next_input(size: int) -> None:
    scores = Scores(
        "surprise",
        "scaled absolute error",
        Band("quantiles", column=1, low=0, high=2),
        ranges=Ranges(np.array([-np.inf, -2.0], np.float32), np.array([np.inf, 2.0], np.float32)),
    )
    quality, session = Quality(scores, None, "fake/1"), new_session()
    truths = np.array([9.0, 0.5, 1.5, -0.5, 0.0, 3.0, -3.0, 1.0])
    rows = np.stack([np.full(8, 100.0), truths], axis=1)
    bands = np.tile([0.0, 1.0], (8, 1))
    for start in range(0, 8, size):
        some = slice(start, start + size)
        take(quality, session, [1.0] * len(truths[some]), rows[some], bands[some])
    reading = quality.snapshot()
    # Of the first nothing was forecast; 0.5, 0.0 and 1.0 are within [0, 1].
    assert (reading.num_inside, reading.num_outside) == (3, 4)
    assert reading.num_out_of_range == 3
    session.reset_quality()
    take(quality, session, [1.0], rows[:1], bands[:1])
    assert quality.snapshot().num_inside + quality.snapshot().num_outside == 7
