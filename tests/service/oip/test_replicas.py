"""Durable sequences on servers of one store: the end that one of them answered is the end for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import write_tiny_bundle
from tests.service.sessions.replicas import MODEL, Replicas, replicas
from tidegate.errors import SessionEndedError, TidegateError
from tidegate.transports.oip.inference import Inference
from tidegate.transports.oip.requests import InferReply, InferRequest, Options
from tidegate.transports.oip.tensors import NamedTensor

ENDED = {"SEQUENCE_NOT_STARTED", "SESSION_CLOSED"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(root, MODEL)
    return root


class Server:
    """What clients of one replica ask."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def step(self, position: int | None, *tokens: int, **flags: Any) -> InferReply:
        """Step a row of the sequence by each of the tokens."""
        rows = np.array([[token] for token in tokens])
        options = Options(sequence="s", position=position, **flags)
        asked = InferRequest(MODEL, "", "", options, [NamedTensor("tokens", rows)], ["surprise"])
        return await self._inference.submit(asked).reply(lambda reply: reply)

    async def refused(self, position: int | None, *tokens: int, **flags: Any) -> str:
        with pytest.raises(TidegateError) as caught:
            await self.step(position, *tokens, **flags)
        return caught.value.reason


def servers(they: Replicas) -> list[Server]:
    return [Server(Inference(service)) for service in they]


def surprise(reply: InferReply) -> Any:
    (found,) = reply.outputs
    return found.array


async def test_the_end_on_one_is_the_end_on_all_and_its_repeat_is_answered_everywhere(root: Path) -> None:
    async with replicas(root, 3, durable=True) as they:
        a, b, c = servers(they)
        await a.step(0, 5, start=True)
        await b.step(1, 6)
        first = await a.step(2, 7, end=True)
        assert first.position == 3
        # b holds a copy that is behind, a a sequence that it ended, c nothing.
        for server in (b, a, c):
            assert await server.refused(3, 8) in ENDED
            assert await server.refused(None, 8) in ENDED
            again = await server.step(2, 7, end=True)
            assert again.position == 3
            np.testing.assert_array_equal(surprise(again), surprise(first))
            assert await server.refused(2, 8, end=True) in ENDED
        with pytest.raises(SessionEndedError):
            await they.services[0].get_session(f"q~s~{MODEL}~s")
        assert (await they.services[1].list_sessions()).sessions == []
        assert (await c.step(0, 9, start=True)).position == 1
        assert (await a.step(1, 9)).position == 2
        assert (await b.step(2, 9, end=True)).position == 3
        they.clock.now += 3601
        for service in they:
            for _ in range(16):
                await service.expire()
        assert await a.refused(2, 9, end=True) == "SEQUENCE_NOT_STARTED"


async def test_an_end_whose_answer_was_lost_is_answered_by_its_repeat(root: Path) -> None:
    async with replicas(root, durable=True) as they:
        a, b = servers(they)
        await a.step(0, 5, start=True)
        they.store.is_read_only = True
        assert await a.refused(1, 6, end=True) == "STORE_AWAY"
        they.store.is_read_only = False
        await they.services[0].readiness_changed()
        await they.services[0].readiness_changed()
        # It had not ended, and the repeat ends it.
        assert (await b.step(1, 6, end=True)).position == 2
        await a.step(0, 5, start=True)
        they.store.lost_replies = 1
        assert (await a.step(1, 6, end=True)).position == 2
        assert (await b.step(1, 6, end=True)).position == 2
        assert they.services[0].statistics().num_durable == 0


async def test_a_batch_ends_row_by_row(root: Path) -> None:
    async with replicas(root, durable=True) as they:
        a, b = servers(they)
        await a.step(0, 5, 6, start=True)
        first = await b.step(1, 7, 8, end=True)
        for server in (a, b):
            np.testing.assert_array_equal(surprise(await server.step(1, 7, 8, end=True)), surprise(first))
            assert await server.refused(2, 7, 8) in ENDED
            assert await server.refused(1, 7, 9, end=True) in ENDED
        assert (await they.services[0].list_sessions()).sessions == []
        assert (await a.step(None, 5, 6, 7, start=True)).position is None
        assert len((await they.services[1].list_sessions()).sessions) == 3


async def test_checkpoints_of_a_sequence_go_with_its_end(root: Path) -> None:
    async with replicas(root, durable=True) as they:
        a, _ = servers(they)
        await a.step(0, 5, start=True)
        id_ = f"q~s~{MODEL}~s"
        await they.services[0].checkpoint_session(id_, "kept")
        await a.step(1, 6, end=True)
        await a.step(0, 5, start=True)
        assert (await they.services[0].get_session(id_)).checkpoints == ()


async def test_an_ephemeral_sequence_does_not_start_while_nobody_knows_whether_a_durable_one_runs(root: Path) -> None:
    async with replicas(root) as they:
        a, b = servers(they)
        await a.step(None, 5, start=True)
        they.store.is_away = True
        assert await b.refused(None, 5, start=True) == "STORE_AWAY"
        # One that runs goes on, and ends.
        await a.step(None, 6)
        await a.step(None, 7, end=True)
        assert await a.refused(None, 8) == "SEQUENCE_NOT_STARTED"
