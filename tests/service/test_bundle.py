"""Bundles: written whole, read only where every byte is what the manifest says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tidegate.bundle import GRAPH, MANIFEST, Axis, StateSpec, find_bundles, read_bundle, write_bundle
from tidegate.errors import BundleError


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = path / MANIFEST
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def refusal(path: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        read_bundle(path)
    return caught.value


@pytest.mark.parametrize("write", [write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle])
def test_what_is_written_is_read(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    bundle = read_bundle(path)
    assert (bundle.manifest.name, bundle.manifest.version) == (path.parent.name, path.name)
    assert set(bundle.manifest.files) == {file.name for file in path.iterdir()} - {MANIFEST}
    assert bundle.graph.read_bytes()
    assert read_bundle(path) == bundle


def test_equal_content_is_one_bundle_and_other_content_needs_another_version(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path, seed=1)
    before = read_bundle(path)
    assert write_tiny_bundle(tmp_path, seed=1) == path
    with pytest.raises(BundleError, match="choose a new version") as caught:
        write_tiny_bundle(tmp_path, seed=2)
    assert caught.value.reason == "VERSION_EXISTS"
    assert read_bundle(path) == before
    assert read_bundle(write_tiny_bundle(tmp_path, version="2", seed=2)).sha256 != before.sha256


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    manifest = read_bundle(write_tiny_bundle(tmp_path)).manifest.model_copy(update={"version": "2"})
    with pytest.raises(OSError, match="no/such"):
        write_bundle(tmp_path, manifest, {GRAPH: b"", "no/such/folder": b""})
    assert [file.name for file in (tmp_path / "tiny").iterdir()] == ["1"]


def test_bundles_are_found_by_name_then_by_number(tmp_path: Path) -> None:
    for version in ("10", "9", "2"):
        write_tiny_bundle(tmp_path, "b", version)
    write_tiny_bundle(tmp_path, "a")
    for stray in ("b/.11.tmp", "b/latest", ".hidden/1"):
        (tmp_path / stray).mkdir(parents=True)
    (tmp_path / "README.md").write_text("no bundle")
    found = [path.relative_to(tmp_path).as_posix() for path in find_bundles(tmp_path)]
    assert found == ["a/1", "b/2", "b/9", "b/10"]


@pytest.mark.parametrize("name", [GRAPH, "vocabulary.json", "card.md"])
def test_one_altered_byte_of_any_file_is_found(tmp_path: Path, name: str) -> None:
    path = write_tiny_bundle(tmp_path)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    error = refusal(path)
    assert error.reason == "CHECKSUM_MISMATCH"
    assert f"{name}: checksum differs" in error.message


@pytest.mark.parametrize("name", [GRAPH, "vocabulary.json", MANIFEST])
def test_a_half_written_bundle_is_refused_with_the_file(tmp_path: Path, name: str) -> None:
    path = write_tiny_bundle(tmp_path)
    file = path / name
    file.write_bytes(file.read_bytes()[:100])
    assert name in refusal(path).message
    file.unlink()
    assert name in refusal(path).message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it.update(format=2), "format: Input should be 1"),
        (lambda it: it.update(colour="blue"), "colour: Extra inputs are not permitted"),
        (lambda it: it.update(states=[]), "states: Tuple should have at least 1 item"),
        (lambda it: it.update(version="1.0"), "version: String should match pattern"),
        (lambda it: it.update(codec={"kind": "magic"}), "codec: Input tag 'magic'"),
        (lambda it: it.update(name="other"), "the manifest names other/1"),
        (lambda it: it["proof"].update(tolerance=1.5), "proof.tolerance: Input should be less than or equal to 1"),
        (lambda it: it["files"].pop(GRAPH), "lists no model.onnx"),
        (lambda it: it["files"].update({"../x": "0"}), "'../x', which is not a plain file name"),
        (lambda it: it["files"].update({"..": "0"}), "'..', which is not a plain file name"),
    ],
)
def test_a_bad_manifest_is_refused_with_the_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = write_tiny_bundle(tmp_path)
    edit(path, change)
    error = refusal(path)
    assert error.reason == "BAD_BUNDLE"
    assert message in error.message


@pytest.mark.parametrize("proof", [None, {"passed": False, "max_error": 1.0, "cases": 3, "runtime": "r"}])
def test_without_a_passed_proof_nothing_is_served(tmp_path: Path, proof: Any) -> None:
    path = write_tiny_bundle(tmp_path)
    edit(path, lambda it: it.update(proof=proof))
    assert refusal(path).reason == "NOT_STREAMABLE"


def test_a_copy_under_another_version_is_refused(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    copy = shutil.copytree(path, path.with_name("2"))
    assert "the manifest names tiny/1" in refusal(copy).message


@pytest.mark.parametrize("axes", [(2, "batch", "batch"), ("layers", "batch", 4), ("batch", "time", 4)])
def test_a_states_size_is_fixed_but_for_the_batch(axes: tuple[Axis, ...]) -> None:
    with pytest.raises(ValidationError, match="must be a fixed size"):
        StateSpec(input="in", output="out", dtype="float32", axes=axes)


def test_a_manifest_tells_the_size_of_its_state_and_whether_rows_can_share_a_run(tmp_path: Path) -> None:
    manifest = read_bundle(write_tiny_bundle(tmp_path, hidden=16)).manifest
    assert manifest.state_bytes == 2 * 2 * 16 * 4
    assert manifest.is_batchable
    alone = StateSpec(input="h", output="h2", dtype="float16", axes=(3, 5), initial=1.0)
    other = manifest.model_copy(update={"states": (alone,)})
    assert (other.state_bytes, other.is_batchable, alone.batch_axis) == (30, False, None)
