"""tidegate_export makes bundles: of PyTorch modules, of foreign ONNX files, of other bundles."""

from __future__ import annotations

# First of all: onnxscript imports onnxruntime, whose telemetry is switched off there.
import tidegate.errors  # noqa: F401
