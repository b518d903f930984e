"""A service over tiny bundles, with a clock that a test turns by hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bundles import VOCABULARY, write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tests.clock import ManualClock
from tidegate.api import GeneratedToken, GenerationDone, Prediction
from tidegate.bundle import GRAPH, Bundle, read_bundle, write_bundle
from tidegate.config import load_settings
from tidegate.service import Service

EVERY = len(VOCABULARY)
"""Candidates enough to see the whole distribution."""


@asynccontextmanager
async def serving(root: Path, clock: ManualClock | None = None, **settings: Any) -> AsyncIterator[Service]:
    """A started service; when it is left, everything is answered and the arenas hold the live sessions only."""
    service = Service(load_settings({"bundles": root, **settings}), None if clock is None else clock.clock())
    async with started(service):
        yield service


@asynccontextmanager
async def started(service: Service) -> AsyncIterator[Service]:
    """The service, started; as `serving` when it is left."""
    await service.start()
    try:
        yield service
        await service.drain()
        check_integrity(service)
    finally:
        await service.stop()


def check_integrity(service: Service) -> None:
    """No work is left, and there are as many slots as sessions."""
    statistics = service.statistics()
    assert sum(model.queued for model in statistics.models) == 0
    assert sum(model.arena_slots_used for model in statistics.models) == statistics.num_sessions


def write_bundles(root: Path) -> Path:
    """Write one bundle of each cell and task."""
    for cell in ("lstm", "gru", "rnn"):
        write_tiny_bundle(root, f"tiny-{cell}", cell=cell)
    write_tiny_forecast_bundle(root)
    write_tiny_stream_bundle(root)
    return root


def change_bundle(path: Path, version: str, **changes: Any) -> Bundle:
    """Write the bundle in ``path`` again as ``version``, with fields of its manifest changed."""
    manifest = read_bundle(path).manifest
    files = {name: (path / name).read_bytes() for name in manifest.files}
    return read_bundle(
        write_bundle(path.parent.parent, manifest.model_copy(update={"version": version, **changes}), files)
    )


def corrupt(path: Path) -> None:
    """Flip a bit of the graph."""
    data = bytearray((path / GRAPH).read_bytes())
    data[-1] ^= 1
    (path / GRAPH).write_bytes(data)


def numbers(prediction: Prediction) -> NDArray[np.float64]:
    """Return everything that a prediction says, [steps, numbers], candidates by id."""
    if prediction.next is not None:
        told = [[candidate.probability for candidate in sorted(step, key=lambda it: it.id)] for step in prediction.next]
    elif prediction.forecast is not None:
        told = [np.ravel(forecast.values).tolist() for forecast in prediction.forecast]
    else:
        told = [np.ravel(step).tolist() for step in (prediction.outputs or {})["score"]]
    if prediction.surprise is not None and prediction.surprise.steps is not None:
        told = [[*step, surprise] for step, surprise in zip(told, prediction.surprise.steps, strict=True)]
    return np.array(told, np.float64)


async def collect(
    events: AsyncGenerator[GeneratedToken | GenerationDone],
) -> tuple[list[GeneratedToken], GenerationDone]:
    """Return a generation's tokens and its end."""
    found: Sequence[GeneratedToken | GenerationDone] = [event async for event in events]
    tokens = [event for event in found if isinstance(event, GeneratedToken)]
    (done,) = [event for event in found if isinstance(event, GenerationDone)]
    assert found[-1] is done
    return tokens, done
