"""Sequences as sessions of the real service: what is left of an old one, and what order durable ones keep."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from tests.bundles import write_tiny_bundle
from tests.clock import ManualClock
from tests.service.serving import serving
from tidegate.core import Prediction, SessionRequest, StepResult
from tidegate.ingress.oip.adapter import ORIGIN, ServiceCore
from tidegate.ingress.oip.inference import Inference
from tidegate.ingress.oip.requests import InferReply, InferRequest, Options
from tidegate.ingress.oip.tensors import NamedTensor
from tidegate.service import Service

TOKENS = np.arange(6).reshape(2, 3)


async def infer(inference: Inference, **options: Any) -> InferReply:
    asked = InferRequest("tiny", "", "", Options(sequence=5, **options), [NamedTensor("tokens", TOKENS)])
    return await inference.submit(asked).reply(lambda reply: reply)


async def test_a_start_does_not_go_on_from_what_is_left_of_an_old_sequence(tmp_path: Path) -> None:
    """As a server leaves it that is killed while it closes a batch."""
    write_tiny_bundle(tmp_path / "bundles")
    stored: dict[str, Any] = {"store": "sqlite", "data_dir": tmp_path / "data", "durable": True}
    async with serving(tmp_path / "bundles", **stored) as service:
        inference = Inference(ServiceCore(service))
        await infer(inference, start=True)
        await service.close_session("q~i~tiny~5")
    async with serving(tmp_path / "bundles", **stored) as service:
        inference = Inference(ServiceCore(service))
        await infer(inference, start=True)
        assert [each.position for each in (await service.list_sessions()).sessions] == [3, 3]


async def test_a_start_succeeds_where_the_sequence_was_durable_once(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundles")
    stored: dict[str, Any] = {"store": "sqlite", "data_dir": tmp_path / "data"}
    async with serving(tmp_path / "bundles", durable=True, **stored) as service:
        await infer(Inference(ServiceCore(service)), start=True)
    async with serving(tmp_path / "bundles", durable=False, **stored) as service:
        await infer(Inference(ServiceCore(service)), start=True)
        assert [each.durable for each in (await service.list_sessions()).sessions] == [False, False]


async def test_sessions_that_ended_by_themselves_are_let_go_of(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    clock = ManualClock()
    async with serving(tmp_path, clock, store="none") as service:
        core = ServiceCore(service)
        await core.open_sequence("tiny", "", "q~i~tiny~5")
        clock.now += 90_000
        await service.expire()
        assert not core.is_open("q~i~tiny~5")
        await core.close_sequence("q~i~tiny~5", is_restart=False)
        await service.open_session(SessionRequest("tiny", id="q~i~tiny~5", origin=ORIGIN))
        assert core.is_open("q~i~tiny~5"), "nothing is known of it"


async def test_a_durable_sequence_that_a_step_did_not_find_is_not_open(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    async with serving(tmp_path, store="sqlite", data_dir=tmp_path / "data", durable=True) as service:
        core = ServiceCore(service)
        await core.open_sequence("tiny", "", "q~i~tiny~5")
        await service.close_session("q~i~tiny~5")
        result = core.step_sequence("q~i~tiny~5", (TOKENS[0],), None, None)
        await asyncio.wait([result])
        assert result.exception() is not None
        assert not core.is_open("q~i~tiny~5")
        await core.open_sequence("tiny", "", "q~i~tiny~5")
        assert core.is_open("q~i~tiny~5")


class SlowFirst:
    """A service that has to fetch a session for the first who asks, and has it at hand for those who come later."""

    def __init__(self) -> None:
        self.fetched = asyncio.Event()
        self.applied: list[int] = []
        self._is_first = True

    async def live_session(self, _: str) -> Any:
        is_first, self._is_first = self._is_first, False
        if is_first:
            await self.fetched.wait()
        return SimpleNamespace(model=None)

    def submit_tensors(self, _: Any, __: Any, inputs: Any, ___: Any, ____: Any) -> asyncio.Future[StepResult]:
        self.applied.append(int(inputs[0][0]))
        done: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        done.set_result(StepResult("s", len(self.applied), Prediction(1)))
        return done


async def test_steps_of_a_durable_sequence_do_not_overtake_one_that_fetches_it() -> None:
    service = SlowFirst()
    service.reload = None  # type: ignore[attr-defined]
    core = ServiceCore(cast("Service", service))
    due = [core.step_sequence("s", (np.array([number]),), None, None) for number in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    service.fetched.set()
    await asyncio.gather(*due)
    assert service.applied == [0, 1, 2]


async def test_two_durable_sequences_of_one_name_have_different_stamps(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    clock = ManualClock()
    async with serving(tmp_path, clock, store="sqlite", data_dir=tmp_path / "data", durable=True) as service:
        core, stamps = ServiceCore(service), []
        for _ in range(2):
            await core.open_sequence("tiny", "", "q~i~tiny~5")
            stamps.append(await core.stamp("q~i~tiny~5"))
            clock.now += 1
            await core.close_sequence("q~i~tiny~5", is_restart=False)
        assert None not in stamps
        assert stamps[0] != stamps[1]
        assert await core.stamp("q~i~tiny~5") is None
