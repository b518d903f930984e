"""The servers of one process, one for each address: settings become limits and certificates, and all start, renew and
stop together.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from tidegate.config import Settings, flag
from tidegate.errors import ConfigurationError
from tidegate.transports.asgi import Application, Scope
from tidegate.transports.h2corn_server import MIB, H2cornServer, Limits, TlsFiles, connections_within

log = logging.getLogger(__name__)

_WATCH_SECONDS = 5.0


class Server(Protocol):
    """Serves one listening socket."""

    async def start(self) -> None:
        """Accept connections."""

    async def renew(self) -> None:
        """Read the TLS files again, for connections that come from now on."""

    async def stop(self, grace: float) -> bool:
        """Accept no more, let requests finish for ``grace`` seconds, then cancel them; return whether all has ended."""


class Servers:
    """Serves applications on listening sockets, which their caller opens and closes.

    Raises:
        ConfigurationError: The certificate, its key or the signers of clients' certificates cannot be used.
    """

    def __init__(self, settings: Settings, num_listeners: int) -> None:
        self._settings = settings
        self._limits = limits_of(settings, num_listeners)
        self._tls = tls_files(settings)
        self._servers: list[Server] = []
        self._stamps = None if self._tls is None else self._tls.stamps()
        self._renewing = asyncio.Lock()
        if settings.asgi_server == "uvicorn":
            _tell_without_effect(settings)

    def add(
        self,
        listener: socket.socket,
        application: Application,
        is_endless: Callable[[Scope], bool],
        add_grpc: Callable[[Any], None] | None = None,
        end_streams: Callable[[Collection[asyncio.Task[Any]]], None] = lambda _: None,
    ) -> None:
        """Serve an application there, over TLS where the settings say so and it is no Unix socket.

        Args:
            listener: Listens, and does not block.
            application: Answers requests.
            is_endless: Whether a request may go on for ever, and so is not waited for when the servers stop.
            add_grpc: Adds gRPC's services to a server of grpc.aio, for the address that is gRPC's by its name: with
                ``--asgi-server uvicorn`` that is what serves there.
            end_streams: See `H2cornServer`.

        Raises:
            ConfigurationError: grpc.aio cannot have the address.
        """
        tls = None if listener.family == socket.AF_UNIX else self._tls
        limits, overlap = self._limits, self._settings.tls_overlap
        server: Server
        if self._settings.asgi_server == "h2corn":
            server = H2cornServer(
                application, listener, limits, tls, is_endless=is_endless, end_streams=end_streams, overlap=overlap
            )
        else:
            # The default starts without them.
            from tidegate.transports.fallback import GrpcAioServer, UvicornServer

            if add_grpc is None:
                server = UvicornServer(application, listener, limits, tls, is_endless=is_endless)
            else:
                max_metadata = self._settings.max_head_kb << 10
                server = GrpcAioServer(add_grpc, listener, limits, tls, max_metadata=max_metadata)
        self._servers.append(server)

    async def start(self) -> None:
        """Accept connections."""
        for server in self._servers:
            await server.start()

    async def renew(self) -> None:
        """Read the certificate again, for connections from now on; where it cannot be used, the former one stays.

        Nothing happens where its files have not changed, for a renewal ends WebSockets.
        """
        async with self._renewing:
            if self._tls is None or _stamps(self._tls) == self._stamps:
                return
            try:
                _check(self._settings, self._tls)
                stamps = self._tls.stamps()
                for server in self._servers:
                    await server.renew()
            except (ConfigurationError, OSError, ValueError) as error:
                log.error("the certificate is not renewed, the former one stays: %s", error)  # noqa: TRY400 - a file's fault
                return
            self._stamps = stamps
        log.info("the certificate was read again, for new connections", extra={"file": str(self._tls.certificate)})

    async def renew_when_changed(self, pause: Callable[[], Awaitable[None]] | None = None) -> None:
        """Renew whenever one of the files has changed; never ends. ``pause`` waits until it is time to look again."""
        pause = pause or _pause
        while True:
            await pause()
            if self._tls is not None and _stamps(self._tls) not in {None, self._stamps}:
                await self.renew()

    async def stop(self, grace: float) -> bool:
        """Accept no more, let requests finish for ``grace`` seconds, then cancel them.

        Returns:
            Whether all servers have ended: see `H2cornServer.stop`.
        """
        return all(await asyncio.gather(*(server.stop(grace) for server in self._servers)))


def _tell_without_effect(settings: Settings) -> None:
    from tidegate.transports.fallback import WITHOUT_EFFECT

    if given := [flag(name) for name in WITHOUT_EFFECT if name in settings.model_fields_set]:
        log.warning("without effect with --asgi-server uvicorn: %s", ", ".join(given))


def limits_of(settings: Settings, num_listeners: int) -> Limits:
    """Return what clients may take of each of a process's servers."""
    message = int(settings.max_message_mb * MIB)
    head = 4 * (max(settings.max_head_kb, settings.max_url_kb) << 10)
    return Limits(
        # Those of URL, head and body are above the application's own, which it tells with a problem document.
        url=head,
        head=head,
        body=2 * message + MIB,
        body_idle=2 * settings.body_timeout,
        message=message,
        connections=connections_within(settings.max_connections, num_listeners),
        streams=settings.max_streams,
        window=settings.stream_window_kb << 10,
        handshake=settings.handshake_timeout,
        idle=settings.keep_alive,
        stalled=settings.stall_timeout,
        ping=settings.ping_interval,
    )


def tls_files(settings: Settings) -> TlsFiles | None:
    """Return the files of the settings, None where these want no TLS.

    Raises:
        ConfigurationError: One is missing or cannot be used.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        given = next((name for name in ("tls_cert", "tls_key", "tls_client_ca") if getattr(settings, name)), None)
        if given is None:
            return None
        raise ConfigurationError(f"{flag(given)}: TLS needs both --tls-cert and --tls-key")
    files = TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    _check(settings, files)
    return files


def _check(settings: Settings, files: TlsFiles) -> None:
    """Raise what is wrong with the files, by OpenSSL's judgement: h2corn's own is the same and says less."""
    for name in ("tls_cert", "tls_key", "tls_client_ca"):
        path: Path | None = getattr(settings, name)
        if path is not None:
            try:
                path.read_bytes()
            except OSError as error:
                raise ConfigurationError(f"{flag(name)}: {path}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "no certificate and key in PEM, or the key has a password"
        raise ConfigurationError(
            f"--tls-cert: {files.certificate} with the key {files.key}: {reason.replace('_', ' ').lower()}"
        ) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError:
            raise ConfigurationError(f"--tls-client-ca: {files.client_ca}: no certificates in PEM") from None


def _stamps(files: TlsFiles) -> object:
    try:
        return files.stamps()
    except OSError:  # it is being replaced
        return None


async def _pause() -> None:
    await asyncio.sleep(_WATCH_SECONDS)
