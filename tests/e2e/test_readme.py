"""README's calls work as printed: each ``$ curl`` goes to a real server, and the answer printed is what comes back."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import serving

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# What differs from run to run.
VARYING = {"created_at", "expires_at"}


def calls() -> list[tuple[str, str, str | None]]:
    """Each call's URL and body, and the answer printed under it."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        lines = block.splitlines()
        for line, following in zip(lines, [*lines[1:], "$"], strict=True):
            if line.startswith("$ curl "):
                words = shlex.split(line)
                url = next(word for word in words if word.startswith("http://127.0.0.1:8080/"))
                printed = None if following.startswith("$") else following
                found.append((url.removeprefix("http://127.0.0.1:8080"), words[words.index("-d") + 1], printed))
    return found


def comparable(value: Any) -> Any:
    """``value`` without what varies, and with numbers that compare by the project's tolerance."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in VARYING}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value


def test_the_calls_work_as_printed() -> None:
    assert sum(printed is not None for _, _, printed in calls()) >= 3
    with serving(ROOT / "bundles") as server:
        for path, body, printed in calls():
            reply = httpx.post(server.http + path, content=body)
            assert reply.is_success, reply.text
            if printed is not None:
                assert reply.json() == comparable(json.loads(printed))


def test_the_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^\$ make ([a-z-]+)", README, re.MULTILINE))
    assert {"serve", "test"} <= named <= targets
