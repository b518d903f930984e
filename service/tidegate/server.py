"""One process from start to stop: binds, loads, serves, drains. It is the whole server, or one of its workers.

SIGTERM and SIGINT begin the drain, a second one cuts it short, SIGHUP reads the bundles again. This module knows in
which order the parts start and stop, and nothing of what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn
from fastapi import FastAPI

from tidegate import open_files
from tidegate.config import Address, Settings, parse_address
from tidegate.engine.runner import check_provider
from tidegate.errors import ConfigurationError, TidegateError
from tidegate.memory import give_back_forever
from tidegate.observe.asked import make_requests, make_tracing
from tidegate.observe.detail import DetailedRequests
from tidegate.observe.metrics import Figures
from tidegate.service import Service
from tidegate.signals import Signals
from tidegate.sockets import listen
from tidegate.transports.grpc.server import GrpcServer, create_server
from tidegate.transports.http.app import create_app
from tidegate.transports.http.steps import StepProtocol
from tidegate.transports.oip.adapter import ServiceCore
from tidegate.transports.oip.http import routes
from tidegate.transports.oip.inference import Inference
from tidegate.transports.oip.routing import RoutedInference
from tidegate.workers.seat import Seat

if TYPE_CHECKING:
    from tidegate.workers.figures import WorkerFigures

log = structlog.stdlib.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigurationError: It cannot start: a port in use, a provider or directory that is not there.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(settings, Signals(), lambda facts: log.info("ready", **facts)))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # there is none for every system
        return None
    return uvloop.new_event_loop


_LAST_SECONDS = 0.25
"""For the last answers of a server that was told to hurry."""

Facts = dict[str, Any]
"""Where a server answers (``http``, ``grpc``), and its ``models``."""


async def serve(
    settings: Settings, signals: Signals, announce: Callable[[Facts], None], seat: Seat | None = None
) -> None:
    """Bind first, so that a port in use is told before any model is read; then load, start the transports, and serve.

    ``announce`` is called once, when both interfaces answer. A worker has its ``seat``.
    """
    _check_directory(settings.bundles)
    check_provider(settings.provider)
    with signals.handled(), listen("http", settings.http, is_shared=settings.workers > 1) as listener:
        local = Service(settings)
        service = local if seat is None else _routed(local, seat)
        own = Inference(ServiceCore(local, service.reload))
        inference = own if seat is None else RoutedInference(ServiceCore(local, service.reload), own, seat)
        tracing = make_tracing(settings, local.clock)
        requests = make_requests(settings, tracing, local.clock)
        figures = Figures(local, requests)
        shared = None if seat is None else _shared(seat, figures)
        grpc = [create_server(service, settings.grpc, settings.native_grpc, inference, requests)]
        if seat is not None and shared is not None:
            # Fellows come in here. They have found the owner and counted the request: nothing is passed on twice.
            traced = None if tracing is None else DetailedRequests(local.clock, None, tracing)
            address = seat.address(seat.number)
            grpc.append(create_server(local, address, inference=own, requests=traced, more=[shared.handler()]))
        await local.start()
        _settle_memory()
        try:
            app = create_app(service, requests, shared or figures)
            app.router.routes.extend(routes(inference))
            await _serve_until_told(local, app, grpc, listener, signals, announce, service.abort)
        finally:
            await inference.stop()
            await service.stop()
            if shared is not None:
                await shared.stop()
            if tracing is not None:
                await tracing.stop()
    log.info("stopped")


def _check_directory(bundles: Path) -> None:
    try:
        is_directory = bundles.is_dir()
    except OSError as error:  # a folder above it may not be entered
        raise ConfigurationError(f"--bundles: {bundles}: {error.strerror}") from None
    if not is_directory:
        raise ConfigurationError(f"--bundles: {bundles} is not a directory")


def _routed(local: Service, seat: Seat) -> Service:
    # A server of one process starts without the client by which workers ask each other.
    from tidegate.workers.routing import RoutedService

    return RoutedService(local, seat).as_service()


def _shared(seat: Seat, figures: Figures) -> WorkerFigures:
    from tidegate.workers.figures import WorkerFigures

    return WorkerFigures(seat, figures.all)


def _settle_memory() -> None:
    """Exempt what is loaded by now from garbage collection: a full one would stall every stream for some 50 ms.

    Steps leave no cycles, so young objects are looked through after 10,000 and not, as by default, 700: 4 % of a unary
    step's time.
    """
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


async def _serve_until_told(
    service: Service,
    app: FastAPI,
    grpc: Sequence[GrpcServer],
    listener: socket.socket,
    signals: Signals,
    announce: Callable[[Facts], None],
    abort: Callable[[], Awaitable[None]],
) -> None:
    http = HttpServer(app, service.settings)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(http.serve([listener]), name="tidegate-http")
        reloading = tasks.create_task(_reload_when_told(service, signals.reload), name="tidegate-reload")
        await http.listening.wait()
        for server in grpc:
            await server.start()
        telling = tasks.create_task(_tell_readiness(service, grpc), name="tidegate-readiness")
        watching = tasks.create_task(open_files.watch(), name="tidegate-open-files")
        trimming = tasks.create_task(give_back_forever(), name="tidegate-memory")
        announce(_facts(service, listener, grpc[0]))
        await signals.stop.wait()
        for task in (reloading, telling, watching, trimming):
            task.cancel()
        log.info("draining", seconds=service.settings.drain_timeout)
        parts = [service.drain(), app.state.streams.drain(), *(server.drain() for server in grpc)]
        if not await _is_done(_drain(parts, http, serving), service.settings.drain_timeout, signals.hurry):
            log.warning("drain cut short: what still ran is cancelled")
            await _tell_last(abort, http, serving, grpc)
        await asyncio.gather(*(server.stop() for server in grpc))


async def _tell_last(
    abort: Callable[[], Awaitable[None]], http: HttpServer, serving: asyncio.Task[None], grpc: Sequence[GrpcServer]
) -> None:
    """Answer what still runs, with UNAVAILABLE, rather than let connections break; whoever does not listen is left."""
    await abort()
    http.should_exit = True
    await asyncio.gather(
        *(server.stop(_LAST_SECONDS) for server in grpc), asyncio.wait([serving], timeout=_LAST_SECONDS)
    )
    serving.cancel()


async def _tell_readiness(service: Service, grpc: Sequence[GrpcServer]) -> None:
    """Keep grpc.health.v1 in step with the store, which may go and come back."""
    while True:
        await service.readiness_changed()
        for server in grpc:
            await server.tell_health()


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
        except Exception:
            log.exception("reload failed")
        else:
            log.info("reloaded", loaded=report.loaded, removed=report.removed, refused=len(report.refused))


def _facts(service: Service, listener: socket.socket, grpc: GrpcServer) -> Facts:
    host, port = listener.getsockname()[:2]
    settings = service.settings
    facts: Facts = {"http": f"http://{Address(host, port)}", "grpc": _with_port(settings.grpc, grpc.port)}
    if settings.native_grpc is not None and grpc.native_port is not None:
        facts["native_grpc"] = _with_port(settings.native_grpc, grpc.native_port)
    models = service.models(limit=0, page_token="").models
    return facts | {"models": [f"{model.name}/{model.version}" for model in models]}


def _with_port(address: str, port: int) -> str:
    return str(Address(parse_address(address).host, port))


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers; ``listening`` is set once it accepts connections."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=StepProtocol,
                ws="websockets-sansio",
                ws_max_size=int(settings.max_message_mb * 2**20),
                lifespan="off",
                proxy_headers=False,  # nothing here asks who the client is
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
