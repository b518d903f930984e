"""Replicas as processes over one store, to be killed, paused, told to drain and started again.

Knows processes and ports. Knows nothing of what is asked of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers import COMMAND, bare_environment

LONGEST_LINE = 2**20


class Replica:
    """One `tidegate serve`. Its first start takes free ports, which it keeps.

    Attributes:
        http: Its URL; ``grpc``: HOST:PORT.
        said: The last lines of its log since it was started.
        workers: Its processes' ids by their names, where it has several.
    """

    def __init__(
        self, bundles: Path, name: str, flags: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.http = self.grpc = ""
        self.said: deque[str] = deque(maxlen=200)
        self.workers: dict[str, int] = {}
        self._respawned = asyncio.Event()
        self._flags = ["--bundles", str(bundles), "--replica", name, "--log-format", "json", *flags]
        self._environment = {**bare_environment(), **(environment or {})}

    @property
    def process(self) -> Process:
        return self._process

    async def start(self) -> dict[str, Any]:
        """Start it; return what its ready line says.

        Raises:
            AssertionError: It ended before.
        """
        http, grpc = self.http.removeprefix("http://") or "127.0.0.1:0", self.grpc or "127.0.0.1:0"
        self.said.clear()
        command = [*COMMAND, "serve", "--http", http, "--grpc", grpc, *self._flags]
        self._process = await asyncio.create_subprocess_exec(
            *command, stdout=PIPE, stderr=asyncio.subprocess.STDOUT, env=self._environment, limit=LONGEST_LINE
        )
        ready = await self._wait_until_ready()
        self.http, self.grpc, self.workers = ready["http"], ready["grpc"], ready.get("workers", {})
        self._reading = asyncio.create_task(self._read_on())
        return ready

    async def kill_worker(self, name: str) -> None:
        """SIGKILL one of its processes; it has been started again when this returns."""
        self._respawned.clear()
        os.kill(self.workers[name], signal.SIGKILL)
        await self._respawned.wait()

    async def kill(self) -> None:
        """SIGKILL; ended when this returns."""
        self._process.kill()
        await self.ended()

    def tell(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; return the exit code."""
        await self._reading
        return await self._process.wait()

    async def stop(self) -> None:
        """End it if it runs, paused or not."""
        if self._process.returncode is None:
            self._process.kill()
            await self.ended()

    async def _wait_until_ready(self) -> dict[str, Any]:
        async for fields in self._lines():
            if fields["event"] == "ready":
                return fields
        raise AssertionError(f"{self.name} was never ready: {''.join(self.said)}")

    async def _read_on(self) -> None:
        async for fields in self._lines():
            if fields["event"] == "worker ready":
                self.workers[fields["worker"]] = fields["pid"]
                self._respawned.set()

    async def _lines(self) -> AsyncIterator[dict[str, Any]]:
        """What its log says from here on; what is not JSON (a traceback at the very start) is only kept."""
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode():
            self.said.append(line)
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


@contextlib.asynccontextmanager
async def running(*replicas: Replica) -> AsyncIterator[None]:
    """Start replicas together and end them after the block, whatever happened there."""
    try:
        await asyncio.gather(*(replica.start() for replica in replicas))
        yield
    finally:
        await asyncio.gather(*(replica.stop() for replica in replicas), return_exceptions=True)
