"""The parts of a process's life that need no process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from tidegate.errors import ConfigurationError
from tidegate.signals import Signals
from tidegate.transports.listeners import hold, listen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_stops_and_the_second_hurries(number: signal.Signals) -> None:
    signals = Signals()
    with signals.handled():
        os.kill(os.getpid(), number)
        await signals.stop.wait()
        assert not signals.hurry.is_set()
        os.kill(os.getpid(), number)
        await signals.hurry.wait()
    assert not signals.reload.is_set()


async def test_a_hangup_asks_for_a_reload_and_for_nothing_else() -> None:
    signals = Signals()
    with signals.handled():
        os.kill(os.getpid(), signal.SIGHUP)
        await signals.reload.wait()
    assert not signals.stop.is_set()


async def test_signals_are_handled_as_before_after_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals().handled():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) in {before, signal.SIG_DFL}


async def test_who_connects_before_the_server_accepts_waits_and_is_served() -> None:
    with listen("http", "127.0.0.1:0") as listener:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"served")
        assert await reader.read() == b"served"
        writer.close()
        await writer.wait_closed()


def test_a_taken_port_is_a_configuration_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"--http: {address}: address already in use$") as caught:
            listen("http", address)
        assert caught.value.reason == "PORT_IN_USE"


def test_a_port_that_is_held_is_for_those_who_share_it() -> None:
    with hold("http", "127.0.0.1:0") as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"--http: {address}: address already in use$"):
            listen("http", address)
        with listen("http", address, is_shared=True) as one, listen("http", address, is_shared=True) as other:
            assert one.getsockname() == other.getsockname()
            with pytest.raises(ConfigurationError, match=f"--grpc: {address}: address already in use$"):
                hold("grpc", address)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("no-such-host.invalid:80", "is the host's name right"),
        ("192.0.2.1:8080", "cannot assign requested address: no interface of this machine has that address"),
    ],
)
def test_an_address_that_cannot_be_had_is_told_with_what_to_do(address: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--http: {address}: .*{words}") as caught:
        listen("http", address)
    assert caught.value.reason == "BAD_CONFIGURATION"
