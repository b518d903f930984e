"""``tidegate top``: the live figures of a running server in a terminal, for who has no dashboards."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import httpx
import typer

from tidegate.commands.output import AsJson, print_json
from tidegate.errors import ConfigurationError
from tidegate.top.scrape import Reader
from tidegate.top.screen import screen
from tidegate.top.view import View, view

DEFAULT_HTTP = "127.0.0.1:8080"
AWAY = "no answer: is it running?"

Server = Annotated[
    str, typer.Option("--http", envvar="TIDEGATE_SERVER_HTTP", metavar="HOST:PORT", help="Server's HTTP.")
]


def top(
    http: Server = DEFAULT_HTTP,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two readings.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print the figures of one interval, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the figures of a running server until Ctrl-C: rates between two readings of its /metrics."""
    url = http if "://" in http else f"http://{http}"
    with httpx.Client(base_url=url) as client, suppress(KeyboardInterrupt):
        views = watch(Reader(client, time.monotonic), lambda: time.sleep(interval))
        if once or as_json or not sys.stdout.isatty():
            _print_one(views, url, as_json=as_json)
        else:
            _show(views, url)


def watch(reader: Reader, pause: Callable[[], None]) -> Iterator[View | None]:
    """Yield a view a reading, from the second on; None while nobody answers. It goes on for ever."""
    before = None
    while True:
        now = reader.read()
        if now is None:
            yield None
        elif before is not None:
            yield view(before, now)
        before = now or before
        pause()


def _print_one(views: Iterator[View | None], url: str, *, as_json: bool) -> None:
    found = next(views)
    if found is None:
        raise ConfigurationError(f"no server answers at {url}: start one with `tidegate serve`, or name it with --http")
    if as_json:
        print_json(asdict(found))
    else:
        from rich.console import Console

        Console().print(screen(url, found))


def _show(views: Iterator[View | None], url: str) -> None:
    from rich.live import Live

    last = None
    with Live(screen(url, None), screen=True, auto_refresh=False) as live:
        for found in views:
            last = found or last
            live.update(screen(url, last, AWAY if found is None else None), refresh=True)
