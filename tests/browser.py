"""Debian's Chromium without a screen, driven by its own protocol (chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.programs import program

SECONDS = 30


class Page:
    """A page that is loaded."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._printed: list[str] = []
        self._session: str | None = None

    def attach(self, url: str) -> None:
        """Open a page of its own, and wait until it is there."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Runtime.enable")
        self.ask("Page.enable")
        self.ask("Page.navigate", url=url)
        while self._next()["method"] != "Page.loadEventFired":
            pass

    def run(self, script: str) -> list[str]:
        """Run a module's code; return what it prints by ``console.log``."""
        self._printed = []
        ended = self.ask(
            "Runtime.evaluate", expression=f"(async () => {{{script}\n}})()", awaitPromise=True, timeout=SECONDS * 1000
        )
        assert "exceptionDetails" not in ended, ended["exceptionDetails"]
        return self._printed

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give an order; return its result."""
        order: dict[str, Any] = {"id": next(self._numbers), "method": method, "params": parameters}
        if self._session is not None:
            order["sessionId"] = self._session
        self._connection.send(json.dumps(order))
        while (told := self._next()).get("id") != order["id"]:
            pass
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    def _next(self) -> dict[str, Any]:
        """The next message; what the page prints is put by."""
        told: dict[str, Any] = {"method": ""} | json.loads(self._connection.recv(SECONDS))
        if told["method"] == "Runtime.consoleAPICalled":
            values = [str(argument.get("value")) for argument in told["params"]["args"]]
            self._printed.append(" ".join(values))
        return told


@contextlib.contextmanager
def browser_at(url: str) -> Iterator[Page]:
    """Start a browser at a page; end it after the block."""
    with tempfile.TemporaryDirectory(prefix="tidegate-browser-", ignore_cleanup_errors=True) as profile:
        # Tests may run as root in containers, where Chromium's own sandbox cannot; pages are ours alone.
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server")
        command = (program("chromium"), *flags, *quiet, f"--user-data-dir={profile}", "--remote-debugging-port=0")
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            try:
                with connect(_address(process), max_size=None) as connection:
                    page = Page(connection)
                    page.attach(url)
                    yield page
            finally:
                process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"DevTools listening on (ws://\S+)", line):
            return found[1]
    raise AssertionError("the browser ended before it listened")
