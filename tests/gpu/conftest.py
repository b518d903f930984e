"""Tests that need a GPU are left out where onnxruntime has none to run on, on the build machine too."""

from __future__ import annotations

import pytest

from tests.programs import leave_out
from tidegate.ort import onnxruntime


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        remedy = "pip install onnxruntime-gpu, on a machine with a GPU"
        leave_out("a GPU that onnxruntime can use", remedy, is_required_in_ci=False)
