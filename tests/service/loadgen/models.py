"""What a server says of its models."""

from __future__ import annotations

from tidegate.api import ModelInfo, TensorInfo


def model(task: str = "next_token", dtype: str = "int64", features: list[str] | None = None) -> ModelInfo:
    return ModelInfo(
        name="tiny",
        version="2",
        versions=["1", "2"],
        task=task,
        cell="lstm",
        inputs=[TensorInfo("x", dtype, ["batch", "time"] if dtype == "int64" else ["batch", "time", "3"])],
        outputs=[
            TensorInfo("surprise", "float32", ["batch", "time"]),
            TensorInfo("logits", "float32", ["batch", "time", "65"]),
        ],
        features=features or [],
        state_bytes=256,
        surprise_unit="bits",
        batch_invariant=True,
        sha256="0" * 64,
        provider="cpu",
    )
