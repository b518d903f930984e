"""Bundles: written whole, read only where every byte is what the manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.bundles import write_tiny_bundle, write_tiny_forecast_bundle, write_tiny_stream_bundle
from tidegate.bundle import (
    GRAPH,
    MANIFEST,
    Axis,
    StateSpec,
    Vocabulary,
    find_bundles,
    read_bundle,
    write_bundle,
)
from tidegate.errors import BundleError
from tidegate.limits import MAX_CODEC_BYTES


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
    assert bundle.graph
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


# ---- what a stranger may have written


def listed(path: Path, name: str, data: bytes) -> None:
    """Put a file into the bundle and its checksum into the manifest."""
    (path / name).unlink(missing_ok=True)
    (path / name).write_bytes(data)
    edit(path, lambda it: it["files"].update({name: hashlib.sha256(data).hexdigest()}))


@pytest.mark.parametrize("name", [GRAPH, "vocabulary.json", "card.md", MANIFEST])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "nowhere", "outside"])
def test_what_is_no_regular_file_of_the_bundle_is_refused_and_never_waited_for(
    tmp_path: Path, name: str, kind: str
) -> None:
    file = write_tiny_bundle(tmp_path / "bundles") / name
    outside = tmp_path / "outside"
    file.rename(outside)
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case _:
            file.symlink_to({"device": "/dev/zero", "loop": name, "nowhere": "nowhere"}.get(kind, outside))
    message = refusal(file.parent).message
    assert name in message
    if kind in {"device", "outside"}:
        assert "a link to a file outside" in message
    elif kind == "fifo":
        assert "not a regular file" in message


def test_links_within_the_folder_of_the_model_and_hard_links_are_followed(tmp_path: Path) -> None:
    """As a ConfigMap of Kubernetes lies in a volume: each file a link, to a folder that is a link itself."""
    path = write_tiny_bundle(tmp_path / "bundles")
    before = read_bundle(path)
    (path / "..2026_01_01").mkdir()
    (path / "..data").symlink_to("..2026_01_01")
    for name in (MANIFEST, *before.files):
        (path / name).rename(path / "..data" / name)
        (path / name).symlink_to(f"..data/{name}")
    assert read_bundle(path) == before
    (path.parents[1] / "other").symlink_to(path.parent.name)
    assert "the manifest names tiny/1" in refusal(path.parents[1] / "other" / "1").message
    twin = tmp_path / "twin" / "tiny" / "1"
    twin.mkdir(parents=True)
    for name in (MANIFEST, *before.files):
        (twin / name).hardlink_to((path / name).resolve())
    assert read_bundle(twin).sha256 == before.sha256


def test_files_that_the_manifest_does_not_list_are_not_looked_at(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    os.mkfifo(path / "notes")
    assert "notes" not in read_bundle(path).files


NAMES = [
    "../x", "..", ".", "", "a/b", "/etc/passwd", "a\\b", "a\0b", "x\n", ".hidden", "-rf", " x", "ü", "a" * 129, "CON:",
    MANIFEST, "Manifest.json", "Model.onnx",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_are_plain_and_differ_in_more_than_capitals(tmp_path: Path, name: str) -> None:
    path = write_tiny_bundle(tmp_path)
    edit(path, lambda it: it["files"].update({name: "0" * 64}))
    message = refusal(path).message
    assert "is not a plain file name" in message or "is there twice" in message


@pytest.mark.parametrize("name", ["../tiny/1/vocabulary.json", "/etc/passwd", "other.json", "vocabulary.json\0"])
def test_a_codec_file_that_the_manifest_does_not_list_is_refused_and_not_read(tmp_path: Path, name: str) -> None:
    path = write_tiny_bundle(tmp_path)
    (path / "other.json").write_bytes((path / "vocabulary.json").read_bytes())
    edit(path, lambda it: it["codec"].update(vocabulary=name))
    assert refusal(path).message == f"{path}: the manifest lists no {name}"


FIELDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a state of petabytes": (lambda it: it["states"][0].update(axes=[2, "batch", 1 << 40]), "from 1 to 134,217,728"),
    "many sizes": (lambda it: it["states"][0].update(axes=[1 << 14, "batch", 1 << 14]), "268,435,456 elements"),
    "no size": (lambda it: it["states"][0].update(axes=[2, "batch", 0]), "from 1 to 134,217,728, got 0"),
    "less than none": (lambda it: it["states"][0].update(axes=[2, "batch", -16]), "from 1 to 134,217,728, got -16"),
    "half a size": (lambda it: it["states"][0].update(axes=[2, "batch", 16.5]), "axes.2"),
    "many axes": (lambda it: it["states"][0].update(axes=[1] * 17), "at most 16 items"),
    "a number as text": (lambda it: it["states"][0].update(initial="0"), "initial: Input should be a valid number"),
    "one output, two states": (lambda it: it["states"][1].update(output="h_out"), "'h_out' is there twice"),
    "one input, two states": (lambda it: it["states"][1].update(input="h_in"), "'h_in' is there twice"),
    "many large states": (
        lambda it: it.update(
            states=[
                {"input": f"i{i}", "output": f"o{i}", "dtype": "float64", "axes": ["batch", 1 << 26]} for i in range(3)
            ]
        ),
        "the states of a session have 1,610,612,736 bytes, at most 1,073,741,824",
    ),
    "many states": (lambda it: it.update(states=[it["states"][0]] * 2000), "at most 1024 items"),
    "an output twice": (lambda it: it.update(outputs=[it["outputs"][0]] * 2), "'logits' is there twice"),
    "an input as a state": (lambda it: it["inputs"][0].update(name="h_in"), "'h_in' is there twice"),
    "two batches": (lambda it: it["inputs"][0].update(axes=["batch", "batch"]), "'batch' or 'time' is there twice"),
    "a long label": (lambda it: it["inputs"][0].update(axes=["batch", "x" * 2000]), "from 1 to 134,217,728, got 'xxx"),
    "a long name": (lambda it: it["inputs"][0].update(name="x" * 2000), "at most 1024 characters"),
    "a wide output": (lambda it: it["outputs"][0].update(axes=["batch", "time", 1 << 30]), "from 1 to 134,217,728"),
    "zeros in front": (lambda it: it.update(version="01"), "version: String should match pattern"),
    "an exponent": (lambda it: it.update(version="1e3"), "version: String should match pattern"),
    "digits of others": (lambda it: it.update(version="١"), "version: String should match pattern"),
    "a version as number": (lambda it: it.update(version=1), "version: Input should be a valid string"),
    "a line's end": (lambda it: it.update(name="tiny\n"), "name: String should match pattern"),
    "a word as number": (lambda it: it.update(batch_invariant=1), "batch_invariant: Input should be a valid boolean"),
    "many cases": (lambda it: it["proof"].update(cases=1 << 70), "cases: Input should be less than or equal to"),
    "no number": (lambda it: it.update(provenance={"x": float("nan")}), "NaN is no finite number"),
    "no end": (lambda it: it["proof"].update(max_error=float("-inf")), "-Infinity is no finite number"),
    "many files": (lambda it: it["files"].update({f"f{i}": "0" * 64 for i in range(70)}), "at most 64 items"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_manifest_has_a_bound(tmp_path: Path, field: str) -> None:
    change, message = FIELDS[field]
    path = write_tiny_bundle(tmp_path)
    edit(path, change)
    error = refusal(path)
    assert error.reason == "BAD_BUNDLE"
    assert message in error.message


TEXTS = {
    "a key twice": (b'{"format": 1, "format": 2}', "the key 'format' is there twice"),
    "a key twice, deep": (b'{"provenance": {"a": [{"b": 1, "b": 1}]}}', "the key 'b' is there twice"),
    "brackets": (b"[" * 100_000, "too many brackets within each other"),
    "braces": (b'{"a": ' * 100_000, "too many brackets within each other"),
    "a long number": (b'{"format": ' + b"9" * 5000 + b"}", "not JSON"),
    "a large number": (b'{"format": 1e999}', "1e999 is no finite number"),
    "no UTF-8": (b'{"name": "\xff"}', "not JSON"),
    "UTF-16": ("{}".encode("utf-16"), "not JSON"),
    "half a character": (b'{"name": "\\ud800"}', "Invalid JSON"),
    "null": (b"null", "the document"),
    "nothing": (b"", "not JSON"),
    "too much": (b" " * (1 << 20) + b"{}", "1,048,578 bytes, at most 1,048,576 are read"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_manifest_that_readers_do_not_agree_on_is_refused(tmp_path: Path, text: str) -> None:
    content, message = TEXTS[text]
    path = write_tiny_bundle(tmp_path)
    (path / MANIFEST).write_bytes(content)
    assert message in refusal(path).message


def test_files_beside_the_graph_share_a_bound(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    with (path / "vocabulary.json").open("wb") as stream:
        stream.truncate(MAX_CODEC_BYTES + 1)  # it takes no room on the disk
    assert f"{MAX_CODEC_BYTES + 1:,} bytes, at most" in refusal(path).message
    listed(write_tiny_bundle(tmp_path, "half"), "vocabulary.json", bytes(MAX_CODEC_BYTES // 2 + 1))
    listed(tmp_path / "half" / "1", "more", bytes(MAX_CODEC_BYTES // 2 + 1))
    assert re.search(r"more: 33,554,433 bytes, at most [\d,]+ are read", refusal(tmp_path / "half" / "1").message)


def test_a_graph_beyond_two_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    with (path / GRAPH).open("wb") as stream:
        stream.truncate(1 << 40)
    assert "1,099,511,627,776 bytes, at most 2,147,483,647 are read" in refusal(path).message


def test_what_was_hashed_is_what_is_used(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    bundle = read_bundle(path)
    graph = bundle.graph
    for file in path.iterdir():
        file.write_bytes(b"altered after it was read")
    assert bundle.graph == graph
    assert bundle.read("vocabulary.json", Vocabulary).tokens


def test_a_writer_writes_nothing_that_no_reader_takes(tmp_path: Path) -> None:
    manifest = read_bundle(write_tiny_bundle(tmp_path)).manifest.model_copy(update={"version": "02"})
    with pytest.raises(BundleError, match="version: String should match pattern"):
        write_bundle(tmp_path, manifest, {GRAPH: b""})
    assert [file.name for file in (tmp_path / "tiny").iterdir()] == ["1"]


def test_what_cannot_be_looked_into_is_found_and_says_why(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, "good")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "good" / "2").symlink_to("2")
    (tmp_path / "good" / "3").write_text("a file")
    for name in ("01", "1e3", "٣", "1.0"):
        (tmp_path / "good" / name).mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_bundles(tmp_path)]
    assert found == ["good/01", "good/1", "good/2", "good/3", "loop"]
    for name in found:
        if name != "good/1":
            assert "manifest.json" in refusal(tmp_path / name).message
