"""Streams a recording through an imported silero-vad and draws the probability of speech over the waveform.

    tidegate import silero_vad.onnx --name silero-vad --constant sr=16000 --shape input=batch,512 --context input=64
    tidegate serve
    python docs/examples/vad.py recording.wav --plot speech.png

Needs `tidegate`, and matplotlib for the plot. The recording is a WAV file of 16-bit samples, one channel, at the rate
that the bundle was imported for; frames are sent one by one, as a microphone would deliver them.
"""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidegate.client import Client

Floats = NDArray[np.float32]


def read_wav(path: Path) -> tuple[Floats, int]:
    """Return samples in [-1, 1) and their rate."""
    with wave.open(str(path)) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            raise SystemExit(f"{path}: one channel of 16-bit samples is needed")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return (samples / np.float32(32768)).astype(np.float32), file.getframerate()


def speech_probabilities(client: Client, model: str, samples: Floats) -> Floats:
    """Return the probability of speech in each whole frame, by one session, one step a frame."""
    size = int(client.model(model).inputs[0].axes[-1])
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    told = []
    with client.open(model) as session:
        for frame in frames:
            outputs = session.step(values=frame[None]).prediction.outputs or {}
            told.append(outputs["output"][-1].item())
    return np.array(told, np.float32)


def draw(samples: Floats, rate: int, probabilities: Floats, path: Path) -> None:
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
    parser.add_argument("--model", default="silero-vad")
    parser.add_argument("--grpc", default="127.0.0.1:8081")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    samples, rate = read_wav(arguments.recording)
    with Client(arguments.grpc) as client:
        probabilities = speech_probabilities(client, arguments.model, samples)
    print(f"{len(probabilities)} frames, {100 * float(np.mean(probabilities > 0.5)):.1f} % of them speech")
    if arguments.plot is not None:
        draw(samples, rate, probabilities, arguments.plot)


if __name__ == "__main__":
    main()
