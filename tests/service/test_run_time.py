"""Every run ends: a graph that goes on for ever costs its own callers their request, and nobody else anything."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import ENDLESS, write_endless_bundle, write_slow_bundle, write_tiny_bundle
from tests.service.serving import serving
from tidegate.api import Input, SessionRequest, StepOptions
from tidegate.config import load_settings
from tidegate.errors import InternalError
from tidegate.service import Service
from tidegate.watchdog import LOAD_TIMEOUT, RUN_TIMEOUT

GOOD, FOR_EVER = (Input(values=np.full((1, 2), value, np.float32)) for value in (0.5, 2 * ENDLESS))

ways = pytest.mark.parametrize(
    "settings",
    [{"execution": "inline"}, {"execution": "thread"}, {"arena": "device"}],
    ids=["inline", "thread", "device"],
)


@ways
async def test_a_run_without_end_is_ended_and_the_server_serves_on(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_endless_bundle(tmp_path)
    write_tiny_bundle(tmp_path)
    async with serving(tmp_path, run_timeout=1, **settings) as service:
        session = (await service.open_session(SessionRequest("endless"))).id
        before = await service.step(session, GOOD)
        with pytest.raises(InternalError, match="more than the 1 seconds of --run-timeout") as caught:
            await service.step(session, FOR_EVER)
        assert caught.value.reason == RUN_TIMEOUT
        assert (await service.predict("tiny", None, [Input(text="abc")], StepOptions())).version == "1"
        assert before.position == 1
        assert (await service.step(session, GOOD, position=1)).position == 2
        (endless,) = [model for model in service.statistics().models if model.model == "endless"]
        assert endless.num_failed_runs == 1


@ways
async def test_who_shares_a_run_without_end_is_answered_as_if_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_endless_bundle(tmp_path)
    # On a loaded machine those who are no fault of it need a part of this.
    async with serving(tmp_path, run_timeout=2, **settings) as service:
        sessions = [(await service.open_session(SessionRequest("endless"))).id for _ in range(3)]
        inputs = [GOOD, FOR_EVER, GOOD]
        steps = [service.step(session, source) for session, source in zip(sessions, inputs, strict=True)]
        found = await asyncio.gather(*steps, return_exceptions=True)
        assert [type(each).__name__ for each in found] == ["StepResult", "InternalError", "StepResult"]


async def test_beside_the_loop_others_are_answered_while_a_run_hangs(tmp_path: Path) -> None:
    write_endless_bundle(tmp_path)
    write_tiny_bundle(tmp_path)
    async with serving(tmp_path, run_timeout=3, execution="thread") as service:
        session = (await service.open_session(SessionRequest("endless"))).id
        hanging = service.step(session, FOR_EVER)
        assert (await service.predict("tiny", None, [Input(text="abc")], StepOptions())).version == "1"
        assert not hanging.done()
        with pytest.raises(InternalError):
            await hanging


async def test_a_model_that_takes_too_long_to_load_is_refused_and_the_others_serve(tmp_path: Path) -> None:
    write_slow_bundle(tmp_path)
    write_tiny_bundle(tmp_path)
    service = Service(load_settings({"bundles": tmp_path, "load_timeout": 1}))
    report = await service.start()
    try:
        assert [(refusal.bundle, refusal.reason) for refusal in report.refused] == [("slow/1", LOAD_TIMEOUT)]
        assert report.loaded == ["tiny/1"]
    finally:
        await service.stop()
