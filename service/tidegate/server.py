"""One process from start to stop: binds, loads, serves, drains.

This module owns the signals, nobody else handles them: SIGTERM and SIGINT begin the drain, a second one cuts it short,
SIGHUP reads the bundles again. It knows in which order the parts start and stop, and nothing of what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator

import structlog
import uvicorn
from fastapi import FastAPI

from tidegate.config import Address, Settings, parse_address
from tidegate.engine.runner import check_provider
from tidegate.errors import ConfigurationError, TidegateError
from tidegate.ingress.grpc.server import GrpcServer, create_server
from tidegate.ingress.http.app import create_app
from tidegate.observe.logs import configure_logs
from tidegate.service import Service

log = structlog.stdlib.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigurationError: It cannot start: a port in use, a provider or directory that is not there.
    """
    configure_logs(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # there is none for every system
        return None
    return uvloop.new_event_loop


async def serve(settings: Settings) -> None:
    """Bind first, so that a port in use is told before any model is read; then load, start the ingresses, and serve."""
    if not settings.bundles.is_dir():
        raise ConfigurationError(f"--bundles: {settings.bundles} is not a directory")
    check_provider(settings.provider)
    signals = Signals()
    with signals.handled(), listen(settings.http) as listener:
        service = Service(settings)
        grpc = create_server(service, settings.grpc, settings.native_grpc)
        await service.start()
        _settle_memory()
        try:
            await _serve_until_told(service, grpc, listener, signals)
        finally:
            await service.stop()
    log.info("stopped")


def _settle_memory() -> None:
    """Exempt what is loaded by now from garbage collection: a full one would stall every stream for some 50 ms."""
    gc.freeze()
    gc.enable()


async def _serve_until_told(service: Service, grpc: GrpcServer, listener: socket.socket, signals: Signals) -> None:
    app = create_app(service)
    http = HttpServer(app, service.settings)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(http.serve([listener]), name="tidegate-http")
        reloading = tasks.create_task(_reload_when_told(service, signals.reload), name="tidegate-reload")
        await http.listening.wait()
        await grpc.start()
        _log_ready(service, listener, grpc)
        await signals.stop.wait()
        reloading.cancel()
        log.info("draining", seconds=service.settings.drain_timeout)
        drain = _drain([service.drain(), app.state.streams.drain(), grpc.drain()], http, serving)
        if not await _is_done(drain, service.settings.drain_timeout, signals.hurry):
            log.warning("drain cut short: what still ran is cancelled")
            serving.cancel()
        await grpc.stop()


async def _drain(parts: Iterable[Awaitable[None]], http: HttpServer, serving: asyncio.Task[None]) -> None:
    """Let all parts finish what runs; HTTP goes last: until then /readyz tells that new work should go elsewhere."""
    await asyncio.gather(*parts)
    http.should_exit = True
    await asyncio.shield(serving)


async def _is_done(work: Coroutine[None, None, None], seconds: float, hurry: asyncio.Event) -> bool:
    """Whether ``work`` came to its end within ``seconds`` and before ``hurry``; else it is cancelled."""
    working, hurried = asyncio.ensure_future(work), asyncio.ensure_future(hurry.wait())
    done, unfinished = await asyncio.wait({working, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in unfinished:
        task.cancel()
    await asyncio.gather(*unfinished, return_exceptions=True)
    return working in done


async def _reload_when_told(service: Service, told: asyncio.Event) -> None:
    while True:
        await told.wait()
        told.clear()
        try:
            report = await service.reload()
        except TidegateError as error:
            log.error("reload failed", error=error.message)  # noqa: TRY400 - an error of theirs, told without a stack
        except Exception as error:
            log.exception("reload failed", error=str(error))
        else:
            log.info("reloaded", loaded=report.loaded, removed=report.removed, refused=len(report.refused))


def _log_ready(service: Service, listener: socket.socket, grpc: GrpcServer) -> None:
    host, port = listener.getsockname()[:2]
    models = [f"{model.name}/{model.version}" for model in service.models(limit=0, page_token="").models]
    settings = service.settings
    where = {"http": f"http://{Address(host, port)}", "grpc": _with_port(settings.grpc, grpc.port)}
    if settings.native_grpc is not None and grpc.native_port is not None:
        where["native_grpc"] = _with_port(settings.native_grpc, grpc.native_port)
    log.info("ready", **where, models=models)


def _with_port(address: str, port: int) -> str:
    return str(Address(parse_address(address).host, port))


class Signals:
    """What the process was told: to ``stop``, then to ``hurry``; and, any time, to ``reload``."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.reload = asyncio.Event()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the process's signals inside the block."""
        handlers = {signal.SIGTERM: self.end, signal.SIGINT: self.end, signal.SIGHUP: self.reload.set}
        loop = asyncio.get_running_loop()
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def end(self) -> None:
        """The first time stop, the second time hurry."""
        (self.hurry if self.stop.is_set() else self.stop).set()


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers; ``listening`` is set once it accepts connections."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="websockets-sansio",
                ws_max_size=int(settings.max_message_mb * 2**20),
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                # Longer than the usual idle time of proxies and client pools, or they would send into a closing socket.
                timeout_keep_alive=75,
            )
        )
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(text: str) -> socket.socket:
    """Return a listening socket at ``HOST:PORT``; who connects waits until the server accepts.

    Raises:
        ConfigurationError: The address cannot be had.
    """
    address = parse_address(text)
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        raise ConfigurationError(f"--http: {address}: {(error.strerror or str(error)).lower()}") from None
