"""What tests of the engine share: each of those that say so runs with either arena."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.engine.house import DEFAULTS


@pytest.fixture(scope="module", params=["host", "device"])
def arena(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let houses keep their states here."""
    DEFAULTS.arena, before = request.param, DEFAULTS.arena
    yield
    DEFAULTS.arena = before
