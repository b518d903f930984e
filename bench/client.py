"""The compiled load client: built when it is needed, run as a process, its line of figures read."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from bench.processes import ROOT, Running

SOURCES = ROOT / "bench" / "client"
PROGRAM = ROOT / "bench" / "build" / "loadclient"

Options = Mapping[str, float | str | Sequence[float | str]]
"""The client's options by name, some of them given several times; bench/client/options.h lists them."""

Mode = Literal[
    "http", "websocket", "unary", "stream", "columnar", "post", "generate", "infer", "infer-stream", "json", "inference"
]
"""`infer` and `infer-stream` step sequences by the Open Inference Protocol, as stock clients do. `json` and `inference`
are what peers speak: a POST of their own form, and streams of the Open Inference Protocol with outputs of their own."""

PROTOCOL = {"http": "http", "websocket": "http", "post": "http", "json": "http"}
"""Which port a mode goes to; grpc for the others."""


class LoadError(RuntimeError):
    """The load could not be driven, or replies were not real: such a measurement is none."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the client saw. Latencies are microseconds, CPU is in cores (1.0: one core busy all the time).

    ``steps_per_s_between`` is the rate between each connection's first and last reply: the one to take where replies
    are few or come in waves.
    """

    messages: int
    steps: int
    elapsed: float
    messages_per_s: float
    steps_per_s: float
    steps_per_s_between: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    reply_bytes: float
    client_cpu: float
    server_cpu: float
    server_us_per_step: float


def build() -> None:
    """Compile the client unless it is up to date."""
    subprocess.run(["make", "--silent", "-C", str(SOURCES)], check=True)  # noqa: S607


def drive(mode: Mode, target: Running, options: Options, sessions: Sequence[str] = ()) -> Figures:
    """Drive ``target`` once.

    Raises:
        LoadError: It ended early, or any reply was an error or not real.
    """
    with driving(mode, target, options, sessions) as load:
        return load.figures()


class Driving:
    """A load that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def figures(self) -> Figures:
        """Wait for its end; raises LoadError as `drive` does."""
        out, err = self._process.communicate()
        if self._process.returncode:
            raise LoadError(err.strip())
        return parse(json.loads(out))


@contextlib.contextmanager
def driving(mode: Mode, target: Running, options: Options, sessions: Sequence[str] = ()) -> Iterator[Driving]:
    """Like `drive`, while the block does something else, another load for example."""
    with tempfile.NamedTemporaryFile("w", suffix=".sessions") as names:
        names.write("\n".join(sessions))
        names.flush()
        given = {"mode": mode, "port": target.port(PROTOCOL.get(mode, "grpc")), "watch": target.pid}
        flags = _flags({**given, "sessions": names.name, **options})
        with subprocess.Popen(
            [str(PROGRAM), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as load:
            try:
                yield Driving(load)
            finally:
                load.kill()


def _flags(options: Options) -> list[str]:
    flags = []
    for name, given in options.items():
        for value in [given] if isinstance(given, int | float | str) else given:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return flags


def parse(line: Mapping[str, Any]) -> Figures:
    """Read the client's line.

    Raises:
        LoadError: There were errors, or not a single reply.
    """
    if line["errors"] or not line["messages"]:
        raise LoadError(f"{line['errors']:.0f} errors, {line['messages']:.0f} replies: {line['first_error']}")
    return Figures(**{item.name: line[item.name] for item in fields(Figures)})
