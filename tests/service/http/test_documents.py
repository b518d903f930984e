"""The OpenAPI document is valid, complete, and true: its examples fit its schemas, and 422 is not in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
from fastapi import FastAPI
from openapi_spec_validator import validate

from tests.service.http.scripted import ScriptedCore
from tidegate.transports.http import convert, schemas
from tidegate.transports.http.app import create_app
from tidegate.transports.http.documents import EXAMPLES, DocumentedApi

Json = Any

ROUTES = {
    ("get", "/v1/models"),
    ("get", "/v1/models/{model}"),
    ("post", "/v1/models:reload"),
    ("post", "/v1/models/{model}:predict"),
    ("post", "/v1/models/{model}:generate"),
    ("post", "/v1/sessions"),
    ("get", "/v1/sessions"),
    ("get", "/v1/sessions/{session}"),
    ("delete", "/v1/sessions/{session}"),
    ("post", "/v1/sessions/{session}:step"),
    ("post", "/v1/sessions/{session}:generate"),
    ("post", "/v1/sessions/{session}:fork"),
    ("post", "/v1/sessions/{session}:checkpoint"),
    ("post", "/v1/sessions/{session}:rewind"),
    ("post", "/v1/sessions/{session}:upgrade"),
    ("get", "/v1/sessions/{session}/snapshot"),
    ("post", "/v1/sessions:restore"),
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/metrics"),
}

DOCUMENT: Json = json.loads(json.dumps(create_app(ScriptedCore()).openapi()))
OPERATIONS = {(method, path): entry for path, item in DOCUMENT["paths"].items() for method, entry in item.items()}


def contents(operation: Json) -> Iterator[tuple[str, Json]]:
    """Every described body of an operation by its media type."""
    bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
    for body in bodies:
        yield from body.get("content", {}).items()


def parameters() -> Iterator[tuple[tuple[str, str], Json]]:
    """Every parameter with its route."""
    return ((route, parameter) for route, each in OPERATIONS.items() for parameter in each.get("parameters", []))


async def test_the_document_is_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == DOCUMENT


def test_the_document_is_made_when_it_is_asked_for(app: FastAPI) -> None:
    assert app.openapi_schema is None
    assert app.openapi() is app.openapi()


def test_the_document_is_valid() -> None:
    validate(DOCUMENT)


def test_every_route_is_in_it() -> None:
    assert OPERATIONS.keys() == ROUTES


def test_422_is_not_in_it() -> None:
    text = json.dumps(DOCUMENT)
    assert '"422"' not in text
    assert "ValidationError" not in text


def test_every_operation_and_every_parameter_is_described() -> None:
    assert [route for route, operation in OPERATIONS.items() if not operation["description"]] == []
    assert [(route, parameter["name"]) for route, parameter in parameters() if not parameter["description"]] == []


def test_every_body_has_an_example() -> None:
    bodies = [(route, media, body) for route, each in OPERATIONS.items() for media, body in contents(each)]
    assert [(route, media) for route, media, body in bodies if "example" not in body] == []
    assert {route for route, media, _ in bodies if media == "application/problem+json"} == ROUTES


def test_every_parameter_has_an_example() -> None:
    without = [
        (route, parameter["name"])
        for route, parameter in parameters()
        if "example" not in parameter and "examples" not in parameter["schema"]
    ]
    assert without == []


def test_a_route_that_takes_a_body_says_so() -> None:
    posts = {path for method, path in ROUTES if method == "post"}
    assert {path for path in posts if "requestBody" in OPERATIONS["post", path]} == posts - {"/v1/models:reload"}


def test_examples_fit_their_schemas() -> None:
    parsed = {model: model.model_validate_json(json.dumps(example)) for model, example in EXAMPLES.items()}
    assert {model: json.loads(each.model_dump_json(exclude_unset=True)) for model, each in parsed.items()} == EXAMPLES


def test_every_schema_is_in_it_under_its_name() -> None:
    described = {model: set(DOCUMENT["components"]["schemas"][model.__name__]["properties"]) for model in EXAMPLES}
    assert described == {model: set(model.model_fields) for model in EXAMPLES}


def test_what_is_read_by_hand_is_described() -> None:
    """convert.py reads these bodies without the models that describe them: both must know the same keys."""
    assert schemas.Step.model_fields.keys() == convert.STEP_KEYS
    assert schemas.Predict.model_fields.keys() == convert.PREDICT_KEYS
    assert schemas.Input.model_fields.keys() == convert.INPUT_KEYS


async def test_the_document_is_made_beside_the_event_loop() -> None:
    threads = set()

    class Watched(DocumentedApi):
        def openapi(self) -> Json:
            threads.add(threading.get_ident())
            return super().openapi()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(Watched()), base_url="http://test") as client:
        assert (await client.get("/openapi.json")).json()["info"]["title"] == "tidegate"
    assert len(threads) == 1
    assert threading.get_ident() not in threads
