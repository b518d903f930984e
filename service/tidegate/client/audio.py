"""Recordings as steps of a model: a WAV file's samples, if they are what the model takes."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidegate.api import ModelInfo
from tidegate.errors import InvalidInputError

_SAMPLE_BYTES = (1, 2, 3, 4)


def read_wav(path: Path | str, model: ModelInfo) -> NDArray[np.float32]:
    """Return a recording as the model's steps, [step, sample], full scale ±1; what fills no whole step is left out.

    Args:
        path: A WAV file of one channel, of whole numbers.
        model: Says how many samples a second it takes, and how many in a step.

    Raises:
        InvalidInputError: The file cannot be read, or has another rate or more channels; or the model takes no signal.
    """
    if model.sample_rate is None:
        raise InvalidInputError(
            f"model {model.name} does not say how many samples a second it takes: import or export it again with "
            "--sample-rate"
        )
    length = _frame_length(model)
    try:
        with wave.open(str(path)) as file:
            num_channels, size, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except OSError as error:
        raise InvalidInputError(f"{path}: {error.strerror}") from None
    except (wave.Error, EOFError) as error:
        raise InvalidInputError(f"{path}: no WAV file of whole numbers ({str(error) or 'it ends too early'})") from None
    if rate != model.sample_rate or num_channels != 1:
        wanted = f"{model.name} takes one channel of {model.sample_rate:g} samples a second"
        raise InvalidInputError(
            f"{path}: {num_channels} channels of {rate} samples a second, and {wanted}: convert it, for example with "
            f"`ffmpeg -i {path} -ac 1 -ar {model.sample_rate:g} converted.wav`"
        )
    if size not in _SAMPLE_BYTES:
        raise InvalidInputError(f"{path}: samples of {8 * size} bits: 8, 16, 24 and 32 are read")
    samples = _samples(data, size)
    return samples[: len(samples) // length * length].reshape(-1, length)


def _frame_length(model: ModelInfo) -> int:
    """Return how many samples a step is."""
    sizes = [axis for axis in model.inputs[0].axes if axis not in {"batch", "time"}]
    width = int(np.prod([int(size) for size in sizes])) if all(size.isdecimal() for size in sizes) else 0
    length = model.frame_length or width
    if len(model.inputs) != 1 or not length or length != width:
        raise InvalidInputError(
            f"model {model.name} takes no plain samples: make its inputs of the recording, and send them as values"
        )
    return length


def _samples(data: bytes, size: int) -> NDArray[np.float32]:
    """Return samples of so many bytes, little-endian, in [-1, 1)."""
    if size == 1:  # the only ones without a sign
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(128)
    wide = np.zeros((len(data) // size, 4), np.uint8)
    wide[:, 4 - size :] = np.frombuffer(data, np.uint8).reshape(-1, size)
    return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
