"""The promise of the house: any split of any sequence in any mix of sessions gives what PyTorch gives at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tidegate.api import Input, Prediction, SessionRequest, StepOptions
from tidegate.bundle import ForecastCodec
from tidegate.config import load_settings
from tidegate.proof import ABSOLUTE, excess
from tidegate.service import Service
from tidegate_export.candidate import export_candidate
from tidegate_export.networks import forecast_candidate, token_candidate
from tidegate_models.networks import Cell, RecurrentNetwork, quantile_network, token_network

CELLS: tuple[Cell, ...] = ("lstm", "gru", "rnn")
ALPHABET = "abcdefghijk"
QUANTILES = (0.1, 0.5, 0.9)
MEAN, SCALE = 50.0, 20.0
WHOLE = StepOptions(top=len(ALPHABET), every_step=True)

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Exported:
    """Networks by the name that they are served under, and where their bundles are."""

    root: Path
    networks: dict[str, RecurrentNetwork]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("bundles")
    networks: dict[str, RecurrentNetwork] = {}
    torch.manual_seed(0)
    about: dict[str, Any] = {"version": "1", "provenance": {}, "report": {}}
    for cell in CELLS:
        name = f"text-{cell}"
        networks[name] = token_network(
            num_tokens=len(ALPHABET), embedding_size=5, cell=cell, hidden_size=12, num_layers=2, dropout=0.2
        ).eval()
        vocabulary = {"tokens": list(ALPHABET), "unknown": None}
        export_candidate(token_candidate(networks[name], vocabulary, name=name, **about), root)
    networks["load-gru"] = quantile_network(
        num_columns=3, embedding_size=4, horizon=4, quantiles=QUANTILES, cell="gru", hidden_size=8, num_layers=1
    ).eval()
    codec = ForecastCodec(target="load", horizon=4, quantiles=QUANTILES, seasonal_naive_error=4.0)
    transforms = {
        "hour": {"kind": "cyclic", "period": 24.0},
        "load": {"kind": "standard", "mean": MEAN, "scale": SCALE},
    }
    export_candidate(forecast_candidate(networks["load-gru"], codec, transforms, name="load-gru", **about), root)
    return Exported(root, networks)


def sequence(model: str, steps: int, rng: Random) -> Input:
    if model.startswith("text"):
        return Input(text="".join(rng.choices(ALPHABET, k=steps)))
    return Input(values=np.array([[float(hour % 24), rng.gauss(MEAN, SCALE)] for hour in range(steps)]))


def cut(source: Input, start: int, stop: int) -> Input:
    if source.text is not None:
        return Input(text=source.text[start:stop])
    assert source.values is not None
    return Input(values=source.values[start:stop])


def by_pytorch(network: RecurrentNetwork, source: Input) -> Numbers:
    """What PyTorch says to the whole sequence at once, [steps, numbers]."""
    with torch.no_grad():
        if source.text is not None:
            tokens = torch.tensor([[ALPHABET.index(character) for character in source.text]])
            logits, _ = network(tokens, network.initial_state(1))
            return np.asarray(logits[0].double().softmax(dim=1))
        assert source.values is not None
        hour, load = torch.from_numpy(source.values).T
        angle = hour * (2 * torch.pi / 24)
        columns = torch.stack([angle.sin(), angle.cos(), (load - MEAN) / SCALE], dim=1).float()
        quantiles, _ = network(columns[None], network.initial_state(1))
        return np.asarray((quantiles[0].double() * SCALE + MEAN).flatten(1))


def told(prediction: Prediction) -> Numbers:
    if prediction.next is not None:
        steps = [sorted(step, key=lambda candidate: candidate.id) for step in prediction.next]
        return np.array([[candidate.probability for candidate in step] for step in steps])
    return np.array([np.ravel(forecast.values) for forecast in prediction.forecast or []])


async def stream(service: Service, model: str, source: Input, steps: int, rng: Random) -> Numbers:
    """Send the sequence through a session in random chunks, with others beside it."""
    session = await service.open_session(SessionRequest(model))
    replies, start = [], 0
    while start < steps:
        stop = min(steps, start + rng.choice([1, 1, 1, 2, 5, 40]))
        replies.append(
            service.step(session.id, cut(source, start, stop), WHOLE, position=start if rng.random() < 0.5 else None)
        )
        start = stop
        if rng.random() < 0.5:
            await replies[-1]
    return np.concatenate([told((await reply).prediction) for reply in replies])


@settings(max_examples=20)
@given(
    jobs=st.lists(
        st.tuples(st.sampled_from([*(f"text-{cell}" for cell in CELLS), "load-gru"]), st.integers(1, 80)),
        min_size=1,
        max_size=8,
    ),
    seed=st.integers(0, 2**32 - 1),
    max_rows=st.sampled_from([1, 3, 256]),
)
def test_any_split_in_any_mix_of_sessions_gives_what_pytorch_gives_at_once(
    exported: Exported, jobs: list[tuple[str, int]], seed: int, max_rows: int
) -> None:
    async def check() -> None:
        rng = Random(seed)
        service = Service(load_settings({"bundles": exported.root, "max_rows": max_rows}))
        await service.start()
        sources = [sequence(model, steps, rng) for model, steps in jobs]
        try:
            found = await asyncio.gather(
                *(stream(service, model, it, steps, rng) for (model, steps), it in zip(jobs, sources, strict=True))
            )
            for (model, _), source, numbers in zip(jobs, sources, found, strict=True):
                assert excess(by_pytorch(exported.networks[model], source), numbers) <= ABSOLUTE
        finally:
            await service.stop()

    asyncio.run(check())


async def test_a_ragged_prediction_of_many_sequences_gives_what_pytorch_gives(exported: Exported) -> None:
    rng = Random(5)
    service = Service(load_settings({"bundles": exported.root}))
    await service.start()
    try:
        for model, network in exported.networks.items():
            sources = [sequence(model, steps, rng) for steps in (1, 300, 17, 17, 2)]
            result = await service.predict(model, None, sources, WHOLE)
            for source, prediction in zip(sources, result.predictions, strict=True):
                assert excess(by_pytorch(network, source), told(prediction)) <= ABSOLUTE
    finally:
        await service.stop()
