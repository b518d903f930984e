"""``--asgi-server uvicorn``: what stands in for h2corn, through public interfaces only.

uvicorn serves the ASGI application over HTTP/1.1, and grpc.aio the same servicers over HTTP/2.
docs/configuration.md tells what these two lack.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import uvicorn
from grpc import aio

from tidegate.config import UNIX
from tidegate.errors import ConfigurationError
from tidegate.transports.asgi import Application, Guard, Receive, Scope, Send, cancel_on_disconnect
from tidegate.transports.grpc.adapter import PROBES
from tidegate.transports.listeners import url_of

if TYPE_CHECKING:
    from tidegate.transports.h2corn_server import Limits, TlsFiles

WITHOUT_EFFECT = ("stream_window_kb", "tls_overlap")
"""Settings that neither server has anything for."""

_LAST_SECONDS = 0.25


class UvicornServer:
    """Serves one listening socket over HTTP/1.1 and WebSockets, as `H2cornServer` does it. uvicorn closes the socket.

    Args:
        application: Answers requests.
        listener: Listens, and does not block.
        limits: For its clients.
        tls: None serves plain text.
        is_endless: Whether a request may go on for ever, and so is not waited for when the server stops.
    """

    def __init__(
        self,
        application: Application,
        listener: socket.socket,
        limits: Limits,
        tls: TlsFiles | None = None,
        *,
        is_endless: Callable[[Scope], bool] = lambda _: False,
    ) -> None:
        self._guard = Guard(application)
        self._cancelling = cancel_on_disconnect(self._guard)
        self._listener = listener
        self._limits = limits
        self._tls = tls
        self._is_endless = is_endless
        self._context: ssl.SSLContext | None = None
        self._server: _UvicornServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections.

        Raises:
            OSError: The certificate, its key or the signers' certificates cannot be used.
        """
        config = self._loaded_config()
        self._context = config.ssl
        if config.ssl is not None:
            # Each handshake asks for the context: a renewed one serves new connections, and open ones keep theirs.
            config.ssl.sni_callback = self._choose_context
        self._server = _UvicornServer(config)
        self._serving = asyncio.create_task(self._server.serve([self._listener]), name="tidegate-uvicorn")

    async def renew(self) -> None:
        """Read the TLS files again, for connections that come from now on. Open ones go on as they are.

        Raises:
            OSError: As of `start`; connections are accepted as before.
        """
        if self._tls is not None:
            self._context = self._loaded_config().ssl

    async def stop(self, grace: float) -> bool:
        """Accept no more, let what runs finish for ``grace`` seconds, then cancel it; return that all has ended."""
        if self._server is None or self._serving is None:
            return True
        self._server.should_exit = True
        for task, scope in tuple(self._guard.running.items()):
            if self._is_endless(scope):
                self._guard.cancel(task)
        await asyncio.wait({self._serving}, timeout=grace)
        if not self._serving.done():
            for task in tuple(self._guard.running):
                self._guard.cancel(task)
            await asyncio.wait({self._serving}, timeout=_LAST_SECONDS)
            self._serving.cancel()  # it would wait for clients that do not read
            await asyncio.wait({self._serving})
        return True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        # uvicorn would log a cancelled request as an error: its client has left.
        with contextlib.suppress(asyncio.CancelledError):
            await self._cancelling(scope, receive, send)

    def _choose_context(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._context or context

    def _loaded_config(self) -> uvicorn.Config:
        limits, tls = self._limits, self._tls
        config = uvicorn.Config(
            self._answer,
            http="h11",  # bounds heads, and keeps the body of a request that offers to speak h2c
            ws="websockets-sansio",
            ws_max_size=limits.message,
            ws_ping_interval=limits.ping,
            ws_ping_timeout=limits.ping,
            ws_per_message_deflate=False,
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,  # whom to trust is the application's to know
            access_log=False,
            log_config=None,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=math.ceil(limits.idle),
            h11_max_incomplete_event_size=limits.head,
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
            ssl_ca_certs=None if tls is None or tls.client_ca is None else str(tls.client_ca),
            ssl_cert_reqs=ssl.CERT_NONE if tls is None or tls.client_ca is None else ssl.CERT_REQUIRED,
        )
        config.load()
        return config


class _UvicornServer(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class GrpcAioServer:
    """Serves gRPC, and nothing else, by grpc.aio at the address of a listening socket, which it takes over.

    gRPC takes no sockets from others: the listener stops listening, and gRPC listens in its place.

    Args:
        add_to: Adds the services to a server.
        listener: Listens; its caller closes it.
        limits: For its clients.
        tls: None serves plain text.
        max_metadata: Bytes of a call's metadata at most.

    Raises:
        ConfigurationError: Somebody else has taken the address meanwhile.
    """

    def __init__(
        self,
        add_to: Callable[[Any], None],
        listener: socket.socket,
        limits: Limits,
        tls: TlsFiles | None = None,
        *,
        max_metadata: int = 64 << 10,
    ) -> None:
        self._tls = tls
        self._renewed: grpc.ServerCertificateConfiguration | None = None
        self._calls = _RunningCalls()
        is_shared = listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        self._server = aio.server(interceptors=[self._calls], options=_options(limits, max_metadata, is_shared))
        add_to(self._server)
        self._take_over(listener)

    async def start(self) -> None:
        """Accept connections."""
        await self._server.start()

    async def renew(self) -> None:
        """Read the TLS files again, for connections that come from now on. Open ones go on as they are.

        Raises:
            OSError: One cannot be read; connections are accepted as before.
        """
        if self._tls is not None:
            self._renewed = _certificates(self._tls)

    async def stop(self, grace: float) -> bool:
        """Accept no more, let calls finish for ``grace`` seconds, then cancel them; return that all has ended."""
        # Two stops at once, the one in the other's grace, once crashed grpc.aio where no call was running.
        stopping = asyncio.create_task(self._server.stop(grace)) if self._calls.running else None
        if stopping is not None:
            await asyncio.wait(set(self._calls.running), timeout=grace)
        await self._server.stop(None)  # health and reflection may go on for ever
        if stopping is not None:
            await stopping
        return True

    def _take_over(self, listener: socket.socket) -> None:
        address = url_of(listener).removeprefix("http://")
        mode = Path(address.removeprefix(UNIX)).stat().st_mode if address.startswith(UNIX) else 0o600
        listener.shutdown(socket.SHUT_RDWR)
        if address.startswith("unix-abstract:"):
            listener.close()  # its name is taken as long as it is open
        former = os.umask(~mode & 0o777)
        try:
            if self._tls is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, self._credentials(self._tls))
        except RuntimeError as error:
            raise ConfigurationError(f"gRPC cannot listen on {address}: {error}") from None
        finally:
            os.umask(former)

    def _credentials(self, tls: TlsFiles) -> grpc.ServerCredentials:
        def fetch() -> grpc.ServerCertificateConfiguration | None:
            renewed, self._renewed = self._renewed, None
            return renewed

        is_required = tls.client_ca is not None
        fetching: Any = fetch  # the published stub forgets that None keeps what there is
        return grpc.dynamic_ssl_server_credentials(_certificates(tls), fetching, is_required)


class _RunningCalls(aio.ServerInterceptor):  # type: ignore[type-arg] # at run time it takes none
    """Knows the tasks of the calls that run; not of those that may go on for ever."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[Any]] = set()
        self._endless = tuple(f"/{service}/" for service in PROBES)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        task = asyncio.current_task()  # the one that will run the handler
        if task is not None and not handler_call_details.method.startswith(self._endless):
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        return await continuation(handler_call_details)


def _certificates(tls: TlsFiles) -> grpc.ServerCertificateConfiguration:
    signers = None if tls.client_ca is None else tls.client_ca.read_bytes()
    return grpc.ssl_server_certificate_configuration([(tls.key.read_bytes(), tls.certificate.read_bytes())], signers)


def _options(limits: Limits, max_metadata: int, is_shared: int) -> list[tuple[str, int]]:
    """Options of gRPC's core (grpc/impl/channel_arg_names.h)."""
    return [
        ("grpc.max_receive_message_length", limits.message),
        ("grpc.max_send_message_length", limits.message),
        ("grpc.max_metadata_size", max_metadata),
        ("grpc.absolute_max_metadata_size", max_metadata),
        ("grpc.max_concurrent_streams", limits.streams),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_connection_idle_ms", round(limits.idle * 1000)),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake * 1000)),
        # With SO_REUSEPORT, gRPC's default, a second server on the port would take half of the calls unnoticed.
        ("grpc.so_reuseport", is_shared),
        # Find out within a minute that a client's machine is gone.
        ("grpc.keepalive_time_ms", 40_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # A client may ask as often as it likes whether the server is there, over streams that are idle too.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
    ]
