"""`tidegate sessions` against a server whose core is a fake."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.service.fake_core import FakeCore
from tidegate import errors
from tidegate.api import RestoreRequest
from tidegate.cli import app


@pytest.fixture(autouse=True)
def session(service: FakeCore) -> str:
    """At position 3, durable."""
    service.add_sessions("a")
    service.sessions["a"] = service.sessions["a"]._replace(position=3, durable=True, checkpoints=("one", "two"))
    return "a"


async def run(address: str, *arguments: str, stdin: bytes | None = None) -> Result:
    # The server runs in the test's event loop, so the command runs in a thread.
    environment = {"TIDEGATE_SERVER": address, "COLUMNS": "200"}
    return await asyncio.to_thread(CliRunner().invoke, app, ["sessions", *arguments], input=stdin, env=environment)


async def printed(address: str, *arguments: str, stdin: bytes | None = None) -> str:
    result = await run(address, *arguments, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


async def failure(address: str, *arguments: str) -> str:
    result = await run(address, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("tidegate: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("tidegate: ").rstrip()


def names(directory: Path) -> list[str]:
    return [each.name for each in directory.iterdir()]


async def test_sessions_are_shown_with_what_they_retain(address: str) -> None:
    (listed,) = json.loads(await printed(address, "list", "--json"))
    assert listed == json.loads(await printed(address, "show", "a", "--json"))
    assert (listed["durable"], listed["checkpoints"], listed["origin"]) == (True, ["one", "two"], "v1")
    assert "one, two" in await printed(address, "show", "a")
    assert " yes " in await printed(address, "list")


async def test_a_session_is_exported_and_imported(address: str, service: FakeCore, tmp_path: Path) -> None:
    file = tmp_path / "a.tidegate"
    file.write_bytes(b"what was there")
    told = json.loads(await printed(address, "export", "a", str(file), "--json"))
    snapshot = file.read_bytes()
    assert told == {"session": "a", "file": str(file), "bytes": len(snapshot)}
    assert names(tmp_path) == ["a.tidegate"]
    wishes = ("--id", "b", "--durable", "--ttl-seconds", "60", "--idle-seconds", "5")
    document = json.loads(await printed(address, "import", str(file), *wishes, "--json"))
    assert (document["id"], document["position"], document["durable"]) == ("b", 3, True)
    assert service.restored == [(snapshot, RestoreRequest("b", durable=True, ttl_seconds=60, idle_seconds=5))]


async def test_exports_travel_through_pipes(address: str, service: FakeCore) -> None:
    result = await run(address, "export", "a", "-")
    assert result.exit_code == 0
    assert "position" in await printed(address, "import", "-", "--id", "b", stdin=result.stdout_bytes)
    assert service.sessions["b"].position == 3


async def test_an_export_says_nothing_unless_asked(address: str, tmp_path: Path) -> None:
    assert await printed(address, "export", "a", str(tmp_path / "a")) == ""


async def test_what_cannot_be_is_one_line(address: str, service: FakeCore, tmp_path: Path) -> None:
    assert "missing" in await failure(address, "export", "missing", str(tmp_path / "a"))
    assert names(tmp_path) == []
    nowhere = tmp_path / "no" / "a"
    assert await failure(address, "export", "a", str(nowhere)) == f"{nowhere}: No such file or directory"
    assert await failure(address, "import", str(nowhere)) == f"{nowhere}: No such file or directory"
    (tmp_path / "a").mkdir()
    assert await failure(address, "export", "a", str(tmp_path / "a")) == f"{tmp_path / 'a'}: Is a directory"
    assert names(tmp_path) == ["a"]
    file = tmp_path / "b"
    file.write_bytes(b"no snapshot")
    service.failures["restore"] = [errors.InvalidInputError("not a snapshot", reason="BAD_SNAPSHOT")]
    assert await failure(address, "import", str(file)) == "not a snapshot"


@pytest.mark.parametrize("verb", ["export", "import"])
async def test_where_no_server_is_exit_code_2_says_so(verb: str, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x")
    result = await run("127.0.0.1:1", verb, *(["a"] if verb == "export" else []), str(file))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "no server answers at 127.0.0.1:1" in result.stderr
