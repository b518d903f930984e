"""However a sequence is cut, whatever runs beside it: what a session is told is what the whole sequence is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import VOCABULARY, write_tiny_bundle
from tests.service.serving import EVERY, change_bundle, collect, numbers, serving, write_bundles
from tidegate.api import GenerationDone, Input, Prediction, Sampling, SessionRequest, StepOptions
from tidegate.bundle import read_bundle
from tidegate.proof import ABSOLUTE, excess
from tidegate.replay import GraphRunner
from tidegate.service import Service

WHOLE = StepOptions(top=EVERY, every_step=True)
TEXTS = ("tiny-lstm", "tiny-gru", "tiny-rnn")
MODELS = (*TEXTS, "tiny-forecast", "tiny-stream")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundles(tmp_path_factory.mktemp("bundles"))


def sequence(model: str, steps: int, rng: Random) -> Input:
    if model in TEXTS:
        return Input(text="".join(rng.choices(VOCABULARY, k=steps)))
    if model == "tiny-forecast":
        return Input(values=np.array([[rng.gauss(100, 20), float(hour % 24)] for hour in range(steps)]))
    return Input(values=np.array([[rng.gauss(0, 1), rng.gauss(0, 1)] for _ in range(steps)]))


def cut(source: Input, start: int, stop: int) -> Input:
    if source.text is not None:
        return Input(text=source.text[start:stop])
    assert source.values is not None
    return Input(values=source.values[start:stop])


async def stepped(service: Service, model: str, source: Input, steps: int, rng: Random) -> list[Prediction]:
    """Send a sequence through a session of its own, in random chunks, with random pauses, some not awaited."""
    session = await service.open_session(SessionRequest(model))
    replies, start = [], 0
    while start < steps:
        size = rng.choice([1, 1, 2, 7, steps])
        replies.append(service.step(session.id, cut(source, start, start + size), WHOLE, position=None))
        start = min(start + size, steps)
        for _ in range(rng.choice([0, 0, 1, 3])):
            await asyncio.sleep(0)
        if rng.random() < 0.5:
            assert (await replies[-1]).position == start
    results = [await reply for reply in replies]
    assert (await service.get_session(session.id)).position == steps
    if rng.random() < 0.5:
        await service.close_session(session.id)
    return [result.prediction for result in results]


async def generated(service: Service, model: str, prompt: Input, seed: int, on_session: bool) -> GenerationDone:
    sampling = Sampling(max_tokens=8, seed=seed)
    if not on_session:
        return (await collect(service.generate(model, None, prompt, sampling)))[1]
    session = await service.open_session(SessionRequest(model))
    return (await collect(service.generate_on_session(session.id, prompt, sampling)))[1]


async def whole(service: Service, model: str, source: Input) -> Prediction:
    (prediction,) = (await service.predict(model, None, [source], WHOLE)).predictions
    return prediction


@pytest.mark.parametrize("arena", ["host", "device"])
@settings(max_examples=25)
@given(
    jobs=st.lists(st.tuples(st.sampled_from(MODELS), st.integers(1, 60)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
    max_rows=st.sampled_from([1, 3, 256]),
    max_steps=st.sampled_from([5, 64, 4096]),
)
def test_any_split_of_any_sequence_in_any_mix_gives_what_the_whole_gives(
    root: Path, arena: str, jobs: list[tuple[str, int]], seed: int, max_rows: int, max_steps: int
) -> None:
    async def check() -> None:
        rng = Random(seed)
        sources = [sequence(model, steps, rng) for model, steps in jobs]
        async with serving(root, max_rows=max_rows, max_steps=max_steps, arena=arena) as service:
            alone = [await whole(service, model, source) for (model, _), source in zip(jobs, sources, strict=True)]
            prompts = [(model, source) for (model, _), source in zip(jobs, sources, strict=True) if model in TEXTS]
            expected = [await generated(service, model, prompt, seed, False) for model, prompt in prompts]
            together = asyncio.gather(
                *(whole(service, job[0], source) for job, source in zip(jobs, sources, strict=True))
            )
            texts = asyncio.gather(*(generated(service, model, it, seed, rng.random() < 0.5) for model, it in prompts))
            split = await asyncio.gather(
                *(
                    stepped(service, *job, rng=rng)
                    for job in ((m, s, n) for (m, n), s in zip(jobs, sources, strict=True))
                )
            )
            for one, mixed, pieces in zip(alone, await together, split, strict=True):
                assert excess(numbers(one), numbers(mixed)) <= ABSOLUTE
                assert excess(numbers(one), np.concatenate([numbers(piece) for piece in pieces])) <= ABSOLUTE
            assert await texts == expected

    asyncio.run(check())


@pytest.mark.parametrize("model", ["tiny-lstm", "tiny-gru", "tiny-rnn"])
async def test_the_whole_is_what_the_bare_graph_gives(root: Path, model: str) -> None:
    bundle = read_bundle(root / model / "1")
    text = "".join(Random(1).choices(VOCABULARY, k=200))
    tokens = np.array([[VOCABULARY.index(character) for character in text]])
    outputs = GraphRunner(bundle.graph, bundle.manifest).walk({"tokens": tokens}, [200]).outputs
    logits = outputs["logits"][0].astype(np.float64)
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    async with serving(root) as service:
        found = numbers(await whole(service, model, Input(text=text)))
    assert excess(np.column_stack([expected, outputs["surprise"][0]]), found) <= ABSOLUTE


async def test_what_is_told_of_the_last_step_is_the_last_of_every_step(root: Path) -> None:
    async with serving(root) as service:
        for model in MODELS:
            source = sequence(model, 30, Random(3))
            every = await whole(service, model, source)
            (last,) = (await service.predict(model, None, [source], StepOptions(top=EVERY))).predictions
            assert excess(numbers(every)[-1:, : numbers(last).shape[1]], numbers(last)) <= ABSOLUTE
            if every.surprise is not None and every.surprise.steps is not None:
                assert last.surprise is not None
                assert last.surprise.mean == pytest.approx(np.mean(every.surprise.steps), rel=1e-5)
                assert last.surprise.unit == every.surprise.unit


@pytest.mark.parametrize("arena", ["host", "device"])
@pytest.mark.parametrize("execution", ["inline", "thread"])
async def test_rows_share_runs_in_line_and_in_a_thread(root: Path, execution: str, arena: str) -> None:
    async with serving(root, execution=execution, arena=arena) as service:
        sessions = [await service.open_session(SessionRequest("tiny-gru")) for _ in range(64)]
        for character in "streaming":
            await asyncio.gather(*(service.step(session.id, Input(text=character)) for session in sessions))
        (statistics,) = [model for model in service.statistics().models if model.model == "tiny-gru"]
    assert (statistics.rows_per_run, statistics.num_steps) == ({64: 9}, 64 * 9)


async def test_rows_that_see_their_neighbours_run_alone_unless_told_otherwise(tmp_path: Path) -> None:
    change_bundle(write_tiny_bundle(tmp_path), "2", batch_invariant=False)
    for allowed, runs in ((False, {1: 8}), (True, {8: 1})):
        async with serving(tmp_path, allow_batch_dependence=allowed) as service:
            await service.predict("tiny", None, [Input(text="abc")] * 8, StepOptions())
            (statistics,) = [model for model in service.statistics().models if model.version == "2"]
            assert statistics.rows_per_run == runs
            assert service.model("tiny").batch_invariant is False
