"""Inference: what every way in carries, there and back; and, by one of them, the rules that are the same by all."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.clock import ManualClock
from tests.service.oip.ways import GrpcWay, HttpWay, Refusal, Reply, Tensor, Way
from tidegate.api import Input, SessionRequest
from tidegate.bundle import read_bundle
from tidegate.engine.runner import Runner
from tidegate.errors import FailedPreconditionError
from tidegate.service import Service

Array = NDArray[Any]

assert_close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
TOKENS = np.random.default_rng(0).integers(0, 60, (3, 12))
VALUES = np.random.default_rng(1).normal(size=(2, 10, 2)).astype(np.float32)


def expected(bundles: Path, name: str, inputs: Array, version: str = "1") -> dict[str, Array]:
    """What the graph says of whole sequences, each from the initial state."""
    bundle = read_bundle(bundles / name / version)
    runner = Runner(bundle)
    states: list[Any] = []
    for spec in bundle.manifest.states:
        shape = [len(inputs) if axis == "batch" else int(axis) for axis in spec.axes]
        states.append(np.full(shape, spec.initial, spec.dtype))
    return runner.run([inputs], states)[0]


def assert_equal(reply: Reply, wanted: dict[str, Array], steps: slice = slice(None)) -> None:
    assert set(reply) == set(wanted)
    for name, array in reply.items():
        assert_close(array, wanted[name][:, steps])


async def test_without_a_sequence_every_row_starts_from_the_initial_state(way: Way, bundles: Path) -> None:
    for _ in range(2):
        reply = await way.infer("tiny", [Tensor("tokens", TOKENS)], version="1", id="r1")
        assert_equal(reply, expected(bundles, "tiny", TOKENS))
        assert reply.document["id"] == "r1"
        assert (reply.document["model_name"], reply.document["model_version"]) == ("tiny", "1")


async def test_the_highest_version_answers_where_none_is_named(raw: Way, bundles: Path) -> None:
    reply = await raw.infer("tiny", [Tensor("tokens", TOKENS)])
    assert_equal(reply, expected(bundles, "tiny", TOKENS, "2"))
    assert reply.document["model_version"] == "2"


async def test_only_the_outputs_that_were_named_come_in_their_order(way: Way) -> None:
    reply = await way.infer("tiny", [Tensor("tokens", TOKENS)], outputs=["surprise"])
    assert list(reply) == ["surprise"]
    both = await way.infer("tiny", [Tensor("tokens", TOKENS)], outputs=["surprise", "logits"])
    assert list(both) == ["surprise", "logits"]


async def test_a_batch_of_sequences_in_pieces_is_the_whole(way: Way, bundles: Path) -> None:
    wanted = expected(bundles, "tiny-stream", VALUES)
    cuts = [(0, 1), (1, 4), (4, 9), (9, 10)]
    for start, stop in cuts:
        reply = await way.infer(
            "tiny-stream",
            [Tensor("values", VALUES[:, start:stop])],
            sequence_id="wave",
            sequence_start=start == 0,
            sequence_end=stop == 10,
        )
        assert_equal(reply, wanted, slice(start, stop))


async def test_sequences_interleave_by_model_and_id(way: Way, bundles: Path) -> None:
    wanted = expected(bundles, "tiny", TOKENS, "2")
    ids: list[int | str] = [5, "5", 2**64 - 1]
    for step in range(TOKENS.shape[1]):
        for row, sequence in enumerate(ids):
            inputs = [Tensor("tokens", TOKENS[row : row + 1, step : step + 1])]
            reply = await way.infer("tiny", inputs, sequence_id=sequence, sequence_start=step == 0)
            assert_close(reply["logits"][0, 0], wanted["logits"][row, step])


@pytest.mark.parametrize("nobody", [0, ""])
async def test_an_id_of_zero_or_nothing_is_no_sequence(raw: Way, nobody: int | str) -> None:
    for _ in range(2):
        reply = await raw.infer("tiny", [Tensor("tokens", TOKENS[:1])], outputs=["surprise"], sequence_id=nobody)
        first = reply["surprise"]
    again = await raw.infer("tiny", [Tensor("tokens", TOKENS[:1])], outputs=["surprise"])
    np.testing.assert_array_equal(first, again["surprise"])


async def test_an_unknown_sequence_must_specify_start(way: Way) -> None:
    with pytest.raises(Refusal, match="must specify the START flag") as caught:
        await way.infer("tiny", [Tensor("tokens", TOKENS[:1])], sequence_id=9)
    assert caught.value.reason == "SEQUENCE_NOT_STARTED"
    assert caught.value.code in {"400", "INVALID_ARGUMENT", "STREAM"}


async def test_an_idle_sequence_ends_with_a_reason(raw: Way, service: Service, clock: ManualClock) -> None:
    await raw.infer("tiny", [Tensor("tokens", TOKENS[:1])], sequence_id=9, sequence_start=True)
    clock.now += 90_000
    await service.expire()
    with pytest.raises(Refusal, match="no step came within its idle time") as caught:
        await raw.infer("tiny", [Tensor("tokens", TOKENS[:1])], sequence_id=9)
    assert caught.value.reason == "SESSION_IDLE"
    assert caught.value.code == "NOT_FOUND"


async def test_a_position_makes_a_repeat_harmless_and_the_reply_tells_it(way: Way) -> None:
    first = [Tensor("tokens", TOKENS[:1, :4])]
    second = [Tensor("tokens", TOKENS[:1, 4:6])]
    asked: dict[str, Any] = {"sequence_id": "p", "outputs": ["surprise"]}
    reply = await way.infer("tiny", first, sequence_start=True, tidegate_position=0, **asked)
    assert reply.document["parameters"] == {"tidegate_position": 4}
    replies = [await way.infer("tiny", second, tidegate_position=4, **asked) for _ in range(2)]
    np.testing.assert_array_equal(replies[0]["surprise"], replies[1]["surprise"])
    assert replies[1].document["parameters"] == {"tidegate_position": 6}
    with pytest.raises(Refusal) as caught:
        await way.infer("tiny", first, tidegate_position=4, **asked)
    assert caught.value.reason == "POSITION_CONFLICT"


async def test_timeouts_and_priorities_are_taken(way: Way, clock: ManualClock) -> None:
    inputs = [Tensor("tokens", TOKENS[:1])]
    clock.pace = 0.001
    await way.infer("tiny", inputs, timeout=50_000_000, priority=3)
    with pytest.raises(Refusal) as caught:
        await way.infer("tiny", inputs, timeout=1)
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert caught.value.code in {"504", "DEADLINE_EXCEEDED", "STREAM"}


async def test_triton_s_own_parameters_are_ignored(raw: Way) -> None:
    inputs = [Tensor("tokens", TOKENS[:1])]
    await raw.infer("tiny", inputs, triton_enable_empty_final_response=True, triton_anything="x")


async def test_a_sequence_is_a_session_that_v1_sees_and_does_not_write(raw: Way, service: Service) -> None:
    await raw.infer("tiny", [Tensor("tokens", TOKENS[:1])], sequence_id=5, sequence_start=True)
    (session,) = (await service.list_sessions()).sessions
    assert (session.id, session.origin, session.position) == ("q~i~tiny~5", "oip", 12)
    with pytest.raises(FailedPreconditionError) as caught:
        await service.step(session.id, Input(text="a"))
    assert caught.value.reason == "OIP_SEQUENCE"


async def test_a_restart_is_counted_with_its_reason(raw: Way, service: Service) -> None:
    for _ in range(2):
        await raw.infer("tiny", [Tensor("tokens", TOKENS[:1])], sequence_id=5, sequence_start=True)
    assert service.statistics().ended == {"SEQUENCE_RESTARTED": 1}


async def test_sequences_share_runs_with_sessions(raw: Way, service: Service) -> None:
    """Both kinds wait for the same engine, so steps that arrive together meet in one run."""
    await raw.infer("tiny", [Tensor("tokens", TOKENS[:1])], sequence_id=5, sequence_start=True)
    session = await service.open_session(SessionRequest("tiny"))
    (model,) = [each for each in service.statistics().models if (each.model, each.version) == ("tiny", "2")]
    before = model.num_runs
    step = service.step(session.id, Input(text="a"))
    reply, _ = await asyncio.gather(raw.infer("tiny", [Tensor("tokens", TOKENS[:1, :1])], sequence_id=5), step)
    assert reply["logits"].shape == (1, 1, 65)
    (model,) = [each for each in service.statistics().models if (each.model, each.version) == ("tiny", "2")]
    assert model.num_runs - before <= 2


async def test_a_sequence_goes_on_over_another_transport(bundles: Path, http: Any, stub: Any) -> None:
    ways: list[Way] = [HttpWay(http, "json"), GrpcWay(stub, "raw"), HttpWay(http, "binary"), GrpcWay(stub, "stream")]
    wanted = expected(bundles, "tiny-stream", VALUES[:1])
    for step, way in enumerate(ways):
        inputs = [Tensor("values", VALUES[:1, step : step + 1])]
        reply = await way.infer("tiny-stream", inputs, sequence_id=1, sequence_start=step == 0)
        assert_equal(reply, wanted, slice(step, step + 1))
