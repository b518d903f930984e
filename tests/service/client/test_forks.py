"""A process that forks after it has used a client: its children make their own, and are told where they cannot.

The forks are real ones, of a process that is started for it.
"""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

NUM_FORKS = 6

PREAMBLE = """
import asyncio, os, signal, sys, threading
from tidegate.client import AsyncClient, Client
from tidegate.errors import TidegateError

address, num_forks = sys.argv[1], int(sys.argv[2])

def use(client):
    with client.open("echo") as session:
        session.step("a")
        with session.stream() as stream:
            stream.step("b")
    list(client.generate("echo", "x", max_tokens=1))

async def use_async():
    async with AsyncClient(address) as client, client.open("echo") as session:
        await session.step("a")
        async with session.stream() as stream:
            await stream.step("b")

def forked(action):
    reading, writing = os.pipe()
    if os.fork() == 0:
        signal.alarm(60)  # ends a child that hangs
        try:
            action()
            said = "ok"
        except TidegateError as error:
            said = f"{error.reason} {error.message}"
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    _, status = os.wait()
    return said if status == 0 else f"{said} and status {status}"

def new():
    with Client(address) as client:
        use(client)

def report(actions):
    print(sorted({forked(actions[index % len(actions)]) for index in range(num_forks)}))
"""


@pytest.fixture
def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}


async def run(address: str, code: str, environment: dict[str, str]) -> list[str]:
    """Run the code in a process of its own; return the lines that it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PREAMBLE + code, address, str(NUM_FORKS), env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().splitlines()


async def test_children_make_clients_of_their_own(address: str, environment: dict[str, str]) -> None:
    code = """
client = Client(address)
use(client)
asyncio.run(use_async())
session = client.open("echo")
with session.stream() as stream:
    stream.step("a")
    report([new, lambda: asyncio.run(use_async())])
    print(stream.step("b").position, session.step("c").position)
"""
    assert await run(address, code, environment) == ["['ok']", "2 3"]


async def test_a_fork_waits_for_calls_of_other_threads(address: str, environment: dict[str, str]) -> None:
    code = """
client, ended = Client(address), threading.Event()

def step():
    session = client.open("echo")
    while not ended.is_set():
        session.step("a")

def stream():
    with client.open("echo").stream() as stream:
        while not ended.is_set():
            stream.step("a")

def generate():
    while not ended.is_set():
        list(client.generate("echo", "x", max_tokens=3))

threads = [threading.Thread(target=work) for work in (step, step, stream, stream, generate)]
for thread in threads:
    thread.start()
use(client)
report([new])
ended.set()
for thread in threads:
    thread.join()
"""
    assert await run(address, code, environment) == ["['ok']"]


async def test_the_clients_of_its_parent_say_that_they_are_not_the_childs(
    address: str, environment: dict[str, str]
) -> None:
    code = """
client = Client(address)
session, columns = client.open("echo"), client.stream()
stream = session.stream()
stream.step("a")
columns.attach([session])
events = session.generate(max_tokens=3)
next(events)

def refused(action):
    try:
        action()
    except TidegateError as error:
        return error.message
    return "not refused"

def try_all():
    print({refused(action) for action in (
        client.models, lambda: session.step("b"), lambda: stream.step("b"), lambda: session.stream().step("b"),
        lambda: columns.step([0], tokens=[1]), lambda: list(events), lambda: list(client.generate("echo", "x")),
    )}, flush=True)
    columns.close()
    stream.close()
    client.close()
    new()

print(forked(try_all))
print(len(client.models()))
"""
    told = "this client was made before the process was forked: make a new one in each child"
    assert await run(address, code, environment) == [str({told}), "ok", "2"]


async def test_an_open_client_of_asyncio_is_told_to_be_in_the_way(address: str, environment: dict[str, str]) -> None:
    code = """
async def main():
    async with AsyncClient(address) as client:
        await client.models()
        await asyncio.to_thread(report, [new, lambda: asyncio.run(use_async()), lambda: asyncio.run(client.models())])

asyncio.run(main())
"""
    (told,) = await run(address, code, environment)
    assert told.count("FORKED") == 2
    assert "gRPC cannot be used in this process" in told
    assert "an AsyncClient was open; close it before" in told
    assert "this client was made before the process was forked" in told


async def test_without_support_by_grpc_the_child_is_told(address: str, environment: dict[str, str]) -> None:
    code = """
client = Client(address)
client.models()
report([new])
"""
    (told,) = await run(address, code, environment | {"GRPC_ENABLE_FORK_SUPPORT": "0"})
    assert "grpc was imported without GRPC_ENABLE_FORK_SUPPORT=1; import tidegate.client before it" in told


async def test_a_process_that_made_no_client_leaves_its_children_free(
    address: str, environment: dict[str, str]
) -> None:
    assert await run(address, "report([new])", environment | {"GRPC_ENABLE_FORK_SUPPORT": "0"}) == ["['ok']"]
