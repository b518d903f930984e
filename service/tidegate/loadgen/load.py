"""What load to put on a server: parsed once from the options, checked here, and never changed.

How many steps a request has is one length, or lengths and ranges by weight, like ``1:99,256-1024:1``.

When the requests of an open loop are due is fixed for each sender before the first reply: a slow reply delays no due
time, so the wait that it causes to the requests behind it is part of their latencies. Measuring from when a request was
at last sent would leave that wait out, which is called coordinated omission (G. Tene, "How NOT to Measure Latency",
2013; wrk2 measures as is done here).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import NamedTuple, Self

from tidegate.errors import ConfigurationError

_PART = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+(?:\.\d+)?))?")


class RequestKind(NamedTuple):
    """Requests of ``least`` to ``most`` steps, drawn evenly; latencies are told by kind."""

    least: int
    most: int
    weight: float = 1

    @property
    def label(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


class Size(NamedTuple):
    """The steps of one request, and the label of its kind."""

    label: str
    length: int


@dataclass(frozen=True, slots=True)
class Mix:
    """Kinds of requests by weight."""

    kinds: tuple[RequestKind, ...]

    @classmethod
    def of(cls, length: int) -> Self:
        return cls((RequestKind(length, length),))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``LENGTH[-LENGTH][:WEIGHT],…``.

        Raises:
            ConfigurationError: It is not that.
        """
        kinds = tuple(_parse_kind(part) for part in text.split(","))
        if not any(kind.weight for kind in kinds):
            raise ConfigurationError(f"--chunk: {text!r} has no weight above 0")
        return cls(kinds)

    @property
    def longest(self) -> int:
        return max(kind.most for kind in self.kinds)

    def draws(self, rng: random.Random) -> Iterator[Size]:
        """Endless sizes by weight."""
        weights = [kind.weight for kind in self.kinds]
        while True:
            (kind,) = rng.choices(self.kinds, weights)
            yield Size(kind.label, rng.randint(kind.least, kind.most))

    def __str__(self) -> str:
        return ",".join(f"{kind.label}:{kind.weight:g}" for kind in self.kinds)


def _parse_kind(part: str) -> RequestKind:
    found = _PART.fullmatch(part.strip())
    if found is None:
        raise ConfigurationError(f"--chunk: {part!r} is not LENGTH, LENGTH-LENGTH or either with :WEIGHT")
    least, most = int(found[1]), int(found[2] or found[1])
    if not 1 <= least <= most:
        raise ConfigurationError(f"--chunk: {part!r} is not a range of lengths of 1 or more")
    return RequestKind(least, most, float(found[3] or 1))


SINGLE_STEPS = Mix.of(1)


class Interface(StrEnum):
    """The ways to a server that can be loaded."""

    STREAM = "stream"
    UNARY = "unary"
    COLUMNAR = "columnar"
    HTTP = "http"
    WEBSOCKET = "websocket"
    PREDICT = "predict"
    GENERATE = "generate"

    @property
    def has_sessions(self) -> bool:
        """Whether it steps sessions; the others are stateless calls."""
        return self not in {Interface.PREDICT, Interface.GENERATE}

    @property
    def has_batches(self) -> bool:
        """Whether one message carries several sessions or sequences."""
        return self in {Interface.COLUMNAR, Interface.PREDICT}

    @property
    def has_connections(self) -> bool:
        """Whether every sender has a connection of its own; gRPC's share one."""
        return self in {Interface.HTTP, Interface.WEBSOCKET}


class Arrivals(StrEnum):
    """How requests of an open loop follow each other in time."""

    EVEN = "even"
    POISSON = "poisson"


@dataclass(frozen=True, slots=True)
class Load:
    """One load.

    Args:
        model: Name of the model.
        version: Its version; None is the highest.
        interface: How the server is reached.
        sessions: Sessions that are stepped, or callers of a stateless interface.
        batch: Sessions in a message (columnar), sequences in a call (predict); 1 elsewhere.
        mix: Steps of each request.
        rate: Requests a second of all senders together, by the clock (open loop); None: each sender sends when its
            last reply is there (closed loop).
        arrivals: How the requests of an open loop follow each other.
        prompt_sessions: More senders, closed loop, that push long chunks beside the others.
        prompt_length: Steps of those chunks.
        max_tokens: Tokens of a generation.
        top: Candidates a step.
        seconds: How long is measured.
        warmup: Seconds of load before, which are not measured.
        max_requests: The run ends after that many requests, warm-up included.
        timeout: Seconds that a request may take.
        seed: Of inputs, mix and arrivals.

    Raises:
        ConfigurationError: A number is out of range, or one is set that this interface would ignore.
    """

    model: str
    version: str | None = None
    interface: Interface = Interface.STREAM
    sessions: int = 64
    batch: int = 1
    mix: Mix = SINGLE_STEPS
    rate: float | None = None
    arrivals: Arrivals = Arrivals.EVEN
    prompt_sessions: int = 0
    prompt_length: int = 1024
    max_tokens: int = 64
    top: int = 1
    seconds: float = 10
    warmup: float = 1
    max_requests: int = 10_000_000
    timeout: float = 60
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("sessions", "batch", "prompt_length", "max_tokens", "seconds", "max_requests", "timeout")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"--{name.replace('_', '-')}: must be above 0")
        if self.rate is not None and not self.rate > 0:
            raise ConfigurationError("--rate: must be above 0")
        if self.batch > 1 and not self.interface.has_batches:
            raise ConfigurationError(
                f"--batch: a message of {self.interface} carries one; columnar and predict carry many"
            )

    @property
    def longest(self) -> int:
        """Steps of the longest input."""
        return max(self.mix.longest, self.prompt_length if self.prompt_sessions else 0)

    @property
    def num_senders(self) -> int:
        """Who sends independently of each other: sessions, callers, or streams of ``batch`` sessions each."""
        return -(-self.sessions // self.batch) if self.interface.has_sessions else self.sessions

    @property
    def num_connections(self) -> int:
        return self.num_senders + self.prompt_sessions if self.interface.has_connections else 1


def due_times(
    arrivals: Arrivals, rate: float, start: float, sender: int, num_senders: int, rng: random.Random
) -> Iterator[float]:
    """Endless rising due times of one of ``num_senders`` that together make ``rate`` requests a second from ``start``.

    Even senders take turns. Poisson ones draw exponential gaps; many such senders together are a Poisson process again.
    """
    period = num_senders / rate
    match arrivals:
        case Arrivals.EVEN:
            return (start + (sender / num_senders + turn) * period for turn in count())
        case Arrivals.POISSON:
            return _poisson(period, start, rng)


def _poisson(period: float, start: float, rng: random.Random) -> Iterator[float]:
    due = start
    while True:
        due += rng.expovariate(1 / period)
        yield due
