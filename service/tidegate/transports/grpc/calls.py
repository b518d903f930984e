"""What every call has: an end that is a reply or a mapped error, a deadline, a session's name, a place in the count.

A call that its client cancels, or whose connection breaks, is cancelled by grpc.aio; the cancellation passes through
here to the awaited work.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol, TypeVar, cast

import grpc
from grpc import aio
from grpc.aio import EOF  # type: ignore[attr-defined]

from tidegate.api import Core, GeneratedToken, GenerationDone, StepResult
from tidegate.errors import InvalidInputError
from tidegate.faults import conceal
from tidegate.observability.requests import CANCELLED, OK, RequestMetrics, outcome_of
from tidegate.slices import in_slices
from tidegate.transports.reply_queue import Pending, ReplyQueue
from tidegate.v1 import sessions_pb2
from tidegate.wire import SESSION_KEY
from tidegate.wire.errors import encode_status
from tidegate.wire.parsing import deserializer, parsed
from tidegate.wire.predictions import encode_event, fill_step, filling_step

Context = aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Reply = TypeVar("Reply")


class _Counted(Protocol):
    @property
    def interface(self) -> str: ...
    @property
    def requests(self) -> RequestMetrics: ...


Servicer = TypeVar("Servicer", bound=_Counted)


Call = Callable[[Servicer, Request, Context], Awaitable[Reply]]


def answered(method: Call[Servicer, Request, Reply]) -> Call[Servicer, Request, Reply]:
    """Count a servicer's method and end it, where it raises, with the status of its error."""
    return _ended(method, method.__name__)


def answered_as(name: str) -> Callable[[Call[Servicer, Request, Reply]], Call[Servicer, Request, Reply]]:
    """`answered`, counted under another name than the proto's."""
    return functools.partial(_ended, name=name)


def uncounted(method: Call[Servicer, Request, Reply]) -> Call[Servicer, Request, Reply]:
    """`answered`, but no request: a stream, whose messages are counted, or a probe."""
    return _ended(method, None)


def _ended(method: Call[Servicer, Request, Reply], name: str | None) -> Call[Servicer, Request, Reply]:
    @functools.wraps(method)
    async def call(self: Servicer, request: Request, context: Context) -> Reply:
        outcome, session = CANCELLED, getattr(request, "session", "")
        begun = None if name is None else self.requests.begin(context.invocation_metadata, session)
        try:
            reply = await method(self, parsed(request), context)
            outcome = OK
            return reply
        except Exception as error:  # noqa: BLE001 - conceal logs what is not ours
            told = conceal(error)
            outcome = outcome_of(told)
        finally:
            if name is not None:  # Before the client is told: then it can see that it was counted.
                self.requests.method(self.interface, name).end(begun, outcome, session)
        status = encode_status(told)
        context.set_code(status.code)
        context.set_details(status.details)
        context.set_trailing_metadata(status.trailing_metadata)
        return cast("Reply", None)  # an abort would raise, and keep the request in a cycle of frames

    return call


async def fill_reply(message: sessions_pb2.StepReply, result: StepResult) -> None:
    """Put a step's result into its reply, a large one in slices."""
    if result.prediction.is_large:
        await in_slices(filling_step(message, result))
    else:
        fill_step(message, result)


async def write_events(events: AsyncIterator[GeneratedToken | GenerationDone], context: Context) -> None:
    """Send a generation's events as they come; a call that is cancelled closes the generation at once."""
    generation = cast("AsyncGenerator[GeneratedToken | GenerationDone, None]", events)
    async with aclosing(generation):
        async for event in generation:
            await context.write(encode_event(event))


def queue_of(
    context: Context, submit: Callable[[Any], Awaitable[Pending]], size: int, requests: RequestMetrics, interface: str
) -> ReplyQueue:
    """Return the queue of a bidirectional call, whose messages are counted under ``interface``."""
    begin = functools.partial(requests.begin, context.invocation_metadata)
    method = functools.partial(requests.method, interface)
    return ReplyQueue(context.read, context.write, submit, size, begin=begin, method=method, end=EOF)


def deadline_of(context: Context, service: Core) -> float:
    """The call's deadline by the service's clock: the client's, or the setting's where it set none."""
    remaining = client_seconds(context)
    return service.clock.monotonic() + (service.settings.request_timeout if remaining is None else remaining)


def client_seconds(context: Context) -> float | None:
    """Seconds until the client's deadline, None where it set none."""
    seconds: float | None = context.time_remaining()  # the published stub forgets the None
    return seconds


def session_of(named: str, context: Context) -> str:
    """The session that a request names in its field or, where that is empty, in the metadata that proxies route by."""
    session = named or session_in_metadata(context)
    if not session:
        raise InvalidInputError(f"no session: set the field session or the metadata {SESSION_KEY}")
    return session


def session_in_metadata(context: Context) -> str:
    """The metadata's session, empty where there is none.

    Raises:
        InvalidInputError: It is none that there can be: metadata are bytes, and any may come.
    """
    for key, value in context.invocation_metadata() or ():
        if key == SESSION_KEY:
            session = str(value)
            if not session.isascii():
                raise InvalidInputError(f"metadata {SESSION_KEY}: a session's id is of A-Z a-z 0-9 . _ ~ -, all ASCII")
            return session
    return ""


class _Handlers:
    """Stands where the generated code wants a server, and takes what that is given."""

    def __init__(self) -> None:
        self.name = ""
        self.methods: dict[str, Any] = {}

    def add_registered_method_handlers(self, name: str, methods: dict[str, Any]) -> None:
        self.name, self.methods = name, methods

    def add_generic_rpc_handlers(self, _: object) -> None:
        """They are the same methods."""


def add_service(
    add: Callable[[Any, Any], None], servicer: object, server: Any, others: Mapping[str, Any] | None = None
) -> None:
    """Let the server answer a service's methods.

    Args:
        add: The generated ``add_…Servicer_to_server``.
        servicer: What answers; its methods find by `wire.parsing.parsed` whether a request could be parsed.
        server: Takes the handlers.
        others: Handlers in place of some methods', by their names.
    """
    generated = _Handlers()
    add(servicer, generated)
    methods = {name: _bounded(handler) for name, handler in generated.methods.items()} | dict(others or {})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(generated.name, methods),))
    server.add_registered_method_handlers(generated.name, methods)


def _bounded(handler: Any) -> Any:
    # The generated code names the message's own `FromString`, of which Python tells the class.
    return handler._replace(request_deserializer=deserializer(handler.request_deserializer.__self__))
