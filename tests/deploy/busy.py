"""A server's ordinary day within seconds: every kind of request, again and again, until told to stop."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle
from tests.servers import RunningServer
from tidegate.bundle import MANIFEST, DriftCalibration, Limit
from tidegate.client import Client

TEXT = "Hello World, how are you"
NO_TOKEN = 9999
ORDINARY = 100.0
EXTRAORDINARY = 900.0
BLOCK = 4
NIGHT = 0.3
"""Seconds between two days, in which others get the processor."""
CHART = DriftCalibration(
    block=BLOCK,
    factor=0.3,
    mean=1.2,
    spread=1.0,
    warning=Limit(width=3, run_length=100),
    drift=Limit(width=6, run_length=1000),
    autocorrelation=0.0,
    blocks=100,
    data="made up",
    ranges={"load": (0.0, 200.0)},
)


def write_bundles(folder: Path) -> Path:
    """Write a model of text and one of loads, both with control charts: that of loads knows loads around 100."""
    for bundle in (write_tiny_bundle(folder), write_tiny_forecast_bundle(folder)):
        manifest = json.loads((bundle / MANIFEST).read_text())
        chart = CHART.model_copy(update={"mean": 6.2} if manifest["task"] == "next_token" else {})
        manifest["drift"] = chart.model_dump(mode="json")
        (bundle / MANIFEST).write_text(json.dumps(manifest))
    return folder


def loads(level: float, steps: int) -> list[list[float]]:
    """Steps of the model of loads: the load around ``level``, and the hour."""
    return [[level + 10 * (hour % 3 - 1), float(hour % 24)] for hour in range(steps)]


def post(url: str, body: dict[str, Any]) -> Any:
    return httpx.post(url, json=body).raise_for_status().json()


class Day:
    """What a server's clients do."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._url = f"{server.http}/v1"
        with Client(server.grpc) as client:
            for durable in (True, False):
                client.open("tiny", id=f"kept-{durable}", durable=durable)

    def live(self, number: int) -> None:
        """Once everything."""
        for durable in (True, False):
            self._over_http(f"http-{number}-{durable}", durable=durable)
            self._over_grpc(f"grpc-{number}-{durable}", durable=durable)
        self._without_sessions()

    def _over_http(self, session: str, *, durable: bool) -> None:
        post(f"{self._url}/sessions", {"model": "tiny-forecast", "id": session, "durable": durable})
        steps = f"{self._url}/sessions/{session}:step"
        for position, row in enumerate(loads(ORDINARY, 2 * BLOCK)):
            post(steps, {"values": [row], "position": position})
        post(steps, {"values": [row], "position": position})
        assert httpx.post(steps, json={"values": [row], "position": 1}).status_code == 409
        assert httpx.post(steps, json={"values": [[1.0]]}).status_code == 400
        post(f"{self._url}/sessions/{session}:fork", {"ids": [f"{session}-fork"]})
        httpx.delete(f"{self._url}/sessions/{session}").raise_for_status()

    def _over_grpc(self, session: str, *, durable: bool) -> None:
        with Client(self._server.grpc) as client:
            opened = client.open("tiny", id=session, durable=durable)
            opened.step(TEXT)
            opened.checkpoint("before")
            with opened.stream() as stream:
                for letter in TEXT:
                    stream.step(letter)
            opened.rewind("before")
            with client.stream() as lanes:
                lanes.attach([opened])
                assert lanes.step([0], tokens=[NO_TOKEN], lengths=[1]).errors
            list(opened.generate(max_tokens=4))
            opened.close()

    def _without_sessions(self) -> None:
        post(f"{self._url}/models/tiny-forecast:predict", {"sequences": [{"values": loads(EXTRAORDINARY, 20 * BLOCK)}]})
        post(f"{self._url}/models/tiny:generate", {"text": "To be", "max_tokens": 4})


@contextlib.contextmanager
def kept_busy(server: RunningServer) -> Iterator[None]:
    """Live through days beside the block; what went wrong there is raised at its end."""
    stop, errors = threading.Event(), list[BaseException]()

    def live() -> None:
        try:
            day = Day(server)
            for number in count():
                day.live(number)
                if stop.wait(NIGHT):
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised where the block ends
            errors.append(error)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    _raise_first(errors)


def _raise_first(errors: Sequence[BaseException]) -> None:
    if errors:
        raise errors[0]
