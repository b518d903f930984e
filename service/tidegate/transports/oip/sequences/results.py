"""Results that are due: futures, one a row of a request, that are waited for, passed on and cancelled together."""

from __future__ import annotations

import asyncio
from functools import partial

from tidegate.transports.oip.sequences.core import Result


def error_of(result: Result) -> BaseException | None:
    """Why a finished result is none, or None."""
    return asyncio.CancelledError() if result.cancelled() else result.exception()


def link(inner: list[Result], outer: list[Result]) -> None:
    """Let each outer result end as the inner one does, and the inner one be cancelled with it."""
    for source, target in zip(inner, outer, strict=True):
        source.add_done_callback(partial(_pass_on, target))
        target.add_done_callback(partial(_abandon, source))


def _pass_on(target: Result, source: Result) -> None:
    error = error_of(source)
    if target.done():
        return
    if error is None:
        target.set_result(source.result())
    elif isinstance(error, asyncio.CancelledError):
        target.cancel()
    else:
        target.set_exception(error)


def _abandon(source: Result, target: Result) -> None:
    if target.cancelled():
        source.cancel()


def fail(results: list[Result], error: Exception) -> None:
    for result in results:
        if not result.done():
            result.set_exception(error)


def cancel(results: list[Result]) -> None:
    for result in results:
        result.cancel()


async def wait(results: list[Result]) -> None:
    if results:
        await asyncio.wait(results)
