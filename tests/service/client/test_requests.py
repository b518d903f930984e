"""What callers give is told apart by type and shape."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tidegate.api import Input
from tidegate.client.requests import as_input
from tidegate.errors import InvalidInputError


@pytest.mark.parametrize("given", [Input(text="ab"), "ab"])
def test_texts(given: Any) -> None:
    assert as_input(given) == Input(text="ab")


@pytest.mark.parametrize("given", [[1, 2], (1, 2), np.array([1, 2], np.int32)], ids=["list", "tuple", "array"])
def test_tokens(given: Any) -> None:
    assert as_input(given) == Input(tokens=[1, 2])


def test_an_empty_list_is_left_for_the_server_to_refuse() -> None:
    assert as_input([]) == Input(tokens=[])


@pytest.mark.parametrize("given", [[[1, 2], [3, 4]], np.array([[1.0, 2.0], [3.0, 4.0]])], ids=["lists", "array"])
def test_values(given: Any) -> None:
    found = as_input(given)
    assert found.values is not None
    assert found.values.dtype == np.float32
    assert found.values.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("given", [[1.5, 2.5], [[1.0], [1.0, 2.0]], [["a"]], 7, np.zeros((1, 1, 1))], ids=str)
def test_anything_else_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInputError):
        as_input(given)


def test_the_client_imports_no_server() -> None:
    code = (
        "import sys, tidegate.client\n"
        "print([name for name in sys.modules if name.split('.')[0] in {'onnxruntime', 'fastapi', 'uvicorn', 'pydantic'}"
        " or name.startswith(('tidegate.transports', 'tidegate.service', 'tidegate.engine'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
