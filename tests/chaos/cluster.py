"""Replicas as processes over one store, to be killed, paused, told to drain and started again.

Knows processes and ports. Knows nothing of what is asked of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
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
        said: The last lines of its log.
        num_kills: How often it was killed.
    """

    def __init__(
        self, bundles: Path, name: str, flags: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.http = self.grpc = ""
        self.said: deque[str] = deque(maxlen=200)
        self.num_kills = 0
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
        command = [*COMMAND, "serve", "--http", http, "--grpc", grpc, *self._flags]
        self._process = await asyncio.create_subprocess_exec(
            *command, stdout=PIPE, stderr=asyncio.subprocess.STDOUT, env=self._environment, limit=LONGEST_LINE
        )
        ready = await self.wait_for("ready")
        self.http, self.grpc = ready["http"], ready["grpc"]
        self._reading = asyncio.create_task(self._read_on())
        return ready

    async def wait_for(self, event: str) -> dict[str, Any]:
        """The next line of that event; only before it is ready."""
        while line := await self._next_line():
            with contextlib.suppress(json.JSONDecodeError):
                fields: dict[str, Any] = json.loads(line)
                if fields["event"] == event:
                    return fields
        raise AssertionError(f"no {event!r} from {self.name}: {''.join(self.said)}")

    async def kill(self) -> None:
        """SIGKILL; ended when this returns."""
        self.num_kills += 1
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

    async def _read_on(self) -> None:
        while await self._next_line():
            pass

    async def _next_line(self) -> str:
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        self.said.append(line)
        return line


@contextlib.asynccontextmanager
async def running(*replicas: Replica) -> AsyncIterator[None]:
    """Start replicas together and end them after the block, whatever happened there."""
    try:
        await asyncio.gather(*(replica.start() for replica in replicas))
        yield
    finally:
        await asyncio.gather(*(replica.stop() for replica in replicas), return_exceptions=True)
