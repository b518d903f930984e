"""What the protocol's transport needs of the core, and nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tidegate.api import Prediction, ReloadReport, Tensor
from tidegate.bundle import Manifest
from tidegate.clock import Clock
from tidegate.config import Settings
from tidegate.transports.oip.sequences.core import SequenceCore


class Served(NamedTuple):
    """One version of a model that is offered. ``settings`` are those that hold for it."""

    manifest: Manifest
    sha256: str
    versions: list[str]
    settings: Settings

    @property
    def key(self) -> tuple[str, str]:
        return self.manifest.name, self.manifest.version


class EngineCounts(NamedTuple):
    """What a model's engine has done for everybody, whatever the protocol: runs, and seconds in them."""

    num_runs: int
    run_seconds: float


class InferenceCore(SequenceCore, Protocol):
    """Models, and rows for them; sequences ask for sessions besides."""

    @property
    def settings(self) -> Settings: ...

    @property
    def clock(self) -> Clock:
        """Deadlines are seconds of its ``monotonic``."""

    @property
    def is_ready(self) -> bool: ...

    def served(self, name: str, version: str) -> Served:
        """Return that version, or the highest where ``version`` is empty; NotFoundError where it is not offered."""

    def all_served(self) -> list[Served]:
        """Return what is offered, by name, then rising version."""

    def allows_sequences(self, name: str) -> bool:
        """Whether the model's settings let it keep sequences."""

    def predict_rows(
        self, served: Served, rows: Sequence[tuple[Tensor, ...]], deadline: float | None
    ) -> list[asyncio.Future[Prediction]]:
        """Let each row run from the initial state; its outputs are the graph's, of every step."""

    def engine_counts(self, name: str, version: str) -> EngineCounts:
        """Return the counts of a model that is loaded; zeros of one that is not."""

    async def reload(self) -> ReloadReport:
        """Read the bundle directory again."""
