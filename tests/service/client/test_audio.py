"""A recording becomes a model's steps only if it is what the model takes."""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.service.fake_core import MODEL
from tidegate.api import ModelInfo, TensorInfo
from tidegate.client import read_wav
from tidegate.errors import InvalidInputError

EARS = replace(
    MODEL,
    name="ears",
    inputs=[TensorInfo("x", "float32", ["batch", "time", "4"])],
    sample_rate=16000.0,
    frame_length=4,
)


def recording(path: Path, *, rate: int = 16000, channels: int = 1, size: int = 2, samples: int = 10) -> Path:
    """Write a ramp from -1 to almost 1."""
    numbers = np.linspace(-1, 1, samples * channels, endpoint=False)
    whole = np.round(numbers * 2.0 ** (8 * size - 1)).astype("<i4")
    data = (whole + 128).astype(np.uint8) if size == 1 else whole.view(np.uint8).reshape(-1, 4)[:, :size]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(size)
        file.setframerate(rate)
        file.writeframes(data.tobytes())
    return path


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_samples_become_whole_steps(tmp_path: Path, size: int) -> None:
    steps = read_wav(recording(tmp_path / "a.wav", size=size), EARS)
    assert steps.shape == (2, 4)
    assert steps.dtype == np.float32
    np.testing.assert_allclose(steps.ravel(), np.linspace(-1, 1, 10, endpoint=False)[:8], atol=2.0 ** (1 - 8 * size))


@pytest.mark.parametrize(
    ("file", "model", "words"),
    [
        ({"rate": 48000}, EARS, "1 channels of 48000 samples a second, and ears takes one channel of 16000"),
        ({"channels": 2}, EARS, "ffmpeg -i"),
        ({}, replace(EARS, sample_rate=None), "import or export it again with --sample-rate"),
        ({}, replace(EARS, frame_length=3), "takes no plain samples"),
        ({}, replace(EARS, inputs=[*EARS.inputs, *EARS.inputs]), "takes no plain samples"),
    ],
)
def test_another_recording_is_refused_with_what_to_do(
    tmp_path: Path, file: dict[str, int], model: ModelInfo, words: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_wav(recording(tmp_path / "a.wav", **file), model)
    assert words in caught.value.message


def test_what_is_no_recording_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="No such file"):
        read_wav(tmp_path / "absent.wav", EARS)
    (tmp_path / "text.wav").write_text("no recording")
    with pytest.raises(InvalidInputError, match="no WAV file"):
        read_wav(tmp_path / "text.wav", EARS)
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="it ends too early"):
        read_wav(tmp_path / "empty.wav", EARS)
