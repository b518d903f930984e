"""The peers: how each is started, and in which way the load client speaks to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import Mode, Options, drive
from bench.peers.running import free_ports, install, started
from bench.processes import Running

HERE = Path(__file__).parent
FORM = '{"session": "SESSION", "token": TOKEN}'


@dataclass(frozen=True, slots=True)
class Way:
    """How the load client speaks to a server: the interface in words, the client's mode and its further options."""

    interface: str
    mode: Mode
    load: Options


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is measured beside ours.

    Attributes:
        name: Of its directory.
        package: The one whose version is told.
        way: In.
        command: Starts it. ``{bin}`` is the directory of its environment's programs, ``{home}`` its own, ``{0}`` to
            ``{2}`` are free ports, of which the load goes to the first.
        variables: Of its environment, with the same ports.
    """

    name: str
    package: str
    way: Way
    command: str
    variables: Mapping[str, str] = field(default_factory=dict)


PEERS = (
    Peer(
        "fastapi",
        "fastapi",
        Way("HTTP, a run for each request", "json", {"path": "/step", "json": FORM}),
        "{bin}/uvicorn bench.peers.fastapi.app:app --port {0} --no-access-log --log-level warning",
    ),
    Peer(
        "litserve",
        "litserve",
        Way("HTTP, its batching", "json", {"path": "/step", "json": FORM}),
        "{bin}/python -m bench.peers.litserve.app {0}",
    ),
    Peer(
        "bentoml",
        "bentoml",
        Way("HTTP, a run for each request", "json", {"path": "/step", "json": FORM}),
        "{bin}/bentoml serve bench.peers.bentoml.app:Steps --host 127.0.0.1 --port {0}",
        {"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        "mlserver",
        "mlserver",
        Way("gRPC, its bidirectional stream", "inference", {"model": "lstm"}),
        "{bin}/mlserver start {home}",
        {"MLSERVER_GRPC_PORT": "{0}", "MLSERVER_HTTP_PORT": "{1}", "MLSERVER_METRICS_PORT": "{2}"},
    ),
    Peer(
        "rayserve",
        "ray",
        Way("gRPC, its bidirectional stream and serve.batch", "stream", {}),
        "{bin}/python -m bench.peers.rayserve.app {0} {1}",
        {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    ),
)


@contextmanager
def serving(peer: Peer) -> Iterator[Running]:
    """The peer, installed, started and answering.

    Raises:
        PeerError: It cannot be installed or does not start.
    """
    home = HERE / peer.name
    programs, ports = install(home), free_ports(3)
    command = [word.format(*ports, bin=programs, home=home) for word in peer.command.split()]
    variables = {name: value.format(*ports) for name, value in peer.variables.items()}
    probe: Options = {**peer.way.load, "connections": 1, "warmup": 0, "seconds": 0.1}

    def ask(running: Running) -> None:
        drive(peer.way.mode, running, probe, ["probe"])

    with started(command, ports[0], variables, ask) as running:
        yield running
