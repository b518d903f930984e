"""Where onnxruntime should run: inline in the event loop, in a thread, or in a process of its own.

`python -m bench.execution` runs the same graph in the three ways, beside an event loop that is idle or has other
things to do, and prints for each the wall time of a run as its caller sees it, the loop's own work that got done
meanwhile, and the CPU time of all. The process is given inputs and states in shared memory and woken through a pipe:
what a server built like that would pay at the least.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, shared_memory
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from bench.raw import bundle_of
from tests.bundles import write_tiny_bundle
from tidegate.bundle import Bundle, read_bundle
from tidegate.engine.runner import Runner

Run = Callable[[], Awaitable[None]]

WAYS = ("inline", "thread", "process")
_ROUNDS = 5


class Figures(NamedTuple):
    """Medians over the rounds: µs a run, turns of the loop's other work a second, µs of CPU a run in all processes."""

    run: float
    turns: float
    cpu: float


class Arrays:
    """A run's inputs and states, and what it gives, in memory that two processes share.

    Args:
        bundle: Whose graph runs.
        rows: Sessions of one run.
        name: Of the shared memory; None makes it.
    """

    def __init__(self, bundle: Bundle, rows: int, name: str | None = None) -> None:
        manifest = bundle.manifest
        logits = manifest.outputs[0]
        shapes: list[tuple[tuple[int, ...], np.dtype[Any]]] = [
            ((rows, 1), np.dtype(manifest.inputs[0].dtype)),
            *(
                (tuple(rows if axis == "batch" else int(axis) for axis in it.axes), np.dtype(it.dtype))
                for it in manifest.states
            ),
            ((rows, 1, int(logits.axes[-1])), np.dtype(logits.dtype)),
        ]
        size = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in shapes)
        self.memory = shared_memory.SharedMemory(name, create=name is None, size=size)
        self.arrays, start = [], 0
        for shape, dtype in shapes:
            array: Any = np.ndarray(shape, dtype, self.memory.buf, start)
            start += array.nbytes
            self.arrays.append(array)
        if name is None:
            for array in self.arrays:
                array[:] = 0

    def step(self, runner: Runner) -> None:
        """Run once on what lies here, and put the results where the next run finds them."""
        tokens, *states, logits = self.arrays
        outputs, news = runner.run([tokens], states)
        for state, new in zip(states, news, strict=True):
            state[:] = new
        logits[:] = next(iter(outputs.values()))

    def close(self) -> None:
        self.arrays = []
        self.memory.close()


def serve(path: Path, rows: int, name: str, threads: int, asked: int, told: int, options: int) -> None:
    """The process: runs whenever a byte arrives, until nobody is left to send one."""
    os.close(options)
    bundle = read_bundle(path)
    arrays, runner = Arrays(bundle, rows, name), Runner(bundle, threads=threads)
    while os.read(asked, 1):
        arrays.step(runner)
        os.write(told, b".")
    arrays.close()


@contextmanager
def ways_to_run(way: str, bundle: Bundle, rows: int, threads: int) -> Iterator[tuple[Run, list[int]]]:
    """A function that runs once, and the process ids whose CPU time it takes."""
    arrays = Arrays(bundle, rows)
    try:
        if way == "process":
            with _in_process(bundle, rows, threads, arrays) as found:
                yield found
            return
        runner = Runner(bundle, threads=threads)
        if way == "inline":
            yield _inline(arrays, runner), [os.getpid()]
        else:
            with ThreadPoolExecutor(1) as executor:
                yield _in_thread(arrays, runner, executor), [os.getpid()]
    finally:
        memory = arrays.memory
        arrays.close()
        memory.unlink()


def _inline(arrays: Arrays, runner: Runner) -> Run:
    async def run() -> None:
        arrays.step(runner)
        await asyncio.sleep(0)

    return run


def _in_thread(arrays: Arrays, runner: Runner, executor: ThreadPoolExecutor) -> Run:
    async def run() -> None:
        await asyncio.get_running_loop().run_in_executor(executor, arrays.step, runner)

    return run


@contextmanager
def _in_process(bundle: Bundle, rows: int, threads: int, arrays: Arrays) -> Iterator[tuple[Run, list[int]]]:
    (asked, options), (listen, told) = os.pipe(), os.pipe()
    context = get_context("fork")
    process = context.Process(target=serve, args=(bundle.path, rows, arrays.memory.name, threads, asked, told, options))
    process.start()
    os.close(asked)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            os.read(listen, 1)
            loop.remove_reader(listen)
            done.set_result(None)

        loop.add_reader(listen, wake)
        os.write(options, b".")
        await done

    try:
        assert process.pid is not None
        yield run, [os.getpid(), process.pid]
    finally:
        os.close(options)
        process.join()


async def measure(run: Run, pids: list[int], seconds: float, *, is_busy: bool) -> Figures:
    """Run again and again for ``seconds``, beside a task that turns all the time where the loop is to be busy."""
    turns = 0
    is_over = False

    async def turn() -> None:
        nonlocal turns
        while not is_over:
            sum(range(200))  # some 3 µs of Python, as a message's handling is made of
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(turn()) if is_busy else None
    for _ in range(3):
        await run()
    turns, times = 0, []
    cpu, start = _cpu(pids), time.perf_counter()
    while time.perf_counter() - start < seconds:
        began = time.perf_counter()
        await run()
        times.append(time.perf_counter() - began)
    spent = time.perf_counter() - start
    figures = Figures(median(times) * 1e6, turns / spent, (_cpu(pids) - cpu) / len(times) * 1e6)
    is_over = True
    if other is not None:
        await other
    return figures


def _cpu(pids: list[int]) -> float:
    """Seconds of CPU that the processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def compare(bundle: Bundle, rows: int, seconds: float, *, is_busy: bool) -> dict[str, Figures]:
    """Return each way's figures, the ways taking turns."""
    found: dict[str, list[Figures]] = {way: [] for way in WAYS}
    for _ in range(_ROUNDS):
        for way in WAYS:
            with ways_to_run(way, bundle, rows, 1) as (run, pids):
                found[way].append(asyncio.run(measure(run, pids, seconds, is_busy=is_busy)))
    return {way: Figures(*map(median, zip(*some, strict=True))) for way, some in found.items()}


def main() -> None:
    console = Console(width=200)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    options = parser.parse_args()
    console.print("| model, rows | loop | way | µs a run | other turns/s | CPU µs a run |")
    console.print("| --- | --- | --- | ---: | ---: | ---: |")
    with TemporaryDirectory() as root:
        large = read_bundle(write_tiny_bundle(Path(root), "large", hidden=1024))
        for name, bundle in (("2 × 256", read_bundle(bundle_of())), ("2 × 1,024", large)):
            for rows in (1, 64):
                for is_busy in (False, True):
                    for way, it in compare(bundle, rows, options.seconds, is_busy=is_busy).items():
                        loop = "busy" if is_busy else "idle"
                        console.print(
                            f"| {name}, {rows} | {loop} | {way} | {it.run:,.0f} | {it.turns:,.0f} | {it.cpu:,.0f} |"
                        )


if __name__ == "__main__":
    main()
