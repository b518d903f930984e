"""The parts of a process's life that need no process."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator

import pytest
import structlog

from tidegate.errors import ConfigurationError
from tidegate.observe.logs import configure_logs
from tidegate.signals import Signals
from tidegate.sockets import hold, listen


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)


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
        with pytest.raises(ConfigurationError, match=f"--http: {address}: address already in use$"):
            listen("http", address)


def test_a_port_that_is_held_is_for_those_who_share_it() -> None:
    with hold("http", "127.0.0.1:0") as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"--http: {address}: address already in use$"):
            listen("http", address)
        with listen("http", address, is_shared=True) as one, listen("http", address, is_shared=True) as other:
            assert one.getsockname() == other.getsockname()
            with pytest.raises(ConfigurationError, match=f"--grpc: {address}: address already in use$"):
                hold("grpc", address)


def test_an_unknown_host_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"--http: no-such-host\.invalid:80: "):
        listen("http", "no-such-host.invalid:80")


def logged(style: str) -> str:
    stream = io.StringIO()
    configure_logs("info", "json" if style == "json" else "console", stream)
    structlog.stdlib.get_logger("tidegate.server").info("ready", http="http://127.0.0.1:8080")
    logging.getLogger("tidegate.engine").warning("a run of %d rows failed", 3)
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("tidegate").debug("not at this level")
    return stream.getvalue()


def test_json_logs_are_an_object_a_line_from_either_logging() -> None:
    first, second = map(json.loads, logged("json").splitlines())
    assert (first["event"], first["http"], first["level"]) == ("ready", "http://127.0.0.1:8080", "info")
    assert (second["event"], second["logger"], second["level"]) == (
        "a run of 3 rows failed",
        "tidegate.engine",
        "warning",
    )


def test_console_logs_are_plain_text_where_there_is_no_terminal() -> None:
    first, second = logged("console").splitlines()
    assert first.endswith("ready [tidegate.server] http=http://127.0.0.1:8080")
    assert "\x1b" not in first + second


@pytest.mark.parametrize("style", ["console", "json"])
def test_tracebacks_do_not_tell_what_clients_sent(style: str) -> None:
    stream = io.StringIO()
    configure_logs("info", "json" if style == "json" else "console", stream)

    def handle(payload: str) -> None:
        raise ValueError(len(payload))

    secret = " ".join(("what a client sent", str(os.getpid())))
    try:
        handle(secret)
    except ValueError:
        structlog.stdlib.get_logger("tidegate.server").exception("failed")
        logging.getLogger("tidegate.engine").exception("failed")
    text = stream.getvalue()
    assert text.count("ValueError: ") == 2
    assert secret not in text
