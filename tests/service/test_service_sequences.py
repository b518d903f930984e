"""Sequences as sessions of the real service: what is left of an old one, and what order durable ones keep."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import write_tiny_bundle
from tests.clock import ManualClock
from tests.service.serving import serving, started
from tidegate.api import Core, SessionKey, SessionRequest, StepResult
from tidegate.config import load_settings
from tidegate.errors import SessionEndedError
from tidegate.service import OIP, Service
from tidegate.sessions.stores.memory import MemoryStore
from tidegate.sessions.stores.store import Entry
from tidegate.transports.oip.inference import Inference
from tidegate.transports.oip.requests import InferReply, InferRequest, Options
from tidegate.transports.oip.tensors import NamedTensor

TOKENS = np.arange(6).reshape(2, 3)


async def infer(inference: Inference, **options: Any) -> InferReply:
    asked = InferRequest("tiny", "", "", Options(sequence=5, **options), [NamedTensor("tokens", TOKENS)])
    return await inference.submit(asked).reply(lambda reply: reply)


async def test_a_start_does_not_go_on_from_what_is_left_of_an_old_sequence(tmp_path: Path) -> None:
    """As a server leaves it that is killed while it closes a batch."""
    write_tiny_bundle(tmp_path / "bundles")
    stored: dict[str, Any] = {"store": "sqlite", "data_dir": tmp_path / "data", "durable": True}
    async with serving(tmp_path / "bundles", **stored) as service:
        inference = Inference(service)
        await infer(inference, start=True)
        await service.close_session("q~i~tiny~5")
    async with serving(tmp_path / "bundles", **stored) as service:
        inference = Inference(service)
        await infer(inference, start=True)
        assert [each.position for each in (await service.list_sessions()).sessions] == [3, 3]


async def test_a_start_succeeds_where_the_sequence_was_durable_once(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundles")
    stored: dict[str, Any] = {"store": "sqlite", "data_dir": tmp_path / "data"}
    async with serving(tmp_path / "bundles", durable=True, **stored) as service:
        await infer(Inference(service), start=True)
    async with serving(tmp_path / "bundles", durable=False, **stored) as service:
        await infer(Inference(service), start=True)
        assert [each.durable for each in (await service.list_sessions()).sessions] == [False, False]


async def test_sessions_that_ended_by_themselves_are_let_go_of(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    clock = ManualClock()
    async with serving(tmp_path, clock, store="none") as service:
        core: Core = service
        await core.open_sequence("tiny", "", "q~i~tiny~5")
        clock.now += 90_000
        await service.expire()
        assert not core.is_open("q~i~tiny~5")
        await core.close_sequence("q~i~tiny~5", is_restart=False)
        await service.open_session(SessionRequest("tiny", id="q~i~tiny~5", origin=OIP))
        assert core.is_open("q~i~tiny~5"), "nothing is known of it"


async def test_a_durable_sequence_that_a_step_did_not_find_is_not_open(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    async with serving(tmp_path, store="sqlite", data_dir=tmp_path / "data", durable=True) as service:
        core: Core = service
        await core.open_sequence("tiny", "", "q~i~tiny~5")
        await service.close_session("q~i~tiny~5")
        result = core.step_sequence("q~i~tiny~5", (TOKENS[0],), None, None, ends=False)
        await asyncio.wait([result])
        assert result.exception() is not None
        assert not core.is_open("q~i~tiny~5")
        await core.open_sequence("tiny", "", "q~i~tiny~5")
        assert core.is_open("q~i~tiny~5")


class SlowStore(MemoryStore):
    """Reads wait until the test lets them go."""

    def __init__(self) -> None:
        super().__init__()
        self.may_read = asyncio.Event()
        self.may_read.set()

    async def read(self, keys: Sequence[SessionKey]) -> list[Entry | None]:
        await self.may_read.wait()
        return await super().read(keys)


async def test_steps_of_a_durable_sequence_do_not_overtake_one_that_loads_it(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    store, name = SlowStore(), "q~i~tiny~5"
    settings = load_settings({"bundles": tmp_path, "store": "sqlite", "durable": True})
    async with started(Service(settings, store=store)) as first:
        await first.open_sequence("tiny", "", name)
    async with started(Service(settings, store=store)) as second:
        store.may_read.clear()
        due = [second.step_sequence(name, (TOKENS[0],), position, None, ends=False) for position in (0, 3, 6)]
        for _ in range(5):
            await asyncio.sleep(0)
        due.append(second.step_sequence(name, (TOKENS[0],), 9, None, ends=False))
        store.may_read.set()
        assert [(await each).position for each in due] == [3, 6, 9, 12]


async def end(core: Core, name: str, position: int | None) -> StepResult:
    return await core.step_sequence(name, (TOKENS[0],), position, None, ends=True)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_last_step_ends_its_session_and_is_answered_again(tmp_path: Path, durable: bool) -> None:
    write_tiny_bundle(tmp_path)
    clock, name = ManualClock(), "q~i~tiny~5"
    stored: dict[str, Any] = {"store": "sqlite", "data_dir": tmp_path / "data", "durable": durable}
    async with serving(tmp_path, clock, **stored) as service:
        core: Core = service
        await core.open_sequence("tiny", "", name)
        first = await end(core, name, 0)
        assert (await service.list_sessions()).sessions == []
        with pytest.raises(SessionEndedError):
            await service.get_session(name)
        again = await end(core, name, 0)
        assert again.position == first.position == 3
        for output in ("logits", "surprise"):
            np.testing.assert_array_equal(outputs(again)[output], outputs(first)[output])
        for position, tokens in ((0, TOKENS[1]), (1, TOKENS[0]), (3, TOKENS[0]), (None, TOKENS[0])):
            due = core.step_sequence(name, (tokens,), position, None, ends=False)
            with pytest.raises(SessionEndedError):
                await due
        clock.now += 3601
        await service.expire()
        assert await core.find_sequence("tiny", name) is None


def outputs(result: StepResult) -> Any:
    return result.prediction.outputs


@pytest.mark.parametrize("durable", [False, True])
async def test_a_last_step_that_repeats_one_that_ended_nothing_ends_the_session(tmp_path: Path, durable: bool) -> None:
    write_tiny_bundle(tmp_path)
    stored: dict[str, Any] = {"store": "sqlite", "data_dir": tmp_path / "data", "durable": durable}
    async with serving(tmp_path, **stored) as service:
        core: Core = service
        await core.open_sequence("tiny", "", "q~i~tiny~5")
        await core.step_sequence("q~i~tiny~5", (TOKENS[0],), 0, None, ends=False)
        for _ in range(2):
            assert (await end(core, "q~i~tiny~5", 0)).position == 3
            assert (await service.list_sessions()).sessions == []


async def test_what_waits_behind_a_last_step_is_told_that_the_session_is_over(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path)
    async with serving(tmp_path, store="sqlite", data_dir=tmp_path / "data", durable=True) as service:
        core: Core = service
        await core.open_sequence("tiny", "", "q~i~tiny~5")
        last = core.step_sequence("q~i~tiny~5", (TOKENS[0],), None, None, ends=True)
        behind = [core.step_sequence("q~i~tiny~5", (TOKENS[1],), None, None, ends=False) for _ in range(3)]
        assert (await last).position == 3
        for each in behind:
            with pytest.raises(SessionEndedError):
                await each
        await core.open_sequence("tiny", "", "q~i~tiny~5")
        assert (await end(core, "q~i~tiny~5", None)).position == 3
