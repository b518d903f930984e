"""Snapshots: the inverse pair, and every field that a forger may have written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import write_tiny_bundle
from tests.service.serving import serving
from tests.service.sessions.replicas import MODEL, step
from tidegate.api import LAST_POSITION, LATEST, RestoreRequest, SessionRequest
from tidegate.engine.arena import Plane
from tidegate.errors import InvalidInputError
from tidegate.protobuf import varint
from tidegate.service import Service
from tidegate.sessions.snapshot import Body, decode_snapshot, encode_snapshot, fill_parts, state_of

NAMES = ["h", "flags"]
PLANES = [Plane(np.dtype(np.float32), (2, 3), 0), Plane(np.dtype(np.bool_), (4,), 0)]
STATE = np.arange(6, dtype=np.float32).tobytes() + bytes([0, 1, 1, 0])


def made(**fields: Any) -> Body:
    body = Body(model="m", version="1", model_sha256="a" * 64, position=6, created_at=1e9)
    fill_parts(body, NAMES, PLANES, STATE)
    for name, value in fields.items():
        setattr(body, name, value)
    return body


def read(body: Body) -> bytes:
    return state_of(decode_snapshot(encode_snapshot(body)), NAMES, PLANES)


def test_what_is_taken_is_restored() -> None:
    assert read(made()) == STATE
    assert read(made(forked_from="fork of " + "x" * 128, ttl_seconds=1.0, idle_seconds=3e9)) == STATE
    assert read(Body(model="m", version="1")) == b""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position", LAST_POSITION),
        ("position", 2**64 - 1),
        ("model", "m" * 129),
        ("version", "1" * 5000),
        ("model_sha256", "a" * 65),
        ("forked_from", "x" * 4_000_000),
        ("forked_from", "fork of\n"),
        ("created_at", -1.0),
        ("created_at", math.nan),
        ("created_at", math.inf),
        ("created_at", LATEST + 1),
        ("ttl_seconds", 0.0),
        ("ttl_seconds", math.nan),
        ("idle_seconds", -1.0),
        ("idle_seconds", math.inf),
    ],
)
def test_a_field_out_of_bounds_is_refused(field: str, value: Any) -> None:
    assert_refused(made(**{field: value}), field)


def test_a_state_that_is_not_the_models_is_refused() -> None:
    missing, renamed, twice, nowhere, stateless = made(), made(), made(), made(position=0), made()
    del missing.parts[1], stateless.parts[:]
    renamed.parts[0].name = "x" * 1_000_000
    twice.parts.append(twice.parts[0])
    for body in (missing, renamed, twice, nowhere, stateless):
        assert_refused(body, "other parts than the model's h, flags")


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "float64"), ("dtype", "x" * 1_000_000), ("data", b""), ("data", bytes(28)), ("shape", [3, 2])],
)
def test_a_part_of_another_form_is_refused(field: str, value: Any) -> None:
    body = made()
    if field == "shape":
        body.parts[0].shape[:] = value
    else:
        setattr(body.parts[0], field, value)
    assert_refused(body, "h has another dtype, shape or length than float32[2, 3]")


def test_numbers_that_are_none_are_refused() -> None:
    body = made()
    body.parts[0].data = np.array([math.nan] * 6, np.float32).tobytes()
    assert_refused(body, "not finite")
    body = made()
    body.parts[1].data = bytes([0, 1, 2, 0])
    assert_refused(body, "neither true nor false")


def test_what_a_session_does_not_hold_is_refused() -> None:
    """A field that this version does not know."""
    padded, content = made(), bytes(100_000)
    padded.MergeFromString(varint(1999 << 3 | 2) + varint(len(content)) + content)
    assert_refused(padded, "more than a session of its model")


def assert_refused(body: Body, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words.replace("[", r"\[")) as caught:
        read(body)
    assert caught.value.reason == "BAD_SNAPSHOT"
    assert len(caught.value.message) < 400


async def test_a_forged_snapshot_opens_nothing(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, MODEL)
    async with serving(tmp_path, store="none") as service:
        await service.open_session(SessionRequest(MODEL, id="s"))
        await step(service, "hello", 0)
        body = decode_snapshot(await service.snapshot_session("s"))
        body.position = 2**64 - 1
        await assert_not_restored(service, body)
        body.position = 5
        body.parts[0].data = b""
        await assert_not_restored(service, body)
        assert [info.id for info in (await service.list_sessions()).sessions] == ["s"]


async def assert_not_restored(service: Service, body: Body) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await service.restore_session(encode_snapshot(body), RestoreRequest(id="forged"))
    assert caught.value.reason == "BAD_SNAPSHOT"
