"""Settings in JSON: beside the input of a step, a sequence and a prompt, and at a session's opening."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.service.http.scripted import ScriptedCore
from tidegate.api import Input, InputValue, SessionRequest
from tidegate.limits import LARGE_JSON_BYTES

INPUTS = {"speaker": [[1, 2.5], [3, 4]], "limit": 6, "is_on": True, "band": [7]}
VALUES = (
    InputValue.of("band", [7.0]),
    InputValue.of("is_on", 1.0),
    InputValue.of("limit", 6.0),
    InputValue.of("speaker", [[1.0, 2.5], [3.0, 4.0]]),
)
TEXT, STEP = {"text": "R", "inputs": INPUTS}, "/v1/sessions/s-1:step"


def calls(service: ScriptedCore) -> list[Any]:
    """What the core was asked: of each call, what has settings."""
    return [part for call in service.calls for part in call if isinstance(part, Input | SessionRequest | list)]


async def test_settings_stand_beside_every_input(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    one = Input("R", inputs=VALUES)
    await client.post(STEP, json=TEXT)
    await client.post("/v1/models/tiny:predict", json={"sequences": [TEXT, {"tokens": [1], "inputs": None}]})
    await client.post("/v1/models/tiny:generate", json=TEXT)
    await client.post("/v1/sessions/s-1:generate", json=TEXT)
    await client.post("/v1/sessions/s-1:generate", json={"inputs": INPUTS})
    await client.post("/v1/sessions", json={"model": "tiny", "inputs": INPUTS})
    await client.post("/v1/sessions", json={"model": "tiny"})
    assert calls(service) == [
        one,
        [one, Input(None, [1])],
        one,
        one,
        Input(inputs=VALUES),
        SessionRequest("tiny", inputs=VALUES),
        SessionRequest("tiny"),
    ]


async def test_settings_of_a_large_body_are_read_alike(client: httpx.AsyncClient, service: ScriptedCore) -> None:
    numbers = [float(number) for number in range(LARGE_JSON_BYTES)]
    wide = {"text": "R", "inputs": {**INPUTS, "wide": numbers}}
    assert len(json.dumps(wide)) > LARGE_JSON_BYTES
    await client.post(STEP, json=wide)
    assert calls(service) == [Input("R", inputs=(*VALUES, InputValue.of("wide", numbers)))]


@pytest.mark.parametrize(
    ("inputs", "detail"),
    [
        ([1], 'inputs: must be an object, {"name": value}'),
        ("limit", 'inputs: must be an object, {"name": value}'),
        ({"limit": "6"}, "inputs: 'limit' must be a number, or lists of numbers of one length"),
        ({"limit": None}, "inputs: 'limit' must be a number, or lists of numbers of one length"),
        ({"limit": {"dB": 6}}, "inputs: 'limit' must be a number, or lists of numbers of one length"),
        ({"speaker": [[1, 2], [3]]}, "inputs: 'speaker' must be a number, or lists of numbers of one length"),
        ({"speaker": [1, "2"]}, "inputs: 'speaker' must be a number, or lists of numbers of one length"),
        ({"limit": 10**400}, "inputs: 'limit' must be a number, or lists of numbers of one length"),
    ],
)
async def test_a_setting_that_is_no_number_is_named(
    client: httpx.AsyncClient, service: ScriptedCore, inputs: Any, detail: str
) -> None:
    for path, body, where in (
        (STEP, {"text": "R", "inputs": inputs}, ""),
        ("/v1/sessions", {"model": "tiny", "inputs": inputs}, ""),
        ("/v1/models/tiny:predict", {"sequences": [{"text": "R", "inputs": inputs}]}, "sequences[0]."),
    ):
        reply = await client.post(path, json=body)
        assert (reply.status_code, reply.json()["detail"]) == (400, where + detail)
    assert service.calls == []
