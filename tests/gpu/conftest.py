"""Tests that need a GPU: left out, and said so, where onnxruntime has none to run on."""

from __future__ import annotations

import onnxruntime
import pytest

HAS_GPU = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
_left_out: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs onnxruntime-gpu and a GPU that it can use")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [] if HAS_GPU else [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=left_out)
        _left_out.extend(item.nodeid for item in left_out)


def pytest_report_collectionfinish() -> list[str]:
    if not _left_out:
        return []
    return [f"{len(_left_out)} tests need a GPU and are left out: the installed onnxruntime has no CUDA provider"]
