"""A loaded version of a model: its bundle, what runs it, and who needs it."""

from __future__ import annotations

import functools
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from tidegate.api import Input, Tensor
from tidegate.bundle import Bundle, Manifest
from tidegate.codecs import Codec
from tidegate.codecs.settings import SettingsCodec
from tidegate.engine.arena import ArenaLike, Budget, Plane
from tidegate.engine.device.runner import DeviceRunner
from tidegate.engine.engine import Engine
from tidegate.engine.loop import Committer, Loop
from tidegate.engine.quality import Quality
from tidegate.engine.runner import Runner
from tidegate.errors import InvalidInputError, TidegateError

Key = tuple[str, int]


@dataclass(eq=False)
class LoadedModel:
    """One version of a model with everything that runs it.

    ``planes`` are the parts of a session's state by name: the states, then the kept output, if any. ``settings`` reads
    what callers give beside a sequence.
    """

    bundle: Bundle
    codec: Codec
    runner: Runner | DeviceRunner
    arena: ArenaLike
    engine: Engine
    loop: Loop
    executor: ThreadPoolExecutor | None
    planes: dict[str, Plane]
    quality: Quality
    settings: SettingsCodec
    is_offered: bool = True
    num_sessions: int = 0

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def key(self) -> Key:
        return self.manifest.name, int(self.manifest.version)

    @property
    def label(self) -> str:
        return f"{self.manifest.name}/{self.manifest.version}"

    @functools.cached_property
    def layout(self) -> bytes:
        """What names the parts of a session's state, and its settings: equal where a session of one model fits the
        other.
        """
        parts = [f"{name} {plane.dtype.str} {plane.row_shape}" for name, plane in self.planes.items()]
        parts += [f"setting {spec.name} {spec.dtype} {spec.row_shape}" for spec in self.manifest.settings]
        return hashlib.sha256("\n".join(parts).encode()).digest()

    @property
    def is_needed(self) -> bool:
        """Whether anybody may ask for it, or waits for it."""
        return self.is_offered or self.num_sessions > 0 or self.engine.num_waiting > 0

    def encode(self, source: Input) -> tuple[Tensor, ...]:
        """Return the graph's inputs, as `Codec.encode`, and count what is refused."""
        try:
            return self.codec.encode(source)
        except InvalidInputError as error:
            self.count_refused(error)
            raise

    def count_refused(self, error: TidegateError) -> None:
        """Count an input that the codec refused, once its client is told."""
        self.quality.refused(error.reason)

    async def stop(self) -> None:
        """Stop ticking and let go of the threads."""
        await self.loop.stop()
        if self.executor is not None:
            self.executor.shutdown(wait=False)


class Models(Protocol):
    """The loaded models, as sessions ask for them (`registry`)."""

    budget: Budget

    def get(self, name: str, version: str | None = None) -> LoadedModel:
        """Return an offered version, the highest where None; NotFoundError."""

    def find_loaded(self, name: str, version: str) -> LoadedModel | None:
        """Return the version if it is in memory, offered or not."""

    async def retire(self) -> None:
        """Unload the models that are neither offered nor needed."""


class SessionHost(Committer, Protocol):
    """Who holds sessions on the models."""

    def evict_one(self) -> bool:
        """Free a slot, if any session may leave; return whether one did."""
