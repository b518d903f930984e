"""A line between a server and its store that can be cut, held and healed.

Knows bytes only. While it is held, what either side sends is kept and arrives later, as on a network that stalls; while
it is cut, connections are reset and new ones refused by a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: closing resets the connection."""


class Proxy:
    """Passes connections to ``target`` (host, port); listens on a free port of 127.0.0.1 between `start` and `stop`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.num_cut = 0
        self._is_cut = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._lines: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def stop(self) -> None:
        self._server.close()
        self._reset()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Reset every connection, and each new one, until `heal`."""
        self._is_cut = True
        self._reset()

    def hold(self) -> None:
        """Let nothing through until `heal`; connections stay."""
        self._flows.clear()

    def heal(self) -> None:
        """Undo `cut` and `hold`."""
        self._is_cut = False
        self._flows.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(writer)
            return
        ends = {writer, far_writer}
        self._lines |= ends
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass_on(reader, far_writer))
                tasks.create_task(self._pass_on(far_reader, writer))
        except* OSError:
            pass
        finally:
            self._lines -= ends
            for end in ends:
                _reset(end)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one end has closed: so does the line

    def _reset(self) -> None:
        self.num_cut += len(self._lines) // 2
        for writer in self._lines:
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it is closed already
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


@contextlib.asynccontextmanager
async def proxy_to(host: str, port: int) -> AsyncIterator[Proxy]:
    """A started proxy, stopped after the block."""
    proxy = Proxy((host, port))
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
