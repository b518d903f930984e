"""The server: h2corn, in our event loop, on sockets that we opened.

What h2corn 2.0.0 does that a server of ours must not is held back here: its banner, its exceptions on standard error,
its word to systemd, and limits that it would choose.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import resource
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate.transports.asgi import Application, Guard, Scope
from tidegate.transports.departures import Connections

# h2corn's allocator, which reads this when it is loaded, would keep what was freed until it next has something to do.
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "0")

import h2corn

logger = logging.getLogger(__name__)

MIB = 1 << 20
_RESTART_SECONDS = 0.5
_LAST_SECONDS = 0.25
_WATCH_SECONDS = 0.5
_SYSTEMD = "NOTIFY_SOCKET"
_RESERVED_DESCRIPTORS = 256  # for stores, peers, logs and files


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take of the server: bytes, seconds and counts.

    Attributes:
        url: Bytes of a request line over HTTP/1.1.
        head: Bytes of a request's head that reach the application; it answers above its own, lower limit, with 431 or
            RESOURCE_EXHAUSTED. Over HTTP/2 a longer head ends as REFUSED_STREAM, which clients may try again.
        fields: Header fields of a request.
        body: Bytes of a request's body, except gRPC's, whose messages are limited one by one.
        message: Bytes of a WebSocket's message.
        connections: Open at once; further ones wait to be accepted.
        streams: Requests at once on one HTTP/2 connection.
        window: Bytes that a client may send ahead on one stream, and four times on one connection.
        handshake: Seconds for TLS and the first bytes of HTTP/2.
        idle: Seconds that a connection without a request stays open. Over HTTP/1.1 this is also the time for a head,
            since h2corn takes the lesser of both for both.
        body_idle: Seconds without a byte of a body that is not complete; not for gRPC.
        stalled: Seconds that a client may leave its answer unread. Until then, over HTTP/2, it can hold up all answers
            of its connection, since h2corn lets these have 2 MiB of unsent bytes together.
        ping: Seconds between pings of a WebSocket.
    """

    url: int = 16 << 10
    head: int = 256 << 10
    fields: int = 100
    body: int = 16 * MIB
    message: int = 4 * MIB
    connections: int = 4096
    streams: int = 256
    window: int = MIB
    handshake: float = 10
    idle: float = 620
    body_idle: float = 60
    stalled: float = 30
    ping: float = 30


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the certificate's chain, its key and, where clients show certificates, who signs these.

    Attributes:
        is_client_required: Whether a client without a certificate is turned away.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    is_client_required: bool = True

    def stamps(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when a file is written anew, or put in place of another.

        Raises:
            OSError: One cannot be read.
        """
        files = [self.certificate, self.key, *([] if self.client_ca is None else [self.client_ca])]
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in (file.stat() for file in files))


class H2cornServer:
    """Serves one listening socket, which its caller opens and closes.

    Args:
        application: Answers requests.
        listener: Listens, and does not block.
        limits: For its clients.
        tls: None serves plain text, as on Unix sockets.
        is_endless: Whether a request may go on for ever, and so is not waited for when the server stops.
        end_streams: Told of WebSockets, by the tasks that serve them, that are to answer what they have read and end.
        grace: Seconds that requests may take to finish once the server stops.
        overlap: Seconds that connections from before a renewal of the certificate may last.
    """

    def __init__(
        self,
        application: Application,
        listener: socket.socket,
        limits: Limits,
        tls: TlsFiles | None = None,
        *,
        is_endless: Callable[[Scope], bool] = lambda _: False,
        end_streams: Callable[[Collection[asyncio.Task[Any]]], None] = lambda _: None,
        grace: float = 5,
        overlap: float = 3600,
    ) -> None:
        self._guard = Guard(application)
        self._listener = listener
        self._limits = limits
        self._tls = tls
        self._is_endless = is_endless
        self._end_streams = end_streams
        self._grace = grace
        self._overlap = overlap
        self._server: h2corn.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._restarting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections.

        Raises:
            OSError: The certificate, its key or the signers' certificates cannot be used.
            ValueError: Likewise.
        """
        server = h2corn.Server(self._guard, self._config())
        with _without_systemd():
            task = asyncio.create_task(server.serve(), name="tidegate-h2corn")
            self._serving.add(task)
            task.add_done_callback(functools.partial(self._on_ended, server))
            await server.wait_started()
        if self._watching is None and self._listener.family != socket.AF_UNIX:
            self._watching = asyncio.create_task(self._watch_clients(), name="tidegate-departures")
        former, self._server = self._server, server
        if former is not None:
            try:
                await self._end_websockets()
            finally:
                self._shut_down(former)

    async def renew(self) -> None:
        """Read the TLS files again, for connections that come from now on.

        Open ones go on as they are, but WebSockets end, once what they have in flight is answered.

        Raises:
            OSError: As of `start`; connections are accepted as before.
            ValueError: Likewise.
        """
        await self.start()

    async def stop(self, grace: float | None = None) -> bool:
        """Accept no more, let what runs finish for ``grace`` seconds (that of the constructor), then cancel it.

        Returns:
            Whether h2corn has ended. Now and then it misses the end of a connection, and ends when its own grace is
            over: the constructor's, with TLS a renewal's ``overlap``. Until then its task cannot be cancelled and holds
            up `asyncio.Runner`.
        """
        server, self._server = self._server, None
        if self._restarting is not None:
            self._restarting.cancel()
        if server is not None:
            self._shut_down(server)
            # h2corn holds the socket to its end. Who connects from now on is to be refused, not left waiting.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            for task, scope in tuple(self._guard.running.items()):
                if self._is_endless(scope):
                    self._guard.cancel(task)
        if self._serving:
            await asyncio.wait(self._serving, timeout=self._grace if grace is None else grace)
        if self._serving:
            for task in tuple(self._guard.running):
                self._guard.cancel(task)
            await asyncio.wait(self._serving, timeout=_LAST_SECONDS)
        if self._watching is not None:
            self._watching.cancel()
        return not self._serving

    async def _watch_clients(self) -> None:
        """Cancel requests over HTTP/1.1 whose clients have left; over HTTP/2, h2corn does."""
        connections = Connections()
        try:
            known: set[asyncio.Task[Any]] = set()
            while True:
                await asyncio.sleep(_WATCH_SECONDS)
                running = {
                    task: scope
                    for task, scope in self._guard.running.items()
                    if scope["type"] == "http" and scope["http_version"] != "2"  # WebSockets are told
                }
                for task, scope in running.items():
                    # Most requests are answered before they are looked at twice.
                    if task in known and connections.has_left(scope["client"], scope["server"]):
                        self._guard.cancel(task)
                known = set(running)
        finally:
            connections.close()

    async def _end_websockets(self) -> None:
        """Let WebSockets end by themselves: h2corn closes them when it is told to end, and answers are lost."""
        tasks = {task for task, scope in self._guard.running.items() if scope["type"] == "websocket"}
        if tasks:
            self._end_streams(tasks)
            await asyncio.wait(tasks, timeout=self._grace)

    def _shut_down(self, server: h2corn.Server) -> None:
        with _without_systemd():
            server.shutdown()

    def _on_ended(self, server: h2corn.Server, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None or server is not self._server:
            return
        # One failed accept, as without a free descriptor, ends h2corn and every connection.
        self._server = None
        if self._restarting is None or self._restarting.done():
            logger.error("all connections are lost: %s; if files are too many, raise ulimit -n or lower the cap", error)
            self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        while self._server is None:
            await asyncio.sleep(_RESTART_SECONDS)
            with contextlib.suppress(OSError):
                await self.start()
            await asyncio.sleep(_RESTART_SECONDS)  # it may end at once

    def _config(self) -> h2corn.Config:
        limits, tls = self._limits, self._tls
        return h2corn.Config(
            bind=(f"fd://{self._listener.fileno()}",),
            lifespan="off",
            grpc=True,
            access_log=False,
            runtime_threads=1,  # more of them only contend with the event loop for the interpreter lock
            log_format="json",
            certfile=None if tls is None else tls.certificate,
            keyfile=None if tls is None else tls.key,
            ca_certs=None if tls is None else tls.client_ca,
            cert_reqs="none"
            if tls is None or tls.client_ca is None
            else "required"
            if tls.is_client_required
            else "optional",
            limit_request_line=limits.url,
            limit_request_head_size=limits.head,
            limit_request_field_size=limits.head,
            limit_request_fields=limits.fields,
            h2_max_header_list_size=limits.head,
            h2_max_header_block_size=4 * limits.head,  # above it, h2corn ends the connection and all its streams
            h2_initial_stream_window_size=limits.window,
            h2_initial_connection_window_size=4 * limits.window,
            max_request_body_size=limits.body,
            max_concurrent_streams=limits.streams,
            limit_connections=limits.connections,
            websocket_max_message_size=limits.message,
            websocket_per_message_deflate=False,
            websocket_ping_interval=limits.ping,
            websocket_ping_timeout=limits.ping,
            timeout_handshake=limits.handshake,
            timeout_keep_alive=limits.idle,
            timeout_request_header=limits.idle,
            timeout_request_body_idle=limits.body_idle,
            h2_timeout_response_stall=limits.stalled,
            h2_timeout_write=10 * limits.stalled,  # a slow link's whole time for what is written; progress counts not
            timeout_graceful_shutdown=self._grace if tls is None else self._overlap,
        )


def connections_within(limit: int, num_listeners: int) -> int:
    """Return how many connections each listener may have: ``limit``, or what the open files allow.

    Without a cap below that, a client that opens many connections takes the descriptors of all: see `_on_ended`.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limit
    return min(limit, max((soft - min(_RESERVED_DESCRIPTORS, soft // 2)) // num_listeners, 1))


@contextlib.contextmanager
def _without_systemd() -> Iterator[None]:
    """h2corn would tell systemd that the unit is ready, or stops; whether that is so, the process knows."""
    address = os.environ.pop(_SYSTEMD, None)
    try:
        yield
    finally:
        if address is not None:
            os.environ[_SYSTEMD] = address
