"""How many steps a request has: one length, or lengths and ranges by weight, like ``1:99,256-1024:1``."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from tidegate.errors import ConfigurationError

_PART = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+(?:\.\d+)?))?")


class Kind(NamedTuple):
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

    kinds: tuple[Kind, ...]

    @classmethod
    def of(cls, length: int) -> Self:
        return cls((Kind(length, length),))

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


def _parse_kind(part: str) -> Kind:
    found = _PART.fullmatch(part.strip())
    if found is None:
        raise ConfigurationError(f"--chunk: {part!r} is not LENGTH, LENGTH-LENGTH or either with :WEIGHT")
    least, most = int(found[1]), int(found[2] or found[1])
    if not 1 <= least <= most:
        raise ConfigurationError(f"--chunk: {part!r} is not a range of lengths of 1 or more")
    return Kind(least, most, float(found[3] or 1))
