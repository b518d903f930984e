"""Keyword arguments that several calls share. Their meaning and defaults are those of `tidegate.api`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class SamplingOptions(TypedDict, total=False):
    """How to generate: see `tidegate.api.Sampling`."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: str | Sequence[str]


class SessionOptions(TypedDict, total=False):
    """How to open a session: see `tidegate.api.SessionRequest`."""

    version: str | None
    durable: bool
    ttl_seconds: float | None
    idle_seconds: float | None
    id: str | None
    seed: int | None
    drift: bool


class RestoreOptions(TypedDict, total=False):
    """How to open a session from a snapshot: see `tidegate.api.RestoreRequest`."""

    id: str | None
    durable: bool
    ttl_seconds: float | None
    idle_seconds: float | None
    drift: bool | None
