"""What tidegate stored before there were summaries, frozen: sessions of every kind as format 1 kept them.

`format1.json` was written by the code of that time (commit d69218d): its records byte for byte, what it said before and
what it said next, on the bundles that `write_models` makes, whose weights are the same each time.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.bundles import write_tiny_bundle
from tests.redis import RedisServer
from tests.service.serving import change_bundle
from tests.service.sessions.replicas import MODEL
from tests.service.test_service_drift import DRIFT
from tidegate.bundle import read_bundle

WALL = 4e9
"""What the clock said when they were stored: later than it is, so that nothing of them is over."""

FIXTURE: dict[str, Any] = json.loads(Path(__file__).with_name("format1.json").read_bytes())

SCHEMA = """
CREATE TABLE sessions (
        id TEXT NOT NULL UNIQUE,
        revision BLOB NOT NULL,
        checksum BLOB NOT NULL,
        is_listed INTEGER NOT NULL,
        due REAL,
        record BLOB NOT NULL
    );
CREATE INDEX listed ON sessions (id) WHERE is_listed;
CREATE INDEX by_due ON sessions (due, id) WHERE due IS NOT NULL;
CREATE TABLE attachments (
        id TEXT NOT NULL,
        name TEXT NOT NULL,
        checksum BLOB NOT NULL,
        content BLOB NOT NULL,
        UNIQUE (id, name)
    );
PRAGMA application_id = 1953064037;
PRAGMA user_version = 1;
"""


class Row(NamedTuple):
    """A session as format 1 kept it."""

    revision: bytes
    record: bytes
    is_listed: bool
    due: float | None
    attachments: Mapping[str, bytes]


def write_models(root: Path) -> Path:
    """Write the models that the sessions are of."""
    change_bundle(write_tiny_bundle(root, MODEL), "2", drift=DRIFT)
    return root


def rows(models: Path) -> dict[str, Row]:
    """The sessions by id, on the models in that directory, whose manifests may say more by now."""
    renewed = {
        old.encode(): read_bundle(models / MODEL / version).sha256.encode()
        for version, old in FIXTURE["sha256"].items()
    }

    def content(text: str) -> bytes:
        found = base64.b64decode(text)
        for old, new in renewed.items():
            found = found.replace(old, new)
        return found

    return {
        id_: Row(
            base64.b64decode(row["revision"]),
            content(row["record"]),
            row["is_listed"],
            row["due"],
            {name: content(kept) for name, kept in row["attachments"].items()},
        )
        for id_, row in FIXTURE["rows"].items()
    }


def write_sqlite(path: Path, sessions: Mapping[str, Row]) -> None:
    """Write the file that format 1 made of them."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("PRAGMA journal_mode = WAL")
        file.executescript(SCHEMA)
        file.execute("BEGIN")
        for id_, row in sessions.items():
            checksum = zlib.crc32(row.record, zlib.crc32(row.revision)).to_bytes(4)
            values = (id_, row.revision, checksum, row.is_listed, row.due, row.record)
            file.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)", values)
            for name, kept in row.attachments.items():
                values_kept = (id_, name, zlib.crc32(kept, zlib.crc32(b"")).to_bytes(4), kept)
                file.execute("INSERT INTO attachments VALUES (?, ?, ?, ?)", values_kept)
        file.execute("COMMIT")


def write_redis(server: RedisServer, sessions: Mapping[str, Row]) -> None:
    """Write the keys that format 1 made of them."""
    server.call("SET", "tidegate:format", 1)
    for id_, row in sessions.items():
        bucket = f"tidegate:{{{zlib.crc32(id_.encode()) % 32}}}"
        session = f"{bucket}:session:{id_}"
        server.call("HSET", session, "revision", row.revision, "record", row.record)
        if row.is_listed:
            server.call("ZADD", f"{bucket}:listed", 0, id_)
        else:
            server.call("HSET", session, "hidden", 1)
        if row.due is not None:
            server.call("ZADD", f"{bucket}:due", row.due, id_)
        for name, kept in row.attachments.items():
            server.call("HSET", session, f"attachment:{name}", kept)


def assert_close(found: Any, expected: Any) -> None:
    """They say the same, numbers as near as any two runs of a model."""
    if isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    elif isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    else:
        assert found == expected


def plain(value: Any) -> Any:
    """What JSON can say of a result."""
    if hasattr(value, "_asdict"):
        return {name: plain(each) for name, each in value._asdict().items()}
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
