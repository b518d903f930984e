"""tools/import_table.py: rows are true, and survive what goes wrong. No network: packages come from a folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.export.importing.graphs import Net, lstm
from tools.import_table import (
    BEGIN,
    END,
    ENTRIES,
    Entry,
    download,
    make_rows,
    old_rows,
    read_entries,
    read_member,
    with_rows,
)

PAGE = f"before\n{BEGIN}\nold\n{END}\nafter\n"


def entry(label: str = "model.onnx", expected: str = "imported", package: str = "pack 1.0") -> Entry:
    return Entry(package, f"pack/{label}", (), expected, label)


def wheel(root: Path, **models: Net) -> Path:
    path = root / "pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, net in models.items():
            archive.writestr(f"pack/{name}.onnx", net.model().SerializeToString())
    return path


def test_a_file_is_imported_and_compared_by_hand(tmp_path: Path) -> None:
    archive = wheel(tmp_path, model=lstm(), back=lstm(direction="reverse"))
    entries = [entry(), entry("back.onnx", "NOT THIS")]
    (_, good), (_, bad) = make_rows(entries, lambda _: archive, {})
    assert "| imported: 2 states, 64 bytes | 0 |" in str(good)
    assert "| refused: " in str(bad)
    assert not isinstance(bad, str)
    assert not bad.is_expected


def test_a_package_that_cannot_be_had_keeps_its_row(tmp_path: Path) -> None:
    entries = [entry(), entry("other.onnx")]
    old = old_rows(with_rows(PAGE, entries, {entries[0].key: "| pack 1.0 | `model.onnx` |  | imported: 1 state | 0 |"}))
    rows = dict(make_rows(entries, lambda _: None, old))
    assert rows[entries[0]] == "| pack 1.0 | `model.onnx` |  | imported: 1 state | 0 |"
    assert "not downloaded" in str(rows[entries[1]])


def test_a_file_that_left_its_package_is_told(tmp_path: Path) -> None:
    archive = wheel(tmp_path, model=lstm())
    ((_, row),) = make_rows([entry("gone.onnx")], lambda _: archive, {})
    assert "not in the package" in str(row)


def test_the_table_is_replaced_and_the_rest_of_the_page_stays() -> None:
    entries = [entry(), entry("second|odd.onnx")]
    rows = {item.key: f"| pack 1.0 | `{item.label}` |  | imported: 1 state | 0 |" for item in entries[:1]}
    page = with_rows(PAGE, entries, rows)
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "1 files of 1 packages: 1 imported, 0 not" in page
    assert with_rows(page, entries, old_rows(page)) == page


def test_a_file_in_an_archive_inside_of_the_package_is_found(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        info = tarfile.TarInfo("a/enc.onnx")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"1234"))
    path = tmp_path / "p.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("p/inner.tar.gz", inner.getvalue())
    assert read_member(path, "p/inner.tar.gz!a/enc.onnx") == b"1234"


def test_what_is_in_the_cache_is_not_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / "pack==1.0").mkdir()
    (tmp_path / "pack==1.0" / "pack-1.0.whl").write_bytes(b"")
    assert download("pack 1.0", tmp_path) == tmp_path / "pack==1.0" / "pack-1.0.whl"


def test_every_entry_has_a_name_of_its_own() -> None:
    keys = [item.key for item in read_entries(ENTRIES)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("hop", [1, 4])
def test_a_window_is_carried_by_hand(tmp_path: Path, hop: int) -> None:
    net = Net()
    net.output(net.linear(net.add("Flatten", net.input("win", 1, 8, 3)), 24, 2), "score", 1, 2)
    one = Entry("pack 1.0", "pack/model.onnx", ("--context", f"win={8 - hop}@1"), "imported", "model.onnx")
    ((_, row),) = make_rows([one], lambda _: wheel(tmp_path, model=net), {})
    assert f"imported: 1 context, {(8 - hop) * 12} bytes" in str(row)
    assert "import's own" not in str(row)
    assert np.isfinite(float(str(row).split("|")[-2]))
