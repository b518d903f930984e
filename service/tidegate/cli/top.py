"""``tidegate top``: live figures of a running server in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import httpx
import typer

from tidegate.cli.connection import Server, reaches_a_server
from tidegate.cli.output import AsJson, print_json
from tidegate.client.channel import ChannelPlan
from tidegate.client.endpoint import Endpoint
from tidegate.client.tls import NO_SERVER, why_not_connected
from tidegate.errors import ConfigurationError
from tidegate.top.scrape import Reader
from tidegate.top.view import View, screen, view

DEFAULT_HTTP = Server("127.0.0.1:8080")
AWAY = "no answer: is it running?"


@reaches_a_server("TIDEGATE_SERVER_HTTP", "HTTP address of the server")
def top(
    http: Server = DEFAULT_HTTP,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two readings of /metrics.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print the figures of one interval and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show live figures of a running server until Ctrl-C. Rates are between two readings of its /metrics."""
    plan = http.plan("--http")
    with _http_client(plan, is_proxied=not http.no_proxy) as client, suppress(KeyboardInterrupt):
        reader = Reader(client, time.monotonic)
        views = watch(reader, lambda: time.sleep(interval))
        if once or as_json or not sys.stdout.isatty():
            _print_one(views, plan.endpoint, reader, as_json=as_json)
        else:
            _show(views, str(plan.endpoint))


def _http_client(plan: ChannelPlan, *, is_proxied: bool) -> httpx.Client:
    endpoint, verify = plan.endpoint, True if plan.tls is None else plan.tls.context()
    transport = None if endpoint.path is None else httpx.HTTPTransport(uds=endpoint.path)
    fields = {name: str(value) for name, value in plan.metadata("")}
    try:
        return httpx.Client(
            base_url=endpoint.url(),
            verify=verify,
            headers=fields,
            transport=transport,
            trust_env=is_proxied and not endpoint.is_here,
        )
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"the environment names a proxy that cannot be used ({error}): see --no-proxy"
        ) from None


def watch(reader: Reader, pause: Callable[[], None]) -> Iterator[View | None]:
    """Yield a view for each reading from the second on, without end; None while the server does not answer."""
    before = None
    while True:
        now = reader.read()
        if now is None:
            yield None
        elif before is not None:
            yield view(before, now)
        before = now or before
        pause()


def _print_one(views: Iterator[View | None], endpoint: Endpoint, reader: Reader, *, as_json: bool) -> None:
    found = next(views)
    if found is None:
        error = why_not_connected(endpoint, reader.failure)
        if not error.message.startswith(NO_SERVER):
            raise ConfigurationError(error.message)
        raise ConfigurationError(f"{error.message}: start one with `tidegate serve`, or name it with --http")
    if as_json:
        print_json(asdict(found))
    else:
        from rich.console import Console

        Console().print(screen(str(endpoint), found))


def _show(views: Iterator[View | None], url: str) -> None:
    from rich.live import Live

    last = None
    with Live(screen(url, None), screen=True, auto_refresh=False) as live:
        for found in views:
            last = found or last
            live.update(screen(url, last, AWAY if found is None else None), refresh=True)
