"""Streams a recording through the bundle `vad` and draws the probability of speech over the waveform.

    tidegate serve
    python docs/examples/vad.py recording.wav --plot speech.png

Needs `tidegate`, and matplotlib for the plot. The recording is a WAV file of one channel, at the sample rate that the
model says (16 kHz): another one is refused. Frames are sent one by one, as a microphone would deliver them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidegate.client import Client, read_wav
from tidegate.errors import InvalidInputError

Floats = NDArray[np.float32]


def speech_probabilities(client: Client, model: str, frames: Floats) -> Floats:
    """Return the probability of speech in each frame, by one session, one step a frame."""
    told = []
    with client.open(model) as session:
        for frame in frames:
            outputs = session.step(values=frame[None]).prediction.outputs or {}
            told.append(outputs["output"][-1].item())
    return np.array(told, np.float32)


def draw(samples: Floats, rate: float, probabilities: Floats, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds", ylim=(-1.05, 1.05))
    axes.plot(np.arange(len(samples)) / rate, samples / np.abs(samples).max(), color="0.75", linewidth=0.4)
    ends = (np.arange(len(probabilities)) + 1) * (len(samples) / rate / len(probabilities))
    axes.step(ends, probabilities, color="C1", label="probability of speech")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("--model", default="vad")
    parser.add_argument("--grpc", default="127.0.0.1:8081")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    with Client(arguments.grpc) as client:
        model = client.model(arguments.model)
        try:
            frames = read_wav(arguments.recording, model)
        except InvalidInputError as error:
            raise SystemExit(str(error)) from None
        probabilities = speech_probabilities(client, arguments.model, frames)
    print(f"{len(probabilities)} frames, {100 * float(np.mean(probabilities > 0.5)):.1f} % of them speech")
    if arguments.plot is not None:
        assert model.sample_rate is not None  # or the recording was refused
        draw(frames.ravel(), model.sample_rate, probabilities, arguments.plot)


if __name__ == "__main__":
    main()
