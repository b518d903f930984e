"""Servicers that are not asynchronous, such as grpcio's own for reflection: they run in threads."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, NoReturn

import grpc

from tidegate.transports.grpc.call import EOF, Call, Metadata

_MOST_THREADS = 16
_END = object()


def is_async(behavior: Any) -> bool:
    """Whether a servicer's method is a coroutine or an asynchronous generator."""
    return inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)


def run_in_threads(behavior: Any, is_request_streamed: bool, is_response_streamed: bool) -> Any:
    """Return the asynchronous form of a synchronous method. Its own calls wait while all threads are taken."""

    def start(request: Any, call: Call) -> asyncio.Future[Any]:
        context = BlockingContext(call)
        return _in_thread(behavior, context.requests() if is_request_streamed else request, context)

    async def answer(request: Any, call: Call) -> Any:
        return await start(request, call)

    async def answer_all(request: Any, call: Call) -> AsyncIterator[Any]:
        replies = iter(await start(request, call))
        while (reply := await _in_thread(next, replies, _END)) is not _END:
            yield reply

    return answer_all if is_response_streamed else answer


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="tidegate-grpc")


def _in_thread(function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
    return asyncio.get_running_loop().run_in_executor(_threads(), function, *arguments)


class BlockingContext:
    """What a synchronous servicer sees of its call: grpc's ``ServicerContext``, for use in a thread."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._waiting: Future[Any] | None = None
        self._is_over = False
        call.add_done_callback(self._release)
        self._loop = call.task.get_loop()
        self.time_remaining = call.time_remaining
        self.invocation_metadata = call.invocation_metadata
        self.set_trailing_metadata = call.set_trailing_metadata
        self.trailing_metadata = call.trailing_metadata
        self.set_code = call.set_code
        self.set_details = call.set_details
        self.code = call.code
        self.details = call.details
        self.set_compression = call.set_compression
        self.disable_next_message_compression = call.disable_next_message_compression
        self.peer = call.peer
        self.peer_identities = call.peer_identities
        self.peer_identity_key = call.peer_identity_key
        self.auth_context = call.auth_context

    def requests(self) -> Iterator[Any]:
        """Iterate over the client's messages."""
        while (request := self._wait(self._call.read())) is not EOF:
            yield request

    def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        self._wait(self._call.send_initial_metadata(initial_metadata))

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        self._wait(self._call.abort(code, details))
        raise AssertionError

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        self._wait(self._call.abort_with_status(status))
        raise AssertionError

    def is_active(self) -> bool:
        return not self._call.done()

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._call.interrupt, grpc.StatusCode.CANCELLED, "cancelled by the servicer")

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call it when the call ends; False where that is so already."""
        if not self.is_active():
            return False
        self._call.add_done_callback(lambda _: callback())
        return True

    def _wait(self, coroutine: Any) -> Any:
        self._waiting = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        if self._is_over:
            self._waiting.cancel()
        return self._waiting.result()

    def _release(self, _: object) -> None:
        """The call is over: a thread that waits for it, or will, gets CancelledError."""
        self._is_over = True
        if self._waiting is not None:
            self._waiting.cancel()
