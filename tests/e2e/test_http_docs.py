"""What docs/http.md shows of HTTP and server-sent events runs: in curl, Python, Node, and a browser.

Its WebSockets are tests/service/http/test_websocket_docs.py's, its nginx test_stock_clients.py's.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.browser import browser_at
from tests.programs import program
from tests.servers import RunningServer, serving

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/http.md").read_text(encoding="utf-8")
BEFORE, _, AFTER = PAGE.partition("\n## WebSockets\n")
WEBSOCKETS = AFTER.partition("\n## ")[0]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(ROOT / "bundles", "--store", "none") as running:
        yield running


def code(language: str, server: RunningServer, text: str = BEFORE) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return "\n".join(blocks).replace("127.0.0.1:8080", server.http.removeprefix("http://"))


def run(folder: Path, script: str, *command: str) -> list[str]:
    """The lines that a script prints which a program reads."""
    done = subprocess.run(command, input=script, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_call_of_the_document_is_shown(server: RunningServer) -> None:
    """In curl, but for those of the Open Inference Protocol."""
    paths = httpx.get(f"{server.http}/openapi.json").json()["paths"]
    shown = code("sh", server)
    for path in paths:
        if not path.startswith("/v2"):
            pattern = re.sub(r"\\\{\w+\\\}", "[a-z0-9-]+", re.escape(path))
            assert re.search(f"{pattern}[\\s'?]", shown), path


def test_curl(server: RunningServer, tmp_path: Path) -> None:
    program("curl")
    script = code("sh", server).replace("curl -N", "curl -N --no-progress-meter --fail-with-body -w '\\n'")
    lines = run(tmp_path, script, "bash", "-e")
    assert lines.count("event: done") == 2
    assert '"token":"e"' in "".join(lines)
    assert (tmp_path / "hamlet.snapshot").stat().st_size > 1000


def test_python(server: RunningServer, tmp_path: Path) -> None:
    names, *lines = run(tmp_path, code("python", server), sys.executable, "-W", "error", "-")
    assert "shakespeare-lstm" in names
    assert lines == [
        "e", "18 e", "[18, 18]", "18", "18", "done True", "404 application/problem+json UNKNOWN_SESSION",
    ]  # fmt: skip


PRINTED = ["e", "18 e", "18 18", "5 done", "unknown session absent"]


def test_node(server: RunningServer, tmp_path: Path) -> None:
    names, *lines = run(tmp_path, code("javascript", server), program("node"), "--input-type=module", "-")
    assert "shakespeare-lstm" in names
    assert lines == PRINTED


def test_a_browser(server: RunningServer) -> None:
    """On a page of the server's own."""
    with browser_at(f"{server.http}/livez") as page:
        names, *lines = page.run(code("javascript", server))
        assert "shakespeare-lstm" in names
        assert lines == PRINTED
        assert page.run(code("javascript", server, WEBSOCKETS)) == ["load-lstm", "168"]
