"""``POST /v1/sessions/{session}:step`` as plain ASGI: the request that there are most of goes by no router.

The application finds it by `session_of_step`; the route of the same name, which documents it, leads here too.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable

from starlette.requests import ClientDisconnect

from tidegate.api import Core
from tidegate.faults import conceal
from tidegate.observability.requests import CANCELLED, OK, RequestMetrics, outcome_of
from tidegate.slices import in_slices
from tidegate.transports.asgi import Event, Receive, Scope, Send
from tidegate.transports.http import convert
from tidegate.transports.http.errors import problem
from tidegate.transports.http.exchange import JSON, deadline, dump, read_json
from tidegate.transports.http.large_json import write

_STEP = re.compile(r"/v1/sessions/([^/:]+):step")
_CONTENT_TYPE = JSON.encode()


def session_of_step(scope: Scope) -> str | None:
    """Return the session that a request steps, None where it is no step."""
    if scope["method"] != "POST":
        return None
    match = _STEP.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
    return None if match is None else match[1]


class Steps:
    """Answers steps over a core, and counts them."""

    def __init__(self, service: Core, requests: RequestMetrics) -> None:
        self._service = service
        self._requests = requests
        self._counted = requests.method("http", "Step")

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request that was routed here."""
        return self.answer(scope["path_params"]["session"], scope, receive, send)

    async def answer(self, session: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a step of a session."""
        begun, outcome = self._requests.begin(scope["headers"], session), CANCELLED
        events: list[Event]
        try:
            chunk, options, position = convert.parse_step(await read_json(scope, receive, self._service))
            result = await self._service.step(session, chunk, options, position, deadline(scope, self._service))
            reply = convert.step_json(result)
            body = await in_slices(write(reply)) if result.prediction.is_large else dump(reply)
            outcome, events = OK, _json(body)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - conceal logs what is not ours
            told = conceal(error)
            outcome, events = outcome_of(told), problem(told).events()
        finally:
            self._counted.end(begun, outcome, session)
        for event in events:
            await send(event)


def _json(body: bytes) -> list[Event]:
    headers = [(b"content-type", _CONTENT_TYPE), (b"content-length", b"%d" % len(body))]
    return [
        {"type": "http.response.start", "status": 200, "headers": headers},
        {"type": "http.response.body", "body": body},
    ]
