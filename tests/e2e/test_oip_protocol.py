"""Our .proto files against the stubs that tritonclient ships, field by field, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.oip.clients import HERE, run_script

Described = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def theirs() -> Described:
    return _read(run_script("fields.py", "tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2"))


@pytest.fixture(scope="module")
def ours() -> Described:
    modules = ["tidegate.oip.service_pb2", "tidegate.oip.model_config_pb2"]
    done = subprocess.run([sys.executable, HERE / "fields.py", *modules], capture_output=True, text=True, check=True)
    return _read(done.stdout)


def _read(text: str) -> Described:
    described: Described = json.loads(text)
    return described


def test_every_field_of_ours_is_theirs(ours: Described, theirs: Described) -> None:
    different = {
        f"{name}.{field}": (value, theirs.get(name, {}).get(field))
        for name, fields in ours.items()
        for field, value in fields.items()
        if theirs.get(name, {}).get(field) != value
    }
    assert different == {}
    assert set(ours) <= set(theirs)


def test_nothing_of_theirs_is_missing_but_parts_of_the_configuration(ours: Described, theirs: Described) -> None:
    """The configuration has parts for GPUs, ensembles and agents, of which nothing here has any."""
    configuration = _configuration(theirs)
    for name, fields in theirs.items():
        if name not in configuration:
            assert ours[name] == fields


def _configuration(theirs: Described) -> set[str]:
    """The messages and enums that only `ModelConfig` is made of."""
    inside = {"ModelConfig"}
    for name in theirs:
        if name.partition(".")[0] in {"ModelConfig", "DataType", "BatchInput", "BatchOutput"}:
            inside.add(name)
    grows = True
    while grows:
        types = {
            value[3].removeprefix(".inference.")
            for name in inside
            for value in theirs[name].values()
            if isinstance(value, list)
        }
        found = {name for name in theirs for kind in types if kind and (name == kind or name.startswith(f"{kind}."))}
        grows = not found <= inside
        inside |= found
    return inside
