"""silero-vad from its package, imported: what its own wrapper gives, frame by frame, over both ways to run it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from silero_vad.utils_vad import OnnxWrapper  # type: ignore[import-untyped]

from tests.export.importing.importing import axes, imported, pairs, refusal
from tidegate.bundle import Bundle
from tidegate.ort import onnxruntime
from tidegate.proof import check_bundle
from tidegate.replay import GraphRunner

FRAME = {16000: 512, 8000: 256}
CONTEXT = {16000: 64, 8000: 32}

Floats = NDArray[np.float32]


def packaged(name: str) -> Path:
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None, "pip install --no-deps silero-vad==6.2.3"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data" / name


def vad(root: Path, rate: int) -> Bundle:
    options = {
        "constants": [f"sr={rate}"],
        "shapes": [f"input=batch,{FRAME[rate]}"],
        "contexts": [f"input={CONTEXT[rate]}"],
        "sample_rate": float(rate),
        "frame_length": FRAME[rate],
    }
    return imported(packaged("silero_vad.onnx"), root, name=f"vad-{rate}", **options)


def speech(rate: int, frames: int) -> Floats:
    """Something like speech: bursts of a buzz whose formants move, in noise. Enough to move the probability."""
    t = np.arange(frames * FRAME[rate]) / rate
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t)
    buzz = np.sign(np.sin(2 * np.pi * np.cumsum(pitch) / rate)) * (np.sin(2 * np.pi * 3 * t) > 0)
    formant = np.convolve(buzz, np.sin(2 * np.pi * 700 * t[:200]) * np.exp(-t[:200] * 300), mode="same")
    noise = np.random.default_rng(0).normal(size=len(t))
    wave = 0.2 * formant / np.abs(formant).max() + 0.002 * noise
    rows: Floats = wave.astype(np.float32).reshape(frames, FRAME[rate])
    return rows


def by_wrapper_logic(rate: int, frames: Floats) -> Floats:
    """What the package's wrapper does, in numpy: the last samples of a frame go in front of the next."""
    session = onnxruntime.InferenceSession(packaged("silero_vad.onnx"), providers=["CPUExecutionProvider"])
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, CONTEXT[rate]), np.float32)
    told = []
    for frame in frames:
        x = np.concatenate([context, frame[None]], axis=1)
        out, state = session.run(None, {"input": x, "state": state, "sr": np.array(rate)})
        context = x[:, -CONTEXT[rate] :]
        told.append(out[0, 0])
    return np.array(told, np.float32)


@pytest.mark.parametrize("rate", [16000, 8000])
def test_the_bundle_gives_what_the_wrapper_gives_frame_by_frame(tmp_path: Path, rate: int) -> None:
    bundle, frames = vad(tmp_path, rate), speech(rate, 60)
    assert pairs(bundle) == {"state": "stateN", "input.context_in": "input.context_out"}
    assert axes(bundle) == {"input": ("batch", "time", FRAME[rate]), "output": ("batch", "time", 1)}
    assert bundle.manifest.batch_invariant
    assert check_bundle(bundle.path).passed
    wrapper = OnnxWrapper(str(packaged("silero_vad.onnx")), force_onnx_cpu=True)
    wanted = np.array([wrapper(torch.from_numpy(frame), rate).item() for frame in frames])
    np.testing.assert_array_equal(by_wrapper_logic(rate, frames), wanted.astype(np.float32))
    assert np.ptp(wanted) > 0.2  # it says speech and silence
    runner = GraphRunner(bundle.graph, bundle.manifest)
    for lengths in ([60], [1] * 60, [1, 20, 39]):
        got = runner.walk({"input": frames[None]}, lengths).outputs["output"]
        np.testing.assert_allclose(got[0, :, 0], wanted, rtol=0, atol=1e-6)


def test_only_the_branch_of_the_chosen_rate_is_in_the_bundle(tmp_path: Path) -> None:
    sizes = [len(vad(tmp_path, rate).graph) for rate in (16000, 8000)]
    assert sum(sizes) < 1.05 * packaged("silero_vad.onnx").stat().st_size


def test_without_the_frame_and_the_rate_the_import_asks(tmp_path: Path) -> None:
    file = packaged("silero_vad.onnx")
    assert "--constant sr=VALUE" in refusal(file, tmp_path)
    assert "--shape input=batch,512" in refusal(file, tmp_path, constants=["sr=16000"])


def test_the_packages_other_files_give_the_same_each_with_its_own_axes(tmp_path: Path) -> None:
    frames = speech(16000, 40)
    wanted = by_wrapper_logic(16000, frames)
    told = {"shapes": ["input=batch,512"], "contexts": ["input=64"]}
    for name, options, shape in (
        ("silero_vad_16k_op15", {**told, "constants": ["sr=16000"]}, (1, 40, 512)),
        ("silero_vad_op18_ifless", {**told, "constants": ["sr=16000"]}, (1, 40, 512)),
        ("silero_vad_openvino_16k", {"contexts": ["input=64"]}, (1, 40, 512)),
        ("silero_vad_16k_sequence", {"contexts": ["input=64"]}, (40, 512)),
    ):
        bundle = imported(packaged(f"{name}.onnx"), tmp_path, name=name, **options)
        runner = GraphRunner(bundle.graph, bundle.manifest)
        result = runner.walk({"input": frames.reshape(shape)}, [7, 33]).outputs
        got = next(iter(result.values())).ravel()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5, err_msg=name)
