"""Settings: what a caller gives beside a sequence holds for whom it was given, and for nobody and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.serving import change_bundle, serving, started
from tests.service.settings import LIMIT, SPEAKER, Array, by_hand, write_bundle_with_settings
from tidegate.api import (
    Input,
    InputValue,
    Prediction,
    RestoreRequest,
    RowSteps,
    SessionGroup,
    SessionRequest,
    StepOptions,
)
from tidegate.bundle import SettingSpec, read_bundle
from tidegate.codecs.settings import SettingsCodec
from tidegate.config import load_settings
from tidegate.errors import (
    AlreadyExistsError,
    InvalidInputError,
    PositionConflictError,
)
from tidegate.proof import prove
from tidegate.replay import random_inputs
from tidegate.reply import RowsReply
from tidegate.service import Service
from tidegate.sessions.stores.memory import MemoryStore

TUNED = "tuned"
EVERY = StepOptions(every_step=True)
Values = dict[str, Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    change_bundle(write_bundle_with_settings(root), "2")
    return root


def inputs(values: Values) -> tuple[InputValue, ...]:
    return tuple(InputValue.of(name, values[name]) for name in sorted(values))


def steps(*rows: tuple[float, float], **values: Any) -> Input:
    return Input(values=np.array(rows, np.float32), inputs=inputs(values))


def said(prediction: Prediction) -> Array:
    assert prediction.outputs is not None
    return np.asarray(prediction.outputs["y"], np.float32)


CODEC = SettingsCodec(
    [
        SettingSpec(name="limit", dtype="float32", axes=("batch",), default=(6.0,)),
        SettingSpec(name="speaker", dtype="float16", axes=("batch", 1, 2), default=(0.0,)),
        SettingSpec(name="language", dtype="int32", axes=(), default=(3,)),
        SettingSpec(name="is_on", dtype="bool", axes=(1,), default=(1,)),
    ]
)


def test_values_take_the_shape_and_the_dtype_of_one_row() -> None:
    given = CODEC.encode(inputs({"limit": [2], "speaker": [1, 2], "is_on": True}))
    assert [None if value is None else (value.tolist(), value.dtype.name) for value in given] == [
        (2.0, "float32"),
        ([[1.0, 2.0]], "float16"),
        None,
        ([True], "bool"),
    ]
    assert CODEC.encode(()) == ()
    assert [value.tolist() for value in CODEC.defaults] == [6.0, [[0.0, 0.0]], 3, [True]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"limt": 1},
            "inputs: unknown name 'limt': did you mean 'limit'? The model has limit, speaker, language, is_on",
        ),
        ({"limit": [1, 2]}, "inputs: limit takes one number, not [2]"),
        ({"limit": []}, "inputs: limit takes one number, not [0]"),
        ({"speaker": 1}, "inputs: speaker takes the shape [1, 2], not one number"),
        ({"speaker": [[1], [2], [3]]}, "inputs: speaker takes the shape [1, 2], not [3, 1]"),
        ({"speaker": [1, 1e6]}, "inputs: speaker is float16, which 1e+06 is not"),
        ({"limit": float("nan")}, "inputs: limit is float32, which nan is not"),
        ({"limit": 1e300}, "inputs: limit is float32, which 1e+300 is not"),
        ({"language": 1.5}, "inputs: language is int32, which 1.5 is not"),
        ({"language": 2.0**40}, "inputs: language is int32, which 1.09951e+12 is not"),
        ({"is_on": 2}, "inputs: is_on is bool, which 2 is not"),
    ],
)
def test_a_value_that_does_not_fit_is_told_in_one_line(values: Values, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        CODEC.encode(inputs(values))
    assert caught.value.message == words


def test_a_model_without_settings_takes_none() -> None:
    with pytest.raises(InvalidInputError, match="this model has none beside its sequence, so no 'limit'"):
        SettingsCodec([]).encode(inputs({"limit": 1}))


@dataclass
class Sequence:
    """What numpy says of a session: its own values, its state, and where its checkpoint is."""

    values: Values
    state: Array = field(default_factory=lambda: np.zeros(2, np.float32))
    position: int = 0
    kept: tuple[Array, int] | None = None

    def step(self, rows: Array, values: Values) -> Array:
        told, self.state = by_hand(rows, self.state, **{**self.values, **values})
        self.position += len(rows)
        return told


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "limit": st.integers(-3, 9).map(float),
        "speaker": st.lists(st.integers(-2, 2).map(float), min_size=2, max_size=2),
        "language": st.integers(0, 3),
    },
)
"""Whole numbers: sums of them are exact, whatever their order."""
NOTHING: Values = {}


@settings(max_examples=60)
@given(st.data())
async def test_whatever_is_mixed_each_row_is_told_what_the_graph_says_by_hand(root: Path, data: st.DataObject) -> None:
    arena = data.draw(st.sampled_from(["host", "device"]))
    options = {"bundles": root, "max_rows": 4, "max_steps": 16, "arena": arena}
    service = Service(load_settings(options), store=MemoryStore())
    async with started(service):
        known: dict[str, Sequence] = {}

        async def open_session(values: Values) -> None:
            durable = data.draw(st.booleans())
            info = await service.open_session(SessionRequest(TUNED, "1", durable=durable, inputs=inputs(values)))
            known[info.id] = Sequence(values)

        await open_session(data.draw(VALUES))
        for _ in range(data.draw(st.integers(1, 6))):
            name = data.draw(st.sampled_from(sorted(known)))
            sequence = known[name]
            match data.draw(
                st.sampled_from(["open", "step", "step", "step", "fork", "keep", "rewind", "restore", "upgrade"])
            ):
                case "open":
                    await open_session(data.draw(VALUES))
                case "fork":
                    (child,) = await service.fork_session(name)
                    known[child.id] = Sequence(sequence.values, sequence.state, sequence.position)
                case "keep":
                    await service.checkpoint_session(name, "kept")
                    sequence.kept = sequence.state, sequence.position
                case "rewind" if sequence.kept is not None:
                    await service.rewind_session(name, "kept")
                    sequence.state, sequence.position = sequence.kept
                case "restore":
                    snapshot = await service.snapshot_session(name)
                    again = await service.restore_session(snapshot, RestoreRequest(durable=data.draw(st.booleans())))
                    known[again.id] = Sequence(sequence.values, sequence.state, sequence.position)
                case "upgrade":
                    await service.upgrade_session(name, "2")
                case _:
                    await step_some(service, known, data)
        for name, sequence in known.items():
            rows = np.ones((1, 2), np.float32)
            result = await service.step(name, steps((1, 1)), position=sequence.position)
            np.testing.assert_array_equal(said(result.prediction), sequence.step(rows, NOTHING))


async def step_some(service: Service, known: dict[str, Sequence], data: st.DataObject) -> None:
    """Step several sessions at once, some twice, beside sequences without a session; each has the right answer."""
    due: list[tuple[asyncio.Future[Any], Array]] = []
    for name in data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=6)):
        rows = np.array(data.draw(st.lists(st.tuples(*[st.integers(-4, 4)] * 2), min_size=1, max_size=5)), np.float32)
        values, sequence = data.draw(st.just(NOTHING) | VALUES), known[name]
        position = sequence.position
        source = Input(values=rows, inputs=inputs(values))
        expected = sequence.step(rows, values)
        due.append((service.step(name, source, EVERY, position), expected))
    values = data.draw(VALUES)
    sources = [steps((1, 2), (3, 4), **values), steps((2, 2))]
    predicted = await service.predict(TUNED, "1", sources, EVERY)
    for prediction, (source, own) in zip(
        predicted.predictions, zip(sources, (values, NOTHING), strict=True), strict=True
    ):
        assert source.values is not None
        told, _ = by_hand(np.asarray(source.values, np.float32), np.zeros(2, np.float32), **own)
        np.testing.assert_array_equal(said(prediction), told)
    for future, expected in due:
        np.testing.assert_array_equal(said((await future).prediction), expected)


@pytest.fixture(params=[False, True], ids=["ephemeral", "durable"])
def durable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_a_repeat_has_the_same_settings(root: Path, durable: bool) -> None:
    service = Service(load_settings({"bundles": root}), store=MemoryStore())
    async with started(service):
        name = (await service.open_session(SessionRequest(TUNED, durable=durable, inputs=inputs({"language": 5})))).id
        first = await service.step(name, steps((9, 9), limit=3), position=0)
        assert said(first.prediction).tolist() == [[8.0, 8.0]]
        again = await service.step(name, steps((9, 9), limit=[3.0]), position=0)
        np.testing.assert_array_equal(said(again.prediction), said(first.prediction))
        for other in (steps((9, 9)), steps((9, 9), limit=4), steps((9, 9), limit=3, language=5)):
            with pytest.raises(PositionConflictError, match="another input or other options"):
                await service.step(name, other, position=0)


async def test_settings_in_columns_hold_for_all_lanes(root: Path) -> None:
    async with serving(root) as service:
        ids = [(await service.open_session(SessionRequest(TUNED, inputs=inputs({"language": k})))).id for k in range(3)]
        source = steps((9, 9), (9, 9), (9, 9), limit=3.0)
        reply = RowsReply(3)
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(done.set_result)
        service.submit_columns(SessionGroup(ids), range(3), RowSteps(source), StepOptions(), None, reply)
        await done
        assert [said(result.prediction).tolist() for result in reply.results()] == [[[3.0 + k] * 2] for k in range(3)]
        again = await service.step(ids[1], steps((9, 9), limit=3.0), position=0)
        assert said(again.prediction).tolist() == [[4.0, 4.0]]
        wrong = RowsReply(3)
        service.submit_columns(
            SessionGroup(ids), range(3), RowSteps(steps((1, 1), (1, 1), (1, 1), limt=1)), StepOptions(), None, wrong
        )
        assert ["unknown name 'limt'" in str(result) for result in wrong.results()] == [True] * 3


async def test_an_opening_is_equal_only_with_equal_settings(root: Path, durable: bool) -> None:
    service = Service(load_settings({"bundles": root}), store=MemoryStore())
    async with started(service):
        request = SessionRequest(TUNED, durable=durable, id="mine", inputs=inputs({"limit": 3}))
        opened = await service.open_session(request)
        assert await service.open_session(request) == opened
        with pytest.raises(AlreadyExistsError):
            await service.open_session(SessionRequest(TUNED, durable=durable, id="mine"))


async def test_what_does_not_fit_opens_and_steps_nothing(root: Path, durable: bool) -> None:
    service = Service(load_settings({"bundles": root}), store=MemoryStore())
    async with started(service):
        with pytest.raises(InvalidInputError, match="unknown name 'limt'"):
            await service.open_session(SessionRequest(TUNED, durable=durable, inputs=inputs({"limt": 3})))
        assert (await service.list_sessions()).sessions == []
        name = (await service.open_session(SessionRequest(TUNED, durable=durable))).id
        with pytest.raises(InvalidInputError, match="takes the shape"):
            await service.step(name, steps((1, 1), speaker=1))
        assert (await service.get_session(name)).position == 0
        with pytest.raises(InvalidInputError, match="sequence 1: inputs: unknown name"):
            await service.predict(TUNED, None, [steps((1, 1)), steps((1, 1), limt=1)], EVERY)


async def test_a_session_moves_only_to_a_version_of_the_same_settings(
    root: Path, tmp_path: Path, durable: bool
) -> None:
    path = write_bundle_with_settings(tmp_path)
    change_bundle(path, "2", settings=())
    service = Service(load_settings({"bundles": tmp_path}), store=MemoryStore())
    async with started(service):
        assert service.model(TUNED).versions == ["1"]  # a graph whose inputs nobody feeds is not loaded
        name = (await service.open_session(SessionRequest(TUNED, durable=durable, inputs=inputs({"limit": 3})))).id
        other = path.parent / "3"
        spec = SettingSpec(name="limit", dtype="float32", axes=("batch",), default=(9.0,))
        manifest = change_bundle(path, "3").manifest
        changed = tuple(spec if each.name == "limit" else each for each in manifest.settings)
        change_bundle(path, "4", settings=changed)
        assert other.exists()
        await service.reload()
        await service.upgrade_session(name, "4")
        step = await service.step(name, steps((9, 9)))
        assert said(step.prediction).tolist() == [[3.0, 3.0]]


async def test_a_forged_snapshot_holds_no_settings_that_the_model_lacks(root: Path) -> None:
    from tidegate.sessions.snapshot import decode_snapshot, encode_snapshot

    async with serving(root) as service:
        name = (await service.open_session(SessionRequest(TUNED, inputs=inputs({"limit": 3})))).id
        body = decode_snapshot(await service.snapshot_session(name))
        body.inputs["limt"].values.append(1)
        with pytest.raises(InvalidInputError, match="snapshot's inputs: unknown name 'limt'") as caught:
            await service.restore_session(encode_snapshot(body), RestoreRequest())
        assert caught.value.reason == "BAD_SNAPSHOT"


async def test_a_model_shows_its_settings(root: Path) -> None:
    async with serving(root) as service:
        limit, speaker, language = service.model(TUNED).settings
        assert (limit.name, limit.dtype, limit.shape, limit.default) == ("limit", "float32", [], [LIMIT])
        assert (speaker.shape, speaker.default, language.dtype) == ([2], list(SPEAKER), "int64")


def test_the_proof_runs_settings_too(root: Path) -> None:
    bundle = read_bundle(root / TUNED / "1")
    assert prove(bundle.graph, bundle.manifest).passed
    (limit, *_) = bundle.manifest.settings
    drawn = random_inputs(bundle.manifest, 64, 1, np.random.default_rng(0))[limit.name]
    assert len(set(drawn.tolist())) == 64
