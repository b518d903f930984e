"""The protocol's HTTP routes, under ``/v2``: convert and hand over. Errors are ``{"error": message}``.

They stand beside FastAPI's and not in its document: the protocol has its own specification.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tidegate.errors import InvalidInputError, NotFoundError, NotSupportedError, TidegateError
from tidegate.faults import conceal
from tidegate.observability.requests import outcome_of
from tidegate.slices import in_slices
from tidegate.transports.compression import compress
from tidegate.transports.http.errors import NoResponse, kind_of, problem
from tidegate.transports.http.exchange import OUTCOME, json_reply, read_body, read_json
from tidegate.transports.oip import documents
from tidegate.transports.oip.bodies import HEADER_LENGTH, Body, accepted, decode_body, encode_body
from tidegate.transports.oip.inference import Inference

Json = Any
Endpoint = Callable[["Endpoints", Request], Awaitable[Response]]

REASON = "tidegate-reason"
"""The reply header with an error's stable reason: the protocol's body has only a message."""

_UNSUPPORTED = re.compile(r"(systemsharedmemory|cudasharedmemory|trace|logging|models/[^/]+/trace)(/|$)")

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

OCTETS = "application/octet-stream"


def routes(inference: Inference) -> list[Route]:
    """The routes; the last one answers every other path under ``/v2`` in the protocol's manner."""
    ends = Endpoints(inference)
    get, post = ["GET"], ["POST"]
    paths: list[tuple[str, list[str], Callable[[Request], Awaitable[Response]]]] = [
        ("", get, ends.server),
        ("/health/live", get, ends.live),
        ("/health/ready", get, ends.ready),
        ("/models/stats", get, ends.statistics),
        ("/repository/index", post, ends.index),
        ("/repository/models/{model}/load", post, ends.load),
        ("/repository/models/{model}/unload", post, ends.unload),
    ]
    for versioned in ("/models/{model}", "/models/{model}/versions/{version}"):
        paths += [
            (f"{versioned}/infer", post, ends.infer),
            (versioned, get, ends.model),
            (f"{versioned}/ready", get, ends.model_ready),
            (f"{versioned}/config", get, ends.config),
            (f"{versioned}/stats", get, ends.statistics),
        ]
    # The most frequent first: they are tried in order.
    paths.sort(key=lambda path: not path[0].endswith("/infer"))
    found = [Route(f"/v2{path}", end, methods=methods) for path, methods, end in paths]
    return [*found, Route("/v2/{rest:path}", ends.nothing, methods=_METHODS)]


def answered(endpoint: Endpoint) -> Endpoint:
    """Answer an error as the protocol has it."""

    @functools.wraps(endpoint)
    async def answer(self: Endpoints, request: Request) -> Response:
        try:
            return await endpoint(self, request)
        except ClientDisconnect:
            return NoResponse()
        except Exception as error:  # noqa: BLE001 - conceal logs what is not ours
            told = conceal(error)
            request.scope[OUTCOME] = outcome_of(told)
            return _refusal(told)

    return answer


class Endpoints:
    """What answers each route."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    @answered
    async def infer(self, request: Request) -> Response:
        arrived = self._inference.clock.nanoseconds()
        headers, path = request.headers, request.path_params
        body = await read_body(request.scope, request.receive, self._inference)
        asked, wish = await decode_body(path["model"], path.get("version", ""), body, headers.get(HEADER_LENGTH))
        answer = self._inference.submit(asked, None, arrived)
        reply = await answer.reply(lambda reply: encode_body(reply, wish))
        return await _infer_reply(reply, accepted(",".join(headers.getlist("accept-encoding"))))

    @answered
    async def server(self, _: Request) -> Response:
        return json_reply(documents.server_metadata())

    @answered
    async def live(self, _: Request) -> Response:
        return Response()

    @answered
    async def ready(self, _: Request) -> Response:
        return Response(status_code=HTTPStatus.OK if self._inference.is_ready else HTTPStatus.SERVICE_UNAVAILABLE)

    @answered
    async def model(self, request: Request) -> Response:
        return json_reply(self._inference.metadata(*_named(request)))

    @answered
    async def model_ready(self, request: Request) -> Response:
        name, version = _named(request)
        self._inference.metadata(name, version)
        is_ready = self._inference.is_model_ready(name, version)
        return Response(status_code=HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE)

    @answered
    async def config(self, request: Request) -> Response:
        return json_reply(self._inference.config(*_named(request)))

    @answered
    async def statistics(self, request: Request) -> Response:
        return json_reply(await self._inference.model_statistics(*_named(request)))

    @answered
    async def index(self, request: Request) -> Response:
        ready = (await self._object(request)).get("ready", False)
        if type(ready) is not bool:
            raise InvalidInputError("ready must be true or false")
        return json_reply(self._inference.repository.index(ready_only=ready))

    @answered
    async def load(self, request: Request) -> Response:
        parameters = (await self._object(request)).get("parameters") or {}
        if type(parameters) is not dict:
            raise InvalidInputError("parameters must be an object")
        await self._inference.repository.load(request.path_params["model"], list(parameters))
        return json_reply({})

    @answered
    async def unload(self, request: Request) -> Response:
        await self._inference.repository.unload(request.path_params["model"])
        return json_reply({})

    @answered
    async def nothing(self, request: Request) -> Response:
        if _UNSUPPORTED.match(request.path_params["rest"]):
            raise NotSupportedError("shared memory, traces and settings of the log are not supported by this server")
        raise NotFoundError(f"nothing is at {request.method} {request.url.path}", reason="NO_SUCH_PATH")

    async def _object(self, request: Request) -> dict[str, Json]:
        return await read_json(request.scope, request.receive, self._inference, may_be_empty=True)


def _named(request: Request) -> tuple[str, str]:
    """Name and version in the path, empty where it has none."""
    return request.path_params.get("model", ""), request.path_params.get("version", "")


async def _infer_reply(body: Body, encoding: str | None) -> Response:
    headers = {}
    if body.header_length is not None:
        headers[HEADER_LENGTH] = str(body.header_length)
    content = body.content
    if encoding is not None:
        content = await in_slices(compress(content, encoding))
        headers["Content-Encoding"] = encoding
    return Response(content, headers=headers, media_type="application/json" if body.header_length is None else OCTETS)


def _refusal(error: TidegateError) -> Response:
    headers = {REASON: error.reason, **problem(error).headers}
    return json_reply({"error": error.message}, kind_of(error).status, headers)
