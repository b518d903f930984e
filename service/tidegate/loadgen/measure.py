"""One measurement from end to end: open sessions, try once, drive, count, close."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from tidegate.api import ModelInfo
from tidegate.client import AsyncClient, AsyncSession, Retry
from tidegate.client.channel import ConnectionOptions
from tidegate.errors import TidegateError
from tidegate.loadgen.counts import ServerCounts, Usage, read_counts, read_usage
from tidegate.loadgen.drive import Drive, RealSendClock, SendClock, Sender, SendLane
from tidegate.loadgen.http1 import HttpConnection, HttpServer
from tidegate.loadgen.inputs import InputSource
from tidegate.loadgen.load import Load, Mix, due_times
from tidegate.loadgen.record import LoadRecord
from tidegate.loadgen.senders import SenderContext, make_sender

AT_ONCE = 64
"""Sessions that are opened or closed at a time."""
ABANDONED = 600.0
"""Seconds idle after which the server ends our sessions, should we not come to close them."""
START = 0.05
"""Seconds between now and the first due time of an open loop, so that every sender is there for it."""


class Target(NamedTuple):
    """A server and the model to load: the address of gRPC and how it is reached, and HTTP's."""

    grpc: str
    how: ConnectionOptions
    http: HttpServer
    model: ModelInfo


class Measurement(NamedTuple):
    """What was seen: the record, this process's use of the cores, the server's own counts where they could be had."""

    record: LoadRecord
    client: Usage
    server: ServerCounts | None


Progress = Callable[[float, LoadRecord], None]
"""Told now and then: seconds that have passed of warm-up and measurement, and the record so far."""


async def measure(
    load: Load, target: Target, source: InputSource, stop: asyncio.Event, progress: Progress | None = None
) -> Measurement:
    """Put the load on the target until its end, or until ``stop`` is set.

    Raises:
        TidegateError: Sessions could not be opened, or a first request of its kind was refused; nothing was measured.
    """
    clock = RealSendClock()
    async with contextlib.AsyncExitStack() as stack:
        client = AsyncClient(target.grpc, timeout=load.timeout, retry=Retry(attempts=1), **target.how)
        await stack.enter_async_context(client)
        site = SenderContext(load, client, target.http, source, clock)
        sessions = await stack.enter_async_context(_opened(client, load))
        senders = [make_sender(site, group) for group in _grouped(load, sessions)]
        stack.push_async_callback(_each, [sender.reset for sender in senders])
        await _try_once(load, senders)
        return await _measure(load, target, _Watch(clock, stop, progress), senders)


async def _try_once(load: Load, senders: Sequence[Sender]) -> None:
    """One request of a stepper and of a pusher of prompts, so that what can never work is told at once."""
    async with asyncio.timeout(load.timeout):
        await senders[0].request(load.mix.kinds[0].least)
        if load.prompt_sessions:
            await senders[-1].request(load.prompt_length)


class _Watch(NamedTuple):
    """Who looks on: a clock, the user's wish to stop, and who is told of the progress."""

    clock: SendClock
    stop: asyncio.Event
    progress: Progress | None


async def _measure(load: Load, target: Target, watch: _Watch, senders: Sequence[Sender]) -> Measurement:
    clock = watch.clock
    start = clock.time() + (START if load.rate else 0)
    record = LoadRecord(start + load.warmup, start + load.warmup + load.seconds)
    drive = Drive(record, clock, timeout=load.timeout, max_requests=load.max_requests, stop=watch.stop)
    metrics = HttpConnection(target.http)
    with contextlib.closing(metrics):
        async with drive.running(_lanes(load, senders, start)), _telling(watch, record, start):
            await drive.until(record.begin)
            before, used, began = await read_counts(metrics, target.model), read_usage(), clock.time()
            await drive.until(record.end)
            record.close(clock.time())
            client = read_usage().share_since(used, clock.time() - began)
            after = await read_counts(metrics, target.model)
    # Fewer runs than before: the server was started anew meanwhile.
    server = after.since(before) if before and after and after.runs >= before.runs else None
    return Measurement(record, client if record.seconds else Usage(0, 0), server)


def _lanes(load: Load, senders: Sequence[Sender], start: float) -> list[SendLane]:
    rngs = [random.Random(f"{load.seed} {index}") for index in range(len(senders))]
    steppers = [
        SendLane(sender, load.mix.draws(rng), _due(load, start, index, rng))
        for index, (sender, rng) in enumerate(zip(senders[: load.num_senders], rngs, strict=False))
    ]
    prompts = Mix.of(load.prompt_length)
    pushers = zip(senders[load.num_senders :], rngs, strict=False)
    return steppers + [SendLane(sender, prompts.draws(rng)) for sender, rng in pushers]


def _due(load: Load, start: float, index: int, rng: random.Random) -> Iterator[float] | None:
    if load.rate is None:
        return None
    return due_times(load.arrivals, load.rate, start, index, load.num_senders, rng)


def _grouped(load: Load, sessions: Sequence[AsyncSession]) -> Iterator[Sequence[AsyncSession]]:
    """The sessions of each sender: steppers first, ``batch`` to a sender; then those that push prompts, one each."""
    if not load.interface.has_sessions:
        yield from [()] * (load.sessions + load.prompt_sessions)
        return
    for first in range(0, load.sessions, load.batch):
        yield sessions[first : min(first + load.batch, load.sessions)]
    for session in sessions[load.sessions :]:
        yield (session,)


@contextlib.asynccontextmanager
async def _opened(client: AsyncClient, load: Load) -> AsyncIterator[list[AsyncSession]]:
    number = load.sessions + load.prompt_sessions if load.interface.has_sessions else 0
    idle = max(ABANDONED, 2 * load.num_senders / load.rate if load.rate else 0)
    sessions: list[AsyncSession] = []

    async def open_one() -> None:
        sessions.append(await client.open(load.model, version=load.version, idle_seconds=idle))

    try:
        await _each([open_one] * number)
        yield sessions
    finally:
        with contextlib.suppress(TidegateError):  # what happened in the block is told, not that closing failed too
            await _each([session.close for session in sessions])


async def _each(actions: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run all, some at a time; raises the first error, after those that ran beside it have ended."""
    left = iter(actions)
    while some := list(islice(left, AT_ONCE)):
        for end in await asyncio.gather(*(action() for action in some), return_exceptions=True):
            if isinstance(end, BaseException):
                raise end


@contextlib.asynccontextmanager
async def _telling(watch: _Watch, record: LoadRecord, start: float) -> AsyncIterator[None]:
    """Tell the progress twice a second."""
    if watch.progress is None:
        yield
        return

    async def tell(progress: Progress) -> None:
        while True:
            progress(watch.clock.time() - start, record)
            await watch.clock.until(watch.clock.time() + 0.5)

    task = asyncio.create_task(tell(watch.progress))
    try:
        yield
    finally:
        task.cancel()
