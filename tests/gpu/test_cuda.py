"""CUDA gives what the CPU gives, wherever the states lie, whether runs are captured or not."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.bundles import VOCABULARY
from tests.service.serving import numbers, serving, write_bundles
from tests.service.settings import write_bundle_with_settings
from tidegate.api import Input, SessionRequest, StepOptions
from tidegate.bundle import Bundle, read_bundle
from tidegate.engine.arena import INITIAL, Arena, ArenaLike, Budget, Plane
from tidegate.engine.device.arena import DeviceArena, DeviceMemory
from tidegate.engine.device.runner import open_device_runner
from tidegate.engine.loop import RunnerLike
from tidegate.engine.runner import Runner
from tidegate.proof import ABSOLUTE, excess
from tidegate.replay import random_inputs

MODELS = ("tiny-lstm", "tiny-gru", "tiny-rnn", "tiny-forecast", "tiny-stream", "tuned")
READY_MADE = Path(__file__).parents[2] / "bundles"
NUM_SESSIONS = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_bundles(tmp_path_factory.mktemp("bundles"))
    write_bundle_with_settings(root)
    return root


def on_host(model: Bundle, provider: str) -> tuple[ArenaLike, RunnerLike]:
    return Arena([Plane.of_state(state) for state in model.manifest.states], Budget(1 << 24)), Runner(model, provider)


def on_device(model: Bundle, *, captures: bool) -> tuple[ArenaLike, RunnerLike]:
    memory = DeviceMemory(model.manifest.states, "cuda", 16)  # grows on the way
    return DeviceArena(memory, None, Budget(1 << 24)), open_device_runner(model, memory, "cuda", captures=captures)


def streamed(
    model: Bundle, arena: ArenaLike, runner: RunnerLike
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """Step sessions in changing company, some results not kept; return every output of every run."""
    rng, count = np.random.default_rng(0), len(model.manifest.states)
    slots = [arena.allocate() for _ in range(NUM_SESSIONS)]
    begun: set[int] = set()
    told = []
    for steps in (1, 1, 1, 3, 1, 7, 1, 1, 1, 1, 2, 1):
        some = [int(slot) for slot in rng.permutation(slots)[: rng.integers(1, NUM_SESSIONS + 1)]]
        inputs = random_inputs(model.manifest, len(some), steps, rng)
        sources = np.array([slot if slot in begun else INITIAL for slot in some])
        outputs, states = runner.run(
            [inputs[spec.name] for spec in model.manifest.sources], arena.gather(sources, count)
        )
        told += [outputs[spec.name].copy() for spec in model.manifest.outputs]
        kept = np.flatnonzero(rng.random(len(some)) < 0.8)
        if len(kept):
            arena.scatter(np.array(some)[kept], arena.select(kept, states))
            begun.update(some[row] for row in kept)
    return told


@pytest.mark.parametrize("way", ["host", "device", "captured"])
@pytest.mark.parametrize("name", MODELS)
def test_cuda_streams_what_the_cpu_streams(root: Path, name: str, way: str) -> None:
    model = read_bundle(root / name / "1")
    pair = on_host(model, "cuda") if way == "host" else on_device(model, captures=way == "captured")
    for expected, found in zip(streamed(model, *on_host(model, "cpu")), streamed(model, *pair), strict=True):
        assert excess(expected, found) <= ABSOLUTE


@pytest.mark.parametrize("way", ["host", "device", "captured"])
@pytest.mark.parametrize("name", ["shakespeare-lstm", "shakespeare-gru", "load-lstm", "vad"])
def test_the_ready_made_bundles_too(name: str, way: str) -> None:
    model = read_bundle(max((READY_MADE / name).iterdir(), key=lambda version: int(version.name)))
    pair = on_host(model, "cuda") if way == "host" else on_device(model, captures=way == "captured")
    for expected, found in zip(streamed(model, *on_host(model, "cpu")), streamed(model, *pair), strict=True):
        assert excess(expected, found) <= ABSOLUTE


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("arena", ["auto", "host"])
async def test_a_service_on_cuda_says_what_one_on_the_cpu_says(root: Path, arena: str, cuda_graphs: bool) -> None:
    text = Input(text="".join(Random(0).choices(VOCABULARY, k=100)))
    options = StepOptions(top=len(VOCABULARY), every_step=True)
    async with serving(root) as service:
        expected = numbers((await service.predict("tiny-lstm", None, [text], options)).predictions[0])
    async with serving(root, provider="cuda", arena=arena, cuda_graphs=cuda_graphs) as service:
        assert service.model("tiny-lstm").provider == "CUDAExecutionProvider"
        session = await service.open_session(SessionRequest("tiny-lstm"))
        replies = [service.step(session.id, Input(text=character), options) for character in text.text or ""]
        found = np.concatenate([numbers((await reply).prediction) for reply in replies])
        await service.close_session(session.id)
    assert excess(expected, found) <= ABSOLUTE
