"""A body that is no input is refused with the place where it goes wrong, before the service hears of it."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service.http.scripted import ScriptedCore
from tidegate.errors import InvalidInputError
from tidegate.transports.http import convert

Json = Any

BAD_STEPS: list[tuple[Json, str]] = [
    ({}, "exactly one of text, tokens and values must be given, got none"),
    ({"text": None}, "exactly one of text, tokens and values must be given, got none"),
    ({"text": "R", "tokens": [1]}, "exactly one of text, tokens and values must be given, got text and tokens"),
    ({"text": 5}, "text: must be a string"),
    ({"text": ["R"]}, "text: must be a string"),
    ({"tokens": 5}, "tokens: must be a list of token ids"),
    ({"tokens": "12"}, "tokens: must be a list of token ids"),
    ({"tokens": [1, 2.0]}, "tokens[1]: must be a token id, a whole number"),
    ({"tokens": [1, True]}, "tokens[1]: must be a token id, a whole number"),
    ({"tokens": ["1"]}, "tokens[0]: must be a token id, a whole number"),
    ({"values": 1}, "values: must be a list of rows of numbers"),
    ({"values": [1, 2]}, "values[0]: must be a list of numbers"),
    ({"values": [[1], 2]}, "values[1]: must be a list of numbers"),
    ({"values": [[1, 2], [1]]}, "values[1]: has 1 numbers where the first row has 2"),
    ({"values": [[1, 2], [1, None]]}, "values[1][1]: must be a number"),
    ({"values": [["1"]]}, "values[0][0]: must be a number"),
    ({"values": [[1, True]]}, "values[0][1]: must be a number"),
    ({"values": [[[1]]]}, "values[0][0]: must be a number"),
    ({"values": [[10**400]]}, "values: holds a whole number beyond every float"),
    ({"text": "R", "position": -1}, f"position: must be a whole number of 0 to {2**63 - 1}"),
    ({"text": "R", "position": 1.0}, f"position: must be a whole number of 0 to {2**63 - 1}"),
    ({"text": "R", "position": True}, f"position: must be a whole number of 0 to {2**63 - 1}"),
    ({"text": "R", "top": "2"}, f"top: must be a whole number of 0 to {2**32 - 1}"),
    ({"text": "R", "every_step": 1}, "every_step: must be true or false"),
]


@pytest.mark.parametrize(("body", "detail"), BAD_STEPS)
async def test_a_bad_step_is_refused(client: httpx.AsyncClient, service: ScriptedCore, body: Json, detail: str) -> None:
    reply = await client.post("/v1/sessions/s-1:step", json=body)
    assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_INPUT")
    assert reply.json()["detail"] == detail
    assert service.calls == []


# The rules are those of a step's input, which has no place in a list: one for each kind of place.
@pytest.mark.parametrize(
    ("sequence", "detail"),
    [
        ({}, "exactly one of text, tokens and values must be given, got none"),
        ({"text": 5}, "text: must be a string"),
        ({"tokens": [1, 2.0]}, "tokens[1]: must be a token id, a whole number"),
        ({"values": [[1, 2], [1, None]]}, "values[1][1]: must be a number"),
        ({"text": "R", "top": 1}, "unknown key 'sequences[1].top': the keys are inputs, text, tokens, values"),
    ],
)
async def test_a_bad_sequence_is_named_by_its_index(
    client: httpx.AsyncClient, service: ScriptedCore, sequence: Json, detail: str
) -> None:
    reply = await client.post("/v1/models/tiny:predict", json={"sequences": [{"text": "R"}, sequence]})
    document = reply.json()
    assert (reply.status_code, document["sequence"]) == (400, 1)
    assert document["detail"] == (detail if detail.startswith("unknown") else f"sequences[1].{detail}")
    assert service.calls == []


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "sequences: must be a list of inputs"),
        ({"sequences": {"text": "R"}}, "sequences: must be a list of inputs"),
        ({"sequences": ["R"]}, "sequences[0]: must be an object"),
        ({"sequences": [], "version": 1}, "version: must be a string"),
    ],
)
async def test_a_bad_prediction_is_refused(client: httpx.AsyncClient, body: Json, detail: str) -> None:
    reply = await client.post("/v1/models/tiny:predict", json=body)
    assert (reply.status_code, reply.json()["detail"]) == (400, detail)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"model": 1}, "model: "),
        ({"model": None}, "model: "),
        ({"durable": "yes"}, "durable: "),
        ({"ttl_seconds": 0}, "ttl_seconds: "),
        ({"idle_seconds": -1}, "idle_seconds: "),
        ({"id": "a b"}, "id: "),
        ({"id": ""}, "id: "),
        ({"id": "x" * 129}, "id: "),
        ({"id": "a:step"}, "id: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**64}, "seed: "),
    ],
)
async def test_a_bad_session_is_refused(
    client: httpx.AsyncClient, service: ScriptedCore, change: Json, where: str
) -> None:
    reply = await client.post("/v1/sessions", json={"model": "tiny", **change})
    assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_INPUT")
    assert reply.json()["detail"].startswith(where)
    assert service.calls == []


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"max_tokens": "3"}, "max_tokens: "),
        ({"max_tokens": -1}, "max_tokens: "),
        ({"temperature": "hot"}, "temperature: "),
        ({"top_k": 1.5}, "top_k: "),
        ({"stop": "x"}, "stop: "),
        ({"stop": [1]}, "stop.0: "),
        ({"text": 1}, "text: "),
        ({"text": "R", "tokens": [1]}, "exactly one of "),
    ],
)
async def test_a_bad_generation_is_refused(
    client: httpx.AsyncClient, service: ScriptedCore, body: Json, where: str
) -> None:
    for path in ("/v1/models/tiny:generate", "/v1/sessions/s-1:generate"):
        reply = await client.post(path, json=body)
        assert (reply.status_code, reply.json()["reason"]) == (400, "INVALID_INPUT")
        assert reply.json()["detail"].startswith(where)
    assert service.calls == []


LARGE = 10_000
LONG_INPUTS = [
    ({"text": "R" * LARGE + "é"}, None),
    ({"tokens": [*range(LARGE)]}, None),
    ({"values": [[0.5, 1e39, 7]] * LARGE}, None),
    ({"values": [[1, 2]] * LARGE + [[0.25, -1]]}, None),
    ({"values": [[0.25] * LARGE] * 3}, None),
    ({"tokens": [1] * LARGE + [2.0]}, "tokens[10000]: must be a token id, a whole number"),
    ({"tokens": [1] * LARGE + ["2"] + [3] * LARGE}, "tokens[10000]: must be a token id, a whole number"),
    ({"tokens": [[1]] * LARGE}, "tokens[0]: must be a token id, a whole number"),
    ({"tokens": [1] * LARGE + [2**64]}, "tokens must be whole numbers"),
    ({"values": [1] * LARGE}, "values[0]: must be a list of numbers"),
    ({"values": [[1, 2]] * LARGE + [[1]]}, "values[10000]: has 1 numbers where the first row has 2"),
    ({"values": [[1, 2]] * LARGE + [[1]] * LARGE}, "values[10000]: has 1 numbers where the first row has 2"),
    ({"values": [[1, 2]] * LARGE + [[1, None]]}, "values[10000][1]: must be a number"),
    ({"values": [[1]] * LARGE + [[10**400]]}, "values: holds a whole number beyond every float"),
    ({"values": [[1]] * LARGE + [True]}, "values[10000]: must be a list of numbers"),
    ({"values": [[[1]]] * LARGE}, "values[0][0]: must be a number"),
]


@pytest.mark.parametrize(("body", "detail"), LONG_INPUTS)
async def test_a_long_input_is_read_and_refused_as_a_short_one_is(
    client: httpx.AsyncClient, service: ScriptedCore, body: Json, detail: str | None
) -> None:
    reply = await client.post("/v1/sessions/s-1:step", json=body)
    if detail is not None:
        assert (reply.status_code, reply.json()["detail"]) == (400, detail)
        assert service.calls == []
        return
    assert reply.status_code == 200
    (found,), expected = [call[2] for call in service.calls], convert.parse_input(body)
    assert (found.text, list(found.tokens or ())) == (expected.text, list(expected.tokens or ()))
    np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1e39"])
def test_what_is_no_number_reaches_the_core_as_such(word: bytes) -> None:
    """The core refuses it by the feature's name, over every transport alike."""
    from tidegate.transports.http.exchange import parse

    values = convert.parse_input(parse(b'{"values": [[1, ' + word + b"]]}")).values
    assert values is not None
    assert np.isfinite(values).tolist() == [[True, False]]


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2)))
def test_values_survive_in_single_precision(rows: list[list[float]]) -> None:
    values = convert.parse_input({"values": rows}).values
    assert values is not None
    assert values.tolist() == rows


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(sorted(convert.STEP_KEYS)), json_values))
def test_no_body_breaks_the_parser(body: dict[str, Json]) -> None:
    with contextlib.suppress(InvalidInputError):
        source, options, position = convert.parse_step(body)
        assert sum(each is None for each in source) == 2
        assert options.top >= 0
        assert position is None or position >= 0
