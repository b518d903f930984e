"""``tidegate bench``: puts load on a running server and reports its rates and latencies."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tidegate.api import ModelInfo
from tidegate.cli.connection import DEFAULT_SERVER, Server, connected, reaches_grpc
from tidegate.cli.output import AsJson, print_json, print_table
from tidegate.errors import ConfigurationError
from tidegate.loadgen.http1 import HttpServer
from tidegate.loadgen.inputs import InputSource, source_for
from tidegate.loadgen.load import Arrivals, Interface, Load, Mix
from tidegate.loadgen.measure import Measurement, Progress, Target, measure
from tidegate.loadgen.record import LoadRecord
from tidegate.loadgen.report import LATENCY_COLUMNS, as_json, as_text, draw_latency, latency_rows, require_matplotlib

HTTP_PORT = 8080
MAX_SELECTED = 500
"""Number of connections up to which select(2) is cheap; its limit is 1024."""
LARGEST_MESSAGE = 256
"""Default number of sessions in a columnar message, at most."""
INTERRUPTED = 130

Loop = Callable[[], asyncio.AbstractEventLoop]


@reaches_grpc
def bench(  # noqa: PLR0913, PLR0917 - one parameter per option
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    interface: Annotated[
        Interface, typer.Option("--interface", "-i", help="Interface that requests use.")
    ] = Interface.STREAM,
    sessions: Annotated[
        int, typer.Option(min=1, help="Number of sessions; for predict and generate, of callers.")
    ] = 64,
    chunk: Annotated[
        str, typer.Option(metavar="MIX", help="Steps in a request: 64, a range 16-512, or sizes by weight 1:99,1024:1.")
    ] = "1",
    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests per second in total, sent by the clock.", show_default="each sender waits for its reply"
        ),
    ] = None,
    arrivals: Annotated[
        Arrivals | None, typer.Option(help="Spacing of the requests of --rate.", show_default="even")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Sessions in a columnar message, or sequences in a predict call.",
            show_default="columnar 256, predict 1",
        ),
    ] = None,
    prompt_sessions: Annotated[int, typer.Option(min=0, help="Number of additional senders of long chunks.")] = 0,
    prompt_length: Annotated[
        int | None, typer.Option(min=1, help="Steps in each long chunk.", show_default="1024")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens in a generation.", show_default="64")] = None,
    top: Annotated[int, typer.Option(min=0, help="Candidates in the reply to each step.")] = 1,
    seconds: Annotated[float, typer.Option(help="Seconds to measure.")] = 10,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds of load before the measurement.")] = 1,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests after which to stop, warm-up included.")
    ] = 10_000_000,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take before it fails.")] = 60,
    seed: Annotated[int, typer.Option(help="Random seed of inputs, chunk sizes and arrivals.")] = 0,
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="Number of tokens to draw from.", show_default="the model's")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Version of the model.", show_default="highest")] = None,
    server: Server = DEFAULT_SERVER,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="HTTP address of the server.",
            show_default="--server's URL or socket, else its host at port 8080",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the latencies into this PNG file.")] = None,
    as_json_document: AsJson = False,
) -> None:
    """Put load on a running server; report rates, exact latency percentiles, rows per run and errors.

    Ctrl-C stops early and prints the figures so far.
    """
    _refuse_ignored("--arrivals", arrivals, "--rate", is_there=rate is not None)
    _refuse_ignored("--prompt-length", prompt_length, "--prompt-sessions", is_there=prompt_sessions > 0)
    _refuse_ignored("--max-tokens", max_tokens, "--interface generate", is_there=interface is Interface.GENERATE)
    load = Load(
        model=model,
        version=version,
        interface=interface,
        sessions=sessions,
        batch=batch or (min(sessions, LARGEST_MESSAGE) if interface is Interface.COLUMNAR else 1),
        mix=Mix.parse(chunk),
        rate=rate,
        arrivals=arrivals or Arrivals.EVEN,
        prompt_sessions=prompt_sessions,
        prompt_length=prompt_length or 1024,
        max_tokens=max_tokens or 64,
        top=top,
        seconds=seconds,
        warmup=warmup,
        max_requests=max_requests,
        timeout=timeout,
        seed=seed,
    )
    if plot is not None:
        require_matplotlib()
    with connected(server) as client:
        info = client.model(model, version)
    source = source_for(info, load.longest, seed, vocabulary)
    target = Target(server.address, server.how, _http(http, server), info)
    seen, was_interrupted = _run(load, target, source, is_quiet=as_json_document)
    _print(load, info, seen, plot, is_json=as_json_document)
    if was_interrupted:
        raise typer.Exit(INTERRUPTED)


def _refuse_ignored(option: str, given: object, needed: str, *, is_there: bool) -> None:
    if given is not None and not is_there:
        raise ConfigurationError(f"{option} means nothing without {needed}")


def _http(given: str | None, server: Server) -> HttpServer:
    """Return the server's HTTP address: the given one, else the same URL or socket, else port 8080 of the same host."""
    endpoint = server.plan("--server").endpoint
    if given is not None:
        server = replace(server, address=given)
    elif endpoint.host and "://" not in server.address:
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        server = replace(server, address=f"{host}:{HTTP_PORT}")
    plan = server.plan("--http")
    fields = tuple((name, str(value)) for name, value in plan.metadata(""))
    return HttpServer(plan.endpoint, None if plan.tls is None else plan.tls.context(), fields)


def _run(load: Load, target: Target, source: InputSource, *, is_quiet: bool) -> tuple[Measurement, bool]:
    """Return the measurement, and whether the user interrupted it."""

    async def measure_until_stopped() -> tuple[Measurement, bool]:
        stop = asyncio.Event()
        with _interruptible(stop), _progress(load, is_quiet=is_quiet) as progress:
            return await measure(load, target, source, stop, progress), stop.is_set()

    with asyncio.Runner(loop_factory=_loop_factory(load)) as runner:
        return runner.run(measure_until_stopped())


@contextlib.contextmanager
def _interruptible(stop: asyncio.Event) -> Iterator[None]:
    """Let the first Ctrl-C set ``stop``. A second one has its usual effect."""
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


def _loop_factory(load: Load) -> Loop | None:
    """Return uvloop; with ``rate`` one on select, whose timers are finer than the milliseconds of uvloop and epoll."""
    if load.rate is not None and load.num_connections <= MAX_SELECTED:
        return lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        import uvloop
    except ImportError:  # there is none for every system
        return None
    return uvloop.new_event_loop


@contextlib.contextmanager
def _progress(load: Load, *, is_quiet: bool) -> Iterator[Progress | None]:
    """Show a progress bar on standard error, if that is a terminal."""
    if is_quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("warm-up", total=load.warmup + load.seconds)

        def tell(passed: float, record: LoadRecord) -> None:
            words = (
                f"{record.num_requests} requests, {record.errors.total()} errors" if record.num_requests else "warm-up"
            )
            bar.update(task, completed=passed, description=words, refresh=True)

        yield tell


def _print(load: Load, info: ModelInfo, seen: Measurement, plot: Path | None, *, is_json: bool) -> None:
    if is_json:
        print_json(as_json(load, info, seen))
    else:
        print_table(LATENCY_COLUMNS, latency_rows(seen), "latencies in milliseconds")
        typer.echo(as_text(load, info, seen))
    if plot is not None:
        title = f"{info.name}/{info.version} over {load.interface}: {load.sessions} at once, latencies of {{}} requests"
        draw_latency(plot, seen.record, title.format(sum(map(len, seen.record.samples.values()))))
