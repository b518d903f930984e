"""The blocking client, called like the one for asyncio, so that one test speaks for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Self, cast

from tidegate.client import AsyncClient, Client, Session

_AT_ONCE = frozenset({"stream", "generate"})
"""Methods that no coroutine stands for in the asyncio client either."""


class Threaded:
    """An object of the blocking client; its methods run in threads."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found
        if name in _AT_ONCE:
            return lambda *args, **kwargs: _wrapped(found(*args, **kwargs))
        return _awaited(found)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.inner.__exit__, kind, error, trace)


def threaded(client: Client) -> AsyncClient:
    """What passes for an AsyncClient."""
    return cast("AsyncClient", Threaded(client))


def _awaited(method: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return _wrapped(await asyncio.to_thread(method, *map(_inner, args), **kwargs))

    return call


def _inner(given: Any) -> Any:
    if isinstance(given, list):
        return [_inner(each) for each in given]
    return given.inner if isinstance(given, Threaded) else given


def _wrapped(found: Any) -> Any:
    if isinstance(found, list) and found and isinstance(found[0], Session):
        return [Threaded(each) for each in found]
    if isinstance(found, Iterator):
        return _iterated(found)
    return Threaded(found) if type(found).__module__.startswith("tidegate.client.") else found


async def _iterated(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    end = object()
    while (each := await asyncio.to_thread(next, iterator, end)) is not end:
        yield each
