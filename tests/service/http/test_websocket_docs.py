"""What docs/http.md shows of WebSockets runs, in Python and in Node's browser-like WebSocket."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from tests.programs import program
from tests.service.serving import serving
from tests.service.transports.serving import front
from tidegate.transports.asgi import Application
from tidegate.transports.http.app import create_app

ROOT = Path(__file__).parents[3]
_, _, FROM_HERE = (ROOT / "docs/http.md").read_text(encoding="utf-8").partition("\n## WebSockets\n")
SECTION = FROM_HERE.partition("\n## ")[0]


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with (
        serving(ROOT / "bundles", store="none") as service,
        front(cast("Application", create_app(service))) as served,
    ):
        yield served.address


async def printed(address: str, language: str, *command: str) -> list[str]:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    code = "\n".join(blocks).replace("127.0.0.1:8080", address)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await process.communicate(code.encode())
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


async def test_the_examples_in_python_run(address: str) -> None:
    lines = await printed(address, "python", sys.executable, "-W", "error", "-")
    opened, stepped, again, columns, model, forecasts, refused = lines
    assert opened == "reader-7 0"
    assert re.fullmatch(r"5 \['.*', '.*', '.*'\]", stepped)
    assert again == "6"
    assert columns == "[0, 0, 0] [1, 1, 1]"
    assert model == "load-lstm"
    assert forecasts == "(24, 7) True"
    assert refused == "a frame of 10 bytes is no whole number of steps: a step is 4 numbers of 4 bytes, 16 bytes"


async def test_the_browser_s_example_runs(address: str) -> None:
    command = [program("node"), "--experimental-websocket", "--input-type=module", "-"]
    assert await printed(address, "javascript", *command) == ["load-lstm", "168"]
