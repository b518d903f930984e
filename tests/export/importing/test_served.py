"""Imported bundles behind a server: what a session is told is what the file's graph gives, run by hand."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from tests.export.importing.graphs import Net, lstm
from tests.export.importing.importing import by_hand, imported
from tests.export.importing.test_contexts import decoder, rows, scores, window, windows
from tests.export.importing.test_third_party import by_wrapper_logic, speech, vad
from tests.servers import serving as serving_process
from tests.service.serving import serving
from tidegate.api import Input, SessionRequest, StepOptions
from tidegate.bundle import Bundle
from tidegate.errors import InvalidInputError

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"

Floats = NDArray[np.floating]


async def streamed(bundle: Bundle, rows: Floats, lengths: list[int], name: str, arena: str) -> Floats:
    """Send rows [steps, width] through a session, chunk by chunk, beside another that sends other things."""
    told, start = [], 0
    async with serving(bundle.path.parents[1], arena=arena) as service:
        session = await service.open_session(SessionRequest(bundle.manifest.name))
        other = await service.open_session(SessionRequest(bundle.manifest.name))
        for length in lengths:
            beside = service.step(other.id, Input(values=-rows[:length]), StepOptions(), position=None)
            piece = Input(values=rows[start : start + length])
            reply = await service.step(session.id, piece, StepOptions(every_step=True), position=start)
            await beside
            start += length
            assert reply.position == start
            assert reply.prediction.outputs is not None
            told.append(reply.prediction.outputs[name])
        for opened in (session, other):
            await service.close_session(opened.id)
    return np.concatenate(told)


@pytest.mark.parametrize("arena", ["host", "device"])
async def test_frames_of_a_voice_detector_with_its_context_kept(tmp_path: Path, arena: str) -> None:
    bundle, frames = vad(tmp_path, 16000), speech(16000, 30)
    got = await streamed(bundle, frames, [1, 1, 5, 23], "output", arena)
    np.testing.assert_allclose(got[:, 0], by_wrapper_logic(16000, frames), rtol=0, atol=1e-6)


@pytest.mark.parametrize("arena", ["host", "device"])
async def test_first_states_of_a_file_begin_every_session(tmp_path: Path, arena: str) -> None:
    first = np.random.default_rng(0).normal(size=(1, 1, 8)).astype(np.float32)
    np.savez(tmp_path / "initial.npz", h_in=first)
    net = lstm(cell="GRU")
    bundle = imported(net, tmp_path, initial=tmp_path / "initial.npz")
    rows = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    wanted = by_hand(net, {"x": rows[:, None], "h_in": first})["y"][:, 0]
    np.testing.assert_allclose(await streamed(bundle, rows, [1, 2, 4], "y", arena), wanted, atol=1e-5)


@pytest.mark.parametrize("arena", ["host", "device"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64])
async def test_windows_that_remember_nothing_else_are_served(tmp_path: Path, arena: str, dtype: int) -> None:
    net = window(1, 16, 4, dtype=dtype)
    bundle = imported(net, tmp_path, contexts=["win=15@1"])
    kind = bundle.manifest.inputs[0].dtype
    new = rows(20, 1, 4, dtype=kind)
    got = await streamed(bundle, new[:, 0].astype(np.float32), [1, 2, 17], "score", arena)
    np.testing.assert_allclose(got, scores(net, windows(new, 15)), atol=2e-3 if kind == "float16" else 1e-5)


@pytest.mark.parametrize("arena", ["host", "device"])
async def test_tokens_of_a_stateless_decoder_are_served(tmp_path: Path, arena: str) -> None:
    net, told = decoder(), []
    bundle = imported(net, tmp_path, contexts=["y=1@1"])
    tokens = np.random.default_rng(0).integers(1, 20, 9)
    async with serving(bundle.path.parents[1], arena=arena) as service:
        session = await service.open_session(SessionRequest("model"))
        for start, stop in ((0, 1), (1, 5), (5, 9)):
            piece = Input(tokens=tokens[start:stop].tolist())
            reply = await service.step(session.id, piece, StepOptions(every_step=True), position=start)
            assert reply.prediction.outputs is not None
            told.append(reply.prediction.outputs["decoder_out"])
    before = np.concatenate([[0], tokens])
    wanted = [by_hand(net, {"y": before[None, step : step + 2]})["decoder_out"][0] for step in range(9)]
    np.testing.assert_allclose(np.concatenate(told), wanted, atol=1e-5)


async def test_several_inputs_of_several_axes_come_side_by_side_and_rows_without_a_batch_run_alone(
    tmp_path: Path,
) -> None:
    net = Net()
    frame = net.add("Reshape", net.input("frame", 3, 2), net.integers(1, 1, 6))
    top, (last,) = net.layer("GRU", frame, [net.input("h", 1, 1, 8)], 6, 8)
    told = net.add("Mul", net.add("Reshape", top, net.integers(8)), net.input("gain", 8))
    net.output(told, "y")
    net.output(last, "hn")
    bundle = imported(net, tmp_path, states=["h:hn"])
    assert not bundle.manifest.is_batchable
    rows = np.random.default_rng(1).normal(size=(5, 14)).astype(np.float32)
    got = await streamed(bundle, rows, [1, 1, 3], "y", "host")
    h = np.zeros((1, 1, 8), np.float32)
    for step, row in enumerate(rows):
        alone = by_hand(net, {"frame": row[:6].reshape(3, 2), "gain": row[6:], "h": h})
        np.testing.assert_allclose(got[step], alone["y"], atol=1e-5)
        h = alone["hn"]
    async with serving(bundle.path.parents[1]) as service:
        with pytest.raises(InvalidInputError, match="each row needs 14 values"):
            await service.predict("model", None, [Input(values=rows[:, :6])], StepOptions())


# ---- the examples of docs/import.md, as their reader runs them


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_wav(path: Path, samples: NDArray[np.signedinteger], rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def test_a_recording_is_streamed_over_grpc_and_drawn(tmp_path: Path) -> None:
    bundle, frames = vad(tmp_path, 16000), speech(16000, 40)
    samples = (frames * 32768).clip(-32768, 32767).astype("<i2")
    write_wav(tmp_path / "speech.wav", samples, 16000)
    with serving_process(bundle.path.parents[1]) as server:
        arguments = ("--model", bundle.manifest.name, "--grpc", server.grpc, "--plot", tmp_path / "speech.png")
        told = run("vad.py", tmp_path / "speech.wav", *arguments)
        write_wav(tmp_path / "studio.wav", samples, 48000)
        command = [sys.executable, *map(str, (EXAMPLES / "vad.py", tmp_path / "studio.wav", *arguments))]
        refused = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False).stderr
    wanted = by_wrapper_logic(16000, (samples / np.float32(32768)).astype(np.float32))
    assert told == f"40 frames, {100 * np.mean(wanted > 0.5):.1f} % of them speech\n"
    assert "takes one channel of 16000 samples a second: convert it, for example with `ffmpeg" in refused
    assert (tmp_path / "speech.png").read_bytes().startswith(b"\x89PNG")


def spelled(word: str) -> str:
    """What the package's loop does, in numpy: a GRU cell over the letters, another over its own phonemes."""
    spec = importlib.util.find_spec("g2p_en")
    assert spec is not None, "pip install --no-deps g2p-en==2.1.0"
    assert spec.submodule_search_locations is not None
    arrays = np.load(Path(spec.submodule_search_locations[0]) / "checkpoint20.npz")
    names = phonemes()

    def cell(x: Floats, h: Floats, part: str) -> Floats:
        ours = x @ arrays[f"{part}_w_ih"].T + arrays[f"{part}_b_ih"]
        theirs = h @ arrays[f"{part}_w_hh"].T + arrays[f"{part}_b_hh"]
        r, z = np.split(1 / (1 + np.exp(-(ours[:512] + theirs[:512]))), 2)
        return np.asarray((1 - z) * np.tanh(ours[512:] + r * theirs[512:]) + z * h)

    h: Floats = np.zeros(256)
    for letter in [*(ord(letter) - ord("a") + 3 for letter in word), 2]:
        h = cell(arrays["enc_emb"][letter], h, "enc")
    told: list[str] = []
    last = 2
    while len(told) < 20:
        h = cell(arrays["dec_emb"][last], h, "dec")
        last = int((arrays["fc_w"] @ h + arrays["fc_b"]).argmax())
        if last == 3:
            break
        told.append(names[last])
    return " ".join(told)


def phonemes() -> list[str]:
    """The package's own list, out of its source: importing it would fetch corpora."""
    spec = importlib.util.find_spec("g2p_en")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    text = (Path(spec.submodule_search_locations[0]) / "g2p.py").read_text()
    literal = text.partition("self.phonemes = ")[2].partition("self.g2idx")[0]
    return [word for part in literal.split("[") for word in part.replace('"', "'").split("'")[1::2]]


def test_weights_that_came_as_arrays_spell_as_their_package_does(tmp_path: Path) -> None:
    run("g2p.py", tmp_path / "g2p.onnx")
    bundle = imported(tmp_path / "g2p.onnx", tmp_path, name="g2p")
    with serving_process(bundle.path.parents[1]) as server:
        words = ("tidegate", "recurrent", "memory", "sequence")
        told = run("g2p.py", "--grpc", server.grpc, "--spell", *words).splitlines()
    assert told == [spelled(word) for word in words]
    assert spelled("memory") == "M EH1 M ER0 IY0"


def test_one_gru_of_those_arrays_is_exported_as_a_layer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from tidegate.cli import main; main()", "export", f"{EXAMPLES}/g2p.py:encoder"]
    arguments = ("--name", "g2p-encoder", "--input", "tokens", "--out", str(tmp_path))
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "g2p-encoder/1: stream, gru, 1024 bytes of state per session" in done.stdout
