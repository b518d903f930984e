"""Surprise and drift through the core: calibrated models, sessions with charts of their own, over replicas too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.bundles import LOAD_MEAN, LOAD_SCALE, write_tiny_bundle, write_tiny_forecast_bundle
from tests.service.serving import change_bundle, collect, serving
from tests.service.sessions.replicas import MODEL, replicas, step
from tidegate.api import (
    Drift,
    DriftReport,
    Input,
    RestoreRequest,
    Sampling,
    SessionRequest,
    StepOptions,
    SurpriseReport,
)
from tidegate.bundle import DriftCalibration, Limit, read_bundle, write_bundle
from tidegate.drift import Chart, add_steps
from tidegate.errors import FailedPreconditionError, InvalidInputError
from tidegate.service import Service

BLOCK = 8
DRIFT = DriftCalibration(
    block=BLOCK,
    factor=0.5,
    mean=6.0,
    spread=0.2,
    warning=Limit(width=0.5, run_length=1),
    drift=Limit(width=1.5, run_length=1),
    autocorrelation=0.0,
    blocks=10,
    data="made up",
    ranges={"load": (60.0, 140.0)},
)
TEXT = "The tide comes in, the tide goes out: who keeps the gate? "


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrated models: of text, versions 2 and 3, and of a load, version 2; version 1 is not calibrated."""
    root = tmp_path_factory.mktemp("bundles")
    change_bundle(write_tiny_bundle(root, MODEL), "2", drift=DRIFT)
    change_bundle(root / MODEL / "1", "3", drift=DRIFT.model_copy(update={"mean": 5.0}))
    change_bundle(write_tiny_forecast_bundle(root), "2", drift=DRIFT)
    return root


@pytest.fixture
async def service(root: Path) -> AsyncIterator[Service]:
    async with serving(root) as service:
        yield service


async def surprise_of(service: Service, text: str, version: str = "2") -> NDArray[np.float32]:
    result = await service.predict(MODEL, version, [Input(text=text)], StepOptions(every_step=True))
    assert result.predictions[0].surprise is not None
    return np.array(result.predictions[0].surprise.steps, np.float32)


def assert_chart(told: Drift | DriftReport | None, values: NDArray[np.float32]) -> None:
    """It is where the chart of one sequence is after steps of this surprise."""
    _, means = add_steps(float("nan"), 0, values.tolist(), BLOCK)
    chart = Chart(DRIFT)
    charted = chart.advance_all(chart.start(), means)
    assert told is not None
    assert (told.state, told.blocks) == (charted.state, charted.blocks)
    assert told.ewma == pytest.approx(charted.ewma, abs=1e-5)


async def test_a_calibrated_model_tells_its_chart(service: Service) -> None:
    before = service.model(MODEL, "2")
    assert before.surprise == SurpriseReport(None, 0)
    assert before.drift is not None
    assert (before.drift.state, before.drift.ewma, before.drift.blocks) == ("normal", 6.0, 0)
    values = await surprise_of(service, TEXT * 2)
    after = service.model(MODEL, "2")
    assert after.surprise is not None
    assert after.surprise.steps == len(values)
    assert after.surprise.mean == pytest.approx(float(values.mean()), rel=1e-6)
    assert_chart(after.drift, values)
    assert after.drift is not None
    assert after.drift.warning[0] < 6.0 < after.drift.warning[1] < after.drift.drift[1]
    assert service.model(MODEL, "1").drift is None
    reading = next(it.quality for it in service.statistics().models if (it.model, it.version) == (MODEL, "2"))
    assert reading.num_steps == len(values)
    assert reading.drift == after.drift


async def test_a_session_may_have_a_chart_of_its_own(service: Service) -> None:
    await service.open_session(SessionRequest(MODEL, "2", id="watched", drift=True))
    await service.open_session(SessionRequest(MODEL, "2", id="other"))
    for letter in TEXT:
        watched = await service.step("watched", Input(text=letter))
        other = await service.step("other", Input(text=letter))
        assert (watched.prediction.drift is not None) == (watched.position % BLOCK == 0 and watched.position > BLOCK)
        assert other.prediction.drift is None
        if watched.prediction.drift is not None:
            last = watched.prediction.drift
    assert_chart(last, await surprise_of(service, TEXT))
    assert (await service.get_session("watched")).drift == last
    assert (await service.get_session("other")).drift is None


async def test_a_model_without_a_chart_gives_none(service: Service) -> None:
    with pytest.raises(FailedPreconditionError) as refused:
        await service.open_session(SessionRequest(MODEL, "1", drift=True))
    assert refused.value.reason == "NO_CHART"
    await service.open_session(SessionRequest(MODEL, "1", id="plain"))
    assert (await service.step("plain", Input(text=TEXT))).prediction.drift is None


@pytest.mark.parametrize("durable", [False, True])
async def test_forks_and_what_was_rewound_or_upgraded_begin_anew(root: Path, durable: bool) -> None:
    async with replicas(root, 1) as they:
        (service,) = they
        await they.open(version="2", drift=True, durable=durable)
        await step(service, TEXT[:20])
        await service.checkpoint_session("s", "here")
        blocks = (await step(service, TEXT[20:40])).prediction.drift
        assert blocks is not None
        assert blocks.blocks == 4
        assert (await service.get_session("s")).drift == blocks
        assert [info.drift for info in await service.fork_session("s", ["child"])] == [None]
        forked = (await step(service, TEXT[40:57], id_="child")).prediction.drift
        assert (await service.rewind_session("s", "here")).drift is None
        rewound = (await step(service, TEXT[20:40])).prediction.drift
        await service.upgrade_session("s", "3")
        upgraded = (await step(service, TEXT[40:57])).prediction.drift
        # Each leaves out the block that it finds itself in: at 40, at 20, at 40.
        assert [it and it.blocks for it in (forked, rewound, upgraded)] == [1, 2, 1]


async def test_a_durable_sessions_chart_goes_with_it(root: Path) -> None:
    async with replicas(root, 3) as they:
        await they.open(version="2", drift=True)
        told = []
        for index, letter in enumerate(TEXT):
            result = await step(they.services[index % 3], letter, index)
            again = await step(they.services[(index + 1) % 3], letter, index)
            assert again == result
            told.append(result.prediction.drift)
        assert told[-2:] == [None, None]
        assert_chart([it for it in told if it is not None][-1], await surprise_of(they.services[0], TEXT))
        (info,) = (await they.services[2].list_sessions()).sessions
        assert info == await they.services[1].get_session("s")
        assert info.drift == [it for it in told if it is not None][-1]
        # Each replica has a chart of what it served itself, and no repeat is in it.
        served = sum(it.quality.num_steps for service in they for it in service.statistics().models)
        assert served == 2 * len(TEXT)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_restored_session_has_a_chart_where_the_one_before_had(root: Path, durable: bool) -> None:
    async with replicas(root) as they:
        await they.open(version="2", drift=True)
        await they.services[0].open_session(SessionRequest(MODEL, "2", id="other"))
        await step(they.services[0], TEXT[:20])
        for id_, expected in (("s", 2), ("other", None)):
            snapshot = await they.services[0].snapshot_session(id_)
            restored = await they.services[1].restore_session(snapshot, RestoreRequest(f"{id_}-2", durable))
            assert restored.drift is None
            told = (await step(they.services[1], TEXT[20:41], id_=f"{id_}-2")).prediction.drift
            assert (told and told.blocks) == expected


async def test_a_restored_session_has_a_chart_where_that_is_asked_for(root: Path) -> None:
    async with replicas(root, 1) as they:
        (service,) = they.services
        await service.open_session(SessionRequest(MODEL, "2", id="s"))
        snapshot = await service.snapshot_session("s")
        await service.restore_session(snapshot, RestoreRequest("charted", drift=True))
        assert (await step(service, TEXT[:20], id_="charted")).prediction.drift is not None
        snapshot = await service.snapshot_session("charted")
        await service.restore_session(snapshot, RestoreRequest("plain", drift=False))
        assert (await step(service, TEXT[20:41], id_="plain")).prediction.drift is None
        await service.open_session(SessionRequest(MODEL, "1", id="uncalibrated"))
        snapshot = await service.snapshot_session("uncalibrated")
        with pytest.raises(FailedPreconditionError) as refused:
            await service.restore_session(snapshot, RestoreRequest("t", drift=True))
        assert refused.value.reason == "NO_CHART"


@pytest.mark.parametrize("durable", [False, True])
async def test_a_refused_input_is_counted_once(root: Path, durable: bool) -> None:
    async with replicas(root, 1) as they:
        (service,) = they.services
        await service.open_session(SessionRequest("tiny-forecast", "2", id="s", durable=durable))
        await service.step("s", Input(values=np.array([[100.0, 1.0]])))
        with pytest.raises(InvalidInputError):
            await service.step("s", Input(values=np.array([[np.nan, 1.0]])))
        (reading,) = (
            it.quality for it in service.statistics().models if (it.model, it.version) == ("tiny-forecast", "2")
        )
        assert reading.num_missing == 1


async def test_what_was_generated_leaves_a_durable_sessions_chart_where_it_was(root: Path) -> None:
    async with replicas(root) as they:
        await they.open(version="2", drift=True)
        before = (await step(they.services[0], TEXT[:24])).prediction.drift
        assert before is not None
        await collect(they.services[1].generate_on_session("s", None, Sampling(max_tokens=5)))
        broken = (await step(they.services[0], TEXT[:4])).prediction.drift
        after = (await step(they.services[1], TEXT[:7])).prediction.drift
        assert broken is None
        assert after is not None
        assert after.blocks == before.blocks + 1


async def test_forecasts_count_coverage_ranges_and_missing_values(service: Service) -> None:
    model = "tiny-forecast"
    await service.open_session(SessionRequest(model, "2", id="load"))
    values = np.column_stack([LOAD_MEAN + LOAD_SCALE * np.sin(np.arange(40)), np.arange(40) % 24])
    values[[3, 17], 0] = 300.0, -5.0
    # The bundle forecasts medians ± 1, scaled: what the next value should be within.
    forecasts = []
    for row in values:
        result = await service.step("load", Input(values=row[None]))
        assert result.prediction.forecast is not None
        forecasts.append(result.prediction.forecast[0].values[0])
    inside = sum(low <= value <= high for (low, _, high), value in zip(forecasts, values[1:, 0], strict=False))
    bad = np.array([[np.nan, 3.0]])
    with pytest.raises(InvalidInputError):
        await service.step("load", Input(values=bad))
    with pytest.raises(InvalidInputError):
        await service.predict(model, "2", [Input(values=bad)], StepOptions())
    (reading,) = [it.quality for it in service.statistics().models if (it.model, it.version) == (model, "2")]
    assert (reading.num_inside, reading.num_outside) == (inside, 39 - inside)
    assert 0 < inside < 39
    assert reading.num_out_of_range == 2
    assert reading.num_missing == 2
    # In chunks, whatever they ask for, and in one sequence, the same is seen.
    await service.open_session(SessionRequest(model, "2", id="again"))
    for start, every_step in ((0, False), (10, True), (25, False)):
        end = {0: 10, 10: 25, 25: 40}[start]
        await service.step("again", Input(values=values[start:end]), StepOptions(every_step=every_step))
    await service.predict(model, "2", [Input(values=values)], StepOptions())
    (reading,) = [it.quality for it in service.statistics().models if (it.model, it.version) == (model, "2")]
    assert (reading.num_inside, reading.num_outside) == (3 * inside, 3 * (39 - inside))
    assert reading.num_out_of_range == 6


async def test_refused_characters_are_counted_as_unknown(service: Service) -> None:
    with pytest.raises(InvalidInputError):
        await service.predict(MODEL, "2", [Input(text="∞")], StepOptions())
    reading = next(it.quality for it in service.statistics().models if (it.model, it.version) == (MODEL, "2"))
    assert reading.num_unknown == 1


async def test_a_model_that_says_no_surprise_is_left_alone(tmp_path: Path) -> None:
    source = read_bundle(write_tiny_bundle(tmp_path / "source", "mute"))
    codec = source.manifest.codec.model_copy(update={"surprise": None})
    files = {name: (source.path / name).read_bytes() for name in source.manifest.files}
    write_bundle(tmp_path / "bundles", source.manifest.model_copy(update={"codec": codec}), files)
    async with serving(tmp_path / "bundles") as service:
        await service.predict("mute", None, [Input(text=TEXT)], StepOptions())
        assert service.model("mute").surprise is None
        assert service.statistics().models[0].quality.num_steps == 0
