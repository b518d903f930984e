"""``:generate`` over HTTP: one JSON reply, or server-sent events for a client that accepts them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tidegate import api
from tidegate.api import GeneratedToken, GenerationDone
from tidegate.faults import conceal
from tidegate.observability.requests import CANCELLED, OK, outcome_of
from tidegate.transports.http import convert, schemas
from tidegate.transports.http.accepting import weight_of_type, weights
from tidegate.transports.http.errors import problem
from tidegate.transports.http.exchange import JSON, OUTCOME, Json, dump, json_reply

EVENT_STREAM = "text/event-stream"

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
    ],
}

Event = GeneratedToken | GenerationDone


def sampling(form: schemas.Sampling) -> api.Sampling:
    return api.Sampling(
        max_tokens=form.max_tokens,
        temperature=_single(form.temperature),
        top_k=form.top_k,
        top_p=_single(form.top_p),
        seed=form.seed,
        stop=tuple(form.stop),
    )


def _single(number: float) -> float:
    """In single precision, as over every transport, so that a repeat over another one is the same request."""
    with np.errstate(over="ignore"):  # to infinity, which the core refuses
        return float(np.float32(number))


def wants_stream(request: Request) -> bool:
    """Whether the client accepts server-sent events, and JSON no better; who accepts anything gets JSON."""
    accepted = weights(",".join(request.headers.getlist("accept")))
    stream = weight_of_type({name: weight for name, weight in accepted.items() if name != "*/*"}, EVENT_STREAM)
    return stream > 0 and stream >= weight_of_type(accepted, JSON)


class Generation(Response):
    """The answer to ``:generate``, made while it is sent; a client that hangs up ends the generation."""

    def __init__(self, events: AsyncGenerator[Event], *, is_streamed: bool) -> None:
        super().__init__()
        self._events = events
        self._is_streamed = is_streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events) as events:
            if self._is_streamed:
                scope[OUTCOME] = CANCELLED
                scope[OUTCOME] = await _stream(events, send)
                return
            done = await _last(events)
        await json_reply(convert.generation_json(done))(scope, receive, send)


async def _last(events: AsyncGenerator[Event]) -> GenerationDone:
    async for event in events:
        if isinstance(event, GenerationDone):
            return event
    raise AssertionError("a generation ends with GenerationDone or an error")


async def _stream(events: AsyncGenerator[Event], send: Send) -> str:
    """Send the events; return how the generation ended.

    An error before the first event is an HTTP error; after it, the status is sent and the error is an event.
    """
    has_started, outcome = False, OK
    try:
        async for event in events:
            if not has_started:
                has_started = True
                await send(START)
            await send(_body(_event(event)))
    except OSError:  # the client has left
        raise
    except Exception as error:
        if not has_started:
            raise
        told = conceal(error)
        outcome = outcome_of(told)
        await send(_body(_sse("error", problem(told).document)))
    await send(_body(b"", more=False))
    return outcome


def _event(event: Event) -> bytes:
    if isinstance(event, GeneratedToken):
        return _sse("token", convert.token_json(event))
    return _sse("done", convert.generation_json(event))


def _sse(name: str, data: Json) -> bytes:
    """One event; JSON has no line breaks of its own, so one line of data is enough."""
    return b"event: " + name.encode() + b"\ndata: " + dump(data) + b"\n\n"


def _body(data: bytes, *, more: bool = True) -> dict[str, Json]:
    return {"type": "http.response.body", "body": data, "more_body": more}
