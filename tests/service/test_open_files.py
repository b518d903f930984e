"""The limit of open files, and what is said when it is reached."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Iterator

import pytest

from tidegate.errors import ConfigurationError
from tidegate.open_files import raise_limit, watch


@pytest.fixture
def _limit_as_it_was() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("_limit_as_it_was")
@pytest.mark.parametrize(("most", "expected", "warns"), [(300, 300, True), (200, 256, True)])
def test_the_soft_limit_is_raised_and_a_low_one_is_told(
    caplog: pytest.LogCaptureFixture, most: int, expected: int, warns: bool
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    with caplog.at_level(logging.INFO):
        raise_limit(most)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (expected, hard)
    assert ("was raised" in caplog.text) == (expected != 256)
    assert ("ulimit -Hn" in caplog.text) == warns


@pytest.mark.usefixtures("_limit_as_it_was")
def test_a_limit_that_no_server_starts_with_is_refused() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (63, hard))
    with pytest.raises(ConfigurationError, match="no more than 63 files can be open, a server needs 64"):
        raise_limit(63)


async def test_who_is_out_of_files_is_told_once_and_once_more_when_there_are_some(
    caplog: pytest.LogCaptureFixture,
) -> None:
    free = [9, 0, 0, 0, 1, 9, 9, 0, 9]

    async def pause() -> None:
        await asyncio.sleep(0)
        free.pop(0)
        if not free:
            raise asyncio.CancelledError

    free.insert(0, 9)
    with pytest.raises(asyncio.CancelledError):
        await watch(lambda: free[0] == 0, lambda: free[0] > 1, pause)
    said = ["out" if record.getMessage().startswith("out of file") else "again" for record in caplog.records]
    assert said == ["out", "again", "out", "again"]
    assert "`ulimit -n`" in caplog.text
