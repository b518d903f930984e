"""tidegate serves recurrent sequence models with their state."""

from __future__ import annotations

import os

# onnxruntime reads it once, when it is first imported, whoever does that (onnxscript does too): without it, it writes
# an id of the machine below HOME and sends events to its makers. Programs that we start inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"
