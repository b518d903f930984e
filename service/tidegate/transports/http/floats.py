"""Steps and replies as bare numbers, for WebSockets of the subprotocol ``tidegate.f32``.

A frame is whole steps, each a row of 32-bit floats, little-endian; its reply has a row of the model's one float output
for each of them. Nothing else is told: what needs positions or surprise speaks another kind of frame.
"""

from __future__ import annotations

import numpy as np

from tidegate.api import Input, ModelInfo, Prediction, Rows, StepOptions, Tensor, TensorInfo, check_steps
from tidegate.errors import FailedPreconditionError, InvalidInputError

_FLOAT_BYTES = 4
_ONE = StepOptions()
_EACH = StepOptions(every_step=True)


def width_of(model: ModelInfo) -> int:
    """Return how many numbers a step of the model is.

    Raises:
        FailedPreconditionError: The model has not one float input of known width, or not one float output.
    """
    if len(model.inputs) == 1 and _is_float(model.inputs[0]) and _has_float_output(model):
        axes = [axis for axis in model.inputs[0].axes if axis not in {"batch", "time"}]
        if model.features:
            return len(model.features)
        if all(axis.isdecimal() for axis in axes):
            return int(np.prod([int(axis) for axis in axes], dtype=np.int64))
    raise FailedPreconditionError(
        f"tidegate.f32 is for models with one float input and one float output, which {model.name}/{model.version} is "
        "not: send JSON in text frames, or StreamRequests in binary ones",
        reason="NOT_OF_FLOATS",
    )


def parse_floats(frame: bytes, width: int) -> tuple[Input, StepOptions]:
    """Return a frame's steps, and what is asked.

    Raises:
        InvalidInputError: Its length is no whole number of steps.
        TooLargeError: It has more steps than a request may.
    """
    num_steps, rest = divmod(len(frame), _FLOAT_BYTES * width)
    if rest:
        raise InvalidInputError(
            f"a frame of {len(frame)} bytes is no whole number of steps: a step is {width} numbers of 4 bytes, "
            f"{_FLOAT_BYTES * width} bytes",
            reason="BAD_FRAME",
        )
    check_steps(num_steps)
    values = np.frombuffer(frame, "<f4").reshape(num_steps, width).astype(np.float32, copy=False)
    # Of one step, the last is each.
    return Input(None, None, values), _ONE if num_steps == 1 else _EACH


def dump_floats(prediction: Prediction) -> bytes:
    """Return what the model says after each step: its forecast, [horizon, quantile], or its output."""
    return _told(prediction).astype("<f4", copy=False).tobytes()


def _told(prediction: Prediction) -> Tensor:
    if prediction.forecast is None:
        (output,) = (prediction.outputs or {}).values()
        return output
    if isinstance(prediction.forecast, Rows):
        return prediction.forecast.arrays[0]
    return np.array([forecast.values for forecast in prediction.forecast], np.float32)


def _has_float_output(model: ModelInfo) -> bool:
    return model.task == "forecast" or (
        model.task == "stream" and len(model.outputs) == 1 and _is_float(model.outputs[0])
    )


def _is_float(tensor: TensorInfo) -> bool:
    return tensor.dtype.startswith("float")
