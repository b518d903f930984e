"""gRPC's native front in a real process: what it says equals what grpcio's port says, and it drains like it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle
from tests.servers import RunningServer, serving
from tidegate.client import Client
from tidegate.core import GeneratedToken, GenerationDone
from tidegate.errors import NotFoundError

TEXT = "Hello World"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    write_tiny_bundle(tmp_path)
    with serving(tmp_path, "--native-grpc", "127.0.0.1:0") as running:
        yield running


@pytest.fixture
def native(server: RunningServer) -> Iterator[Client]:
    with Client(server.ready["native_grpc"]) as client:
        yield client


def test_both_ports_say_the_same(server: RunningServer, native: Client) -> None:
    with Client(server.grpc) as grpcio:
        assert native.models() == grpcio.models()
        assert native.predict("tiny", [TEXT, "He"]) == grpcio.predict("tiny", [TEXT, "He"])
        generations = [list(client.generate("tiny", TEXT, max_tokens=50, seed=7)) for client in (native, grpcio)]
        assert generations[0] == generations[1]
        with grpcio.open("tiny") as one, native.open("tiny") as other:
            assert [one.step(letter).prediction for letter in TEXT] == [
                other.step(letter).prediction for letter in TEXT
            ]


def test_a_stream_passes_through_the_front(native: Client) -> None:
    with native.open("tiny") as session, session.stream() as stream:
        assert [stream.step(letter).position for letter in TEXT] == list(range(1, len(TEXT) + 1))


def test_an_error_keeps_its_reason(native: Client) -> None:
    with pytest.raises(NotFoundError) as caught:
        native.predict("absent", [TEXT])
    assert caught.value.reason == "UNKNOWN_MODEL"


def test_sigterm_lets_a_running_generation_finish(server: RunningServer, native: Client) -> None:
    events = native.generate("tiny", "A", max_tokens=2_000)
    tokens = [next(events)]
    assert isinstance(tokens[0], GeneratedToken)
    server.tell(signal.SIGTERM)
    tokens += events
    assert isinstance(tokens[-1], GenerationDone)
    assert len(tokens) == 2_001
    assert server.wait() == 0
    assert "stopped" in [event["event"] for event in server.events]
