"""Every error has its status and is a problem document; nothing else ever comes out, 422 least of all."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from tests.service.http.scripted import ScriptedCore
from tidegate import errors
from tidegate.config import load_settings
from tidegate.errors import InvalidInputError
from tidegate.transports.http import schemas
from tidegate.transports.http.app import create_app
from tidegate.transports.http.errors import problem, read_form

STEP = "/v1/sessions/s-1:step"

STATUSES = {
    errors.InvalidInputError: 400,
    errors.NotFoundError: 404,
    errors.AlreadyExistsError: 409,
    errors.SessionEndedError: 410,
    errors.FailedPreconditionError: 412,
    errors.TooLargeError: 413,
    errors.OverloadedError: 429,
    errors.TidegateError: 500,
    errors.InternalError: 500,
    errors.BundleError: 500,
    errors.ConfigurationError: 500,
    errors.NotSupportedError: 501,
    errors.UnavailableError: 503,
    errors.DeadlineExceededError: 504,
}

REQUESTS: list[tuple[str, str, Any]] = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/tiny", None),
    ("POST", "/v1/models:reload", None),
    ("POST", "/v1/models/tiny:predict", {"sequences": [{"text": "R"}]}),
    ("POST", "/v1/models/tiny:generate", {"text": "R"}),
    ("POST", "/v1/sessions", {"model": "tiny"}),
    ("GET", "/v1/sessions", None),
    ("GET", "/v1/sessions/s-1", None),
    ("DELETE", "/v1/sessions/s-1", None),
    ("POST", STEP, {"text": "R"}),
    ("POST", "/v1/sessions/s-1:generate", {}),
    ("POST", "/v1/sessions/s-1:rewind", {"checkpoint": "c-1"}),
    ("GET", "/v1/sessions/s-1/snapshot", None),
]


def test_no_error_is_forgotten() -> None:
    ours = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.TidegateError)}
    assert ours == STATUSES.keys() | {errors.PositionConflictError}


def test_a_message_that_utf_8_cannot_carry_is_told_all_the_same() -> None:
    assert "bad name \\\\udcff, é" in problem(InvalidInputError("bad name \udcff, é")).body.decode()


@pytest.mark.parametrize("kind", STATUSES)
async def test_each_error_has_its_status(
    client: httpx.AsyncClient, service: ScriptedCore, kind: type[errors.TidegateError]
) -> None:
    service.error = kind("what went wrong", reason="A_REASON", details={"fact": "7", "status": "mine"})
    reply = await client.post(STEP, json={"text": "R"})
    document = reply.json()
    assert reply.status_code == STATUSES[kind]
    assert reply.headers["content-type"] == "application/problem+json"
    assert list(document) == ["type", "title", "status", "detail", "reason", "fact"]
    assert document["status"] == STATUSES[kind]
    assert (document["detail"], document["reason"], document["fact"]) == ("what went wrong", "A_REASON", "7")


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
async def test_each_route_tells_the_services_errors(
    client: httpx.AsyncClient, service: ScriptedCore, method: str, path: str, body: Any
) -> None:
    service.error = errors.SessionEndedError("gone", reason="SESSION_EVICTED")
    reply = await client.request(method, path, json=body)
    assert (reply.status_code, reply.json()["reason"]) == (410, "SESSION_EVICTED")


# A step is read and answered by plain ASGI, all else by FastAPI: what is true of one route of each is true of all.
BOTH = [(STEP, {"text": "R"}), ("/v1/sessions", {"model": "tiny"})]


@pytest.mark.parametrize(("path", "body"), BOTH)
async def test_the_unexpected_is_a_problem_without_a_stack(
    client: httpx.AsyncClient, service: ScriptedCore, path: str, body: Any
) -> None:
    service.error = ZeroDivisionError("secret")
    reply = await client.post(path, json=body)
    assert (reply.status_code, reply.json()["reason"]) == (500, "INTERNAL")
    assert reply.headers["content-type"] == "application/problem+json"
    assert "secret" not in reply.text


async def test_a_position_conflict_tells_the_position(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    service.error = errors.PositionConflictError("the session is at 6, not 0", position=6)
    reply = await client.post(STEP, json={"text": "R", "position": 0})
    assert reply.status_code == 409
    assert reply.json() == {
        "type": "urn:tidegate:problem:position-conflict",
        "title": "Position conflict",
        "status": 409,
        "detail": "the session is at 6, not 0",
        "reason": "POSITION_CONFLICT",
        "position": 6,
    }


@pytest.mark.parametrize(("seconds", "header"), [(None, "1"), (0.2, "1"), (1.0, "1"), (2.1, "3")])
@pytest.mark.parametrize("kind", [errors.OverloadedError, errors.UnavailableError])
async def test_who_may_retry_is_told_when(
    client: httpx.AsyncClient,
    service: ScriptedCore,
    kind: type[errors.TidegateError],
    seconds: float | None,
    header: str,
) -> None:
    service.error = kind("later", retry_after=seconds)
    reply = await client.post(STEP, json={"text": "R"})
    assert reply.headers["retry-after"] == header


async def test_who_may_not_retry_is_told_nothing(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    service.error = errors.InternalError("no")
    assert "retry-after" not in (await client.post(STEP, json={"text": "R"})).headers


@pytest.mark.parametrize(
    "path", ["/nope", "/v1/sessions/a/b", "/v1/models/", "/v1/sessions/:step", "/v1/models/a/b:predict"]
)
async def test_an_unknown_path_is_a_problem(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.post(path, json={})
    assert (reply.status_code, reply.json()["reason"]) == (404, "NO_SUCH_PATH")
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", STEP, "POST"),
        ("PUT", "/v1/models/tiny", "GET"),
        ("GET", "/v1/models:reload", "POST"),
        ("POST", "/livez", "GET"),
    ],
)
async def test_a_wrong_method_is_a_problem(client: httpx.AsyncClient, method: str, path: str, allowed: str) -> None:
    reply = await client.request(method, path)
    assert (reply.status_code, reply.json()["reason"]) == (405, "METHOD_NOT_ALLOWED")
    assert allowed in reply.headers["allow"]


@pytest.mark.parametrize("query", ["limit=x", "limit=-1", "limit=1001", "limit=1.5"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/sessions"])
async def test_a_bad_page_is_invalid_input(client: httpx.AsyncClient, path: str, query: str) -> None:
    reply = await client.get(f"{path}?{query}")
    assert reply.status_code == 400
    assert reply.json()["detail"].startswith("limit: ")


WITH_BODY = [(path, body) for method, path, body in REQUESTS if body is not None]


@pytest.mark.parametrize(("path", "_"), BOTH)
@pytest.mark.parametrize("content", [b"", b"{} x", b"\xff", b'{"text": "\\ud800"}', b"[" * 10_000])
async def test_malformed_json_is_told_apart(client: httpx.AsyncClient, path: str, _: Any, content: bytes) -> None:
    reply = await client.post(path, content=content)
    assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_JSON")


@pytest.mark.parametrize("content", [b'"text"', b"null", b"1"])
async def test_a_body_is_an_object(client: httpx.AsyncClient, content: bytes) -> None:
    reply = await client.post(STEP, content=content)
    assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_INPUT")


@pytest.mark.parametrize(("path", "_"), WITH_BODY)
@pytest.mark.parametrize(("content", "reason"), [(b"{", "INVALID_JSON"), (b"[]", "INVALID_INPUT")])
async def test_each_route_wants_an_object_of_json(
    client: httpx.AsyncClient, path: str, _: Any, content: bytes, reason: str
) -> None:
    reply = await client.post(path, content=content)
    assert (reply.status_code, reply.json()["reason"]) == (400, reason)


@pytest.mark.parametrize(("path", "body"), WITH_BODY)
async def test_an_unknown_key_is_named(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    reply = await client.post(path, json={**body, "sise": 1})
    assert reply.status_code == 400
    assert reply.json()["detail"].startswith("unknown key 'sise': the keys are ")


def test_one_complaint_is_made_of_a_body_however_much_is_wrong() -> None:
    """pydantic makes an object of each: a list of a million wrong entries took half a minute, and gigabytes."""
    wrong = [0] * 1000
    for kind, document in (
        (schemas.Generate, {"text": "R", "stop": wrong}),
        (schemas.Generate, {"values": wrong}),
        (schemas.Generate, {"values": [["1"] * 1000]}),
        (schemas.Fork, {"ids": wrong}),
    ):
        with pytest.raises(InvalidInputError) as caught:
            read_form(kind, document)
        assert isinstance(caught.value.__context__, ValidationError)
        assert caught.value.__context__.error_count() == 1
    with pytest.raises(InvalidInputError, match="unknown key '0'") as caught:
        read_form(schemas.Fork, {str(number): 0 for number in range(1000)})
    assert caught.value.__context__ is None


class TestSizeLimit:
    LIMIT = 2**20

    @pytest.fixture
    async def service(self) -> ScriptedCore:
        return ScriptedCore(load_settings({"max_message_mb": 1}))

    @pytest.mark.parametrize(("path", "body"), BOTH)
    async def test_a_body_at_the_limit_is_read(
        self, client: httpx.AsyncClient, service: ScriptedCore, path: str, body: Any
    ) -> None:
        reply = await client.post(path, content=json.dumps(body).encode().ljust(self.LIMIT))
        assert reply.status_code < 300

    @pytest.mark.parametrize(("path", "_"), WITH_BODY)
    async def test_a_declared_size_is_refused_unread(
        self, client: httpx.AsyncClient, service: ScriptedCore, path: str, _: Any
    ) -> None:
        reply = await client.post(path, content=b" " * (self.LIMIT + 1))
        assert (reply.status_code, reply.json()["reason"]) == (413, "TOO_LARGE")
        assert service.calls == []

    @pytest.mark.parametrize(("path", "_"), BOTH)
    async def test_an_undeclared_size_is_refused_while_reading(
        self, client: httpx.AsyncClient, service: ScriptedCore, path: str, _: Any
    ) -> None:
        num_sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal num_sent
            while True:
                num_sent += 1
                yield b" " * 65_536

        reply = await client.post(path, content=endless())
        assert reply.status_code == 413
        assert num_sent <= self.LIMIT // 65_536 + 2


@pytest.mark.parametrize("path", [STEP, "/v1/sessions", "/v1/models/shakespeare-lstm:predict"])
async def test_a_client_that_leaves_while_it_sends_costs_nothing(service: ScriptedCore, path: str) -> None:
    messages = iter(
        [{"type": "http.request", "body": b'{"te', "more_body": True}, {"type": "http.disconnect"}],
    )
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    app = create_app(service)
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "root_path": ""}
    await app(scope, receive, send)
    assert service.calls == []
    assert sent == []


async def test_an_unexpected_error_is_told_by_the_number_that_the_log_has(
    client: httpx.AsyncClient, service: ScriptedCore, caplog: pytest.LogCaptureFixture
) -> None:
    service.error = ZeroDivisionError("secret")
    for path, body in ((STEP, {"text": "R"}), ("/v1/sessions", {"model": "tiny"})):
        reply = await client.post(path, json=body)
        assert f"fault {reply.json()['fault']}: a request failed" in caplog.text
        assert reply.json()["detail"] == (
            f"internal error: the server's log says more under fault {reply.json()['fault']}"
        )


async def test_a_reply_of_ours_that_breaks_is_our_fault_not_the_client_s(
    client: httpx.AsyncClient, service: ScriptedCore
) -> None:
    async def broken(*_: object) -> object:
        return object()  # no session: its document cannot be made

    service.get_session = broken  # type: ignore[assignment, method-assign]
    reply = await client.get("/v1/sessions/s-1")
    assert (reply.status_code, reply.json()["reason"]) == (500, "INTERNAL")
    assert "instance" not in reply.text


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("/v1/sessions", {}, "model: is missing"),
        ("/v1/sessions", {"model": 7}, "model: must be a string"),
        ("/v1/sessions", {"model": "m", "seed": "7"}, "seed: must be a whole number"),
        ("/v1/sessions", {"model": "m", "durable": 1}, "durable: must be true or false"),
        ("/v1/sessions", {"model": "m", "ttl_seconds": 0}, "ttl_seconds: must be greater than 0"),
        ("/v1/sessions", {"model": "m", "id": "a/b"}, "id: must match pattern '^[A-Za-z0-9._~-]{1,128}$'"),
        ("/v1/sessions/s-1:fork", {"ids": []}, "ids: must have at least 1 item"),
        ("/v1/sessions/s-1:generate", {"stop": [7]}, "stop.0: must be a string"),
        ("/v1/sessions/s-1:generate", {"temperature": "hot"}, "temperature: must be a number"),
    ],
)
async def test_what_is_wrong_is_told_in_the_words_of_who_wrote_the_request(
    client: httpx.AsyncClient, path: str, body: Any, detail: str
) -> None:
    reply = await client.post(path, json=body)
    assert (reply.status_code, reply.json()["detail"]) == (400, detail)


async def test_a_number_in_a_query_is_told_likewise(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/sessions?limit=x")).json()["detail"] == "limit: must be a whole number"
