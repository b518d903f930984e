"""What becomes a line of the log, and how it looks."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog

from tests.servers import bare_environment
from tidegate.clock import Clock
from tidegate.errors import ConfigurationError
from tidegate.faults import conceal
from tidegate.observability.logs import logging_to, num_dropped_lines, write_lines
from tidegate.observability.requests import RequestRecorder
from tidegate.observability.stderr import StderrLines

Logged = Callable[..., list[str]]


@pytest.fixture
def logged(tmp_path: Path) -> Logged:
    """Runs something while logs are open, and returns their lines."""

    def run(what: Callable[[], Any], style: Literal["console", "json"] = "json", level: str = "info") -> list[str]:
        with (tmp_path / "log").open("w") as file, logging_to(level, style, file):
            what()
        return (tmp_path / "log").read_text().splitlines()

    return run


def say_something() -> None:
    structlog.stdlib.get_logger("tidegate.server").info("ready", http="http://127.0.0.1:8080")
    logging.getLogger("tidegate.engine").warning("a run of %d rows failed", 3)
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("tidegate").debug("not at this level")


def test_json_logs_are_an_object_a_line_from_either_logging(logged: Logged) -> None:
    first, second = map(json.loads, logged(say_something))
    assert (first["event"], first["http"], first["level"]) == ("ready", "http://127.0.0.1:8080", "info")
    assert (second["event"], second["logger"], second["level"]) == (
        "a run of 3 rows failed",
        "tidegate.engine",
        "warning",
    )


def test_console_logs_are_plain_text_where_there_is_no_terminal(logged: Logged) -> None:
    first, second = logged(say_something, "console")
    assert first.endswith("ready [tidegate.server] http=http://127.0.0.1:8080")
    assert "\x1b" not in first + second


@pytest.mark.parametrize("style", ["console", "json"])
def test_tracebacks_do_not_tell_what_clients_sent(logged: Logged, style: Literal["console", "json"]) -> None:
    secret = " ".join(("what a client sent", str(os.getpid())))

    def handle(payload: str) -> None:
        raise ValueError(len(payload))

    def fail() -> None:
        try:
            handle(secret)
        except ValueError:
            structlog.stdlib.get_logger("tidegate.server").exception("failed")
            logging.getLogger("tidegate.engine").exception("failed")

    text = "\n".join(logged(fail, style))
    assert text.count("ValueError: ") == 2
    assert secret not in text


def test_lines_logged_for_a_request_carry_its_ids(logged: Logged) -> None:
    requests = RequestRecorder(Clock(), None, None)

    async def handle(name: str) -> None:
        requests.begin([("x-request-id", name)], f"session-{name}")
        await asyncio.sleep(0)
        logging.getLogger("tidegate.test").warning("halfway")

    async def handle_two() -> None:
        await asyncio.gather(handle("one"), handle("two"))
        logging.getLogger("tidegate.test").warning("outside")

    one, two, outside = map(json.loads, logged(lambda: asyncio.run(handle_two())))
    assert (one["request"], one["session"]) == ("one", "session-one")
    assert (two["request"], two["session"]) == ("two", "session-two")
    assert "request" not in outside


def fail_in_a_thread() -> None:
    def fail() -> None:
        raise ValueError("in a thread")

    thread = threading.Thread(target=fail, name="one")
    thread.start()
    thread.join()


def fail_in_a_task() -> None:
    async def fail() -> None:
        raise ValueError("in a task")

    async def leave_it() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])

    asyncio.run(leave_it())
    gc.collect()


class Fails:
    def __del__(self) -> None:
        raise ValueError("in a destructor")


def fail_in_a_destructor() -> None:
    Fails()
    gc.collect()


def warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def log_what_cannot_be_formatted() -> None:
    logging.getLogger("tidegate.test").warning("%d rows", "many")


@pytest.mark.parametrize(
    ("what", "logger", "words"),
    [
        (fail_in_a_thread, "tidegate.observability.logs", ("ended the thread one", "ValueError: in a thread")),
        (fail_in_a_task, "asyncio", ("never retrieved", "ValueError: in a task")),
        (fail_in_a_destructor, "tidegate.observability.logs", ("ValueError: in a destructor",)),
        (warn, "py.warnings", ("DeprecationWarning: old",)),
        (log_what_cannot_be_formatted, "tidegate.observability.logs", ("a line of tidegate.test cannot be written",)),
    ],
)
def test_what_python_would_print_is_one_object_too(
    logged: Logged, capfd: pytest.CaptureFixture[str], what: Callable[[], None], logger: str, words: tuple[str, ...]
) -> None:
    (line,) = map(json.loads, logged(what))
    assert line["logger"] == logger
    assert all(word in line["event"] + line.get("exception", "") for word in words), line
    assert capfd.readouterr().err == ""


def test_an_error_that_nobody_expected_is_logged_and_ends_with_code_1(logged: Logged) -> None:
    def fail() -> None:
        raise ValueError("who could know")

    with pytest.raises(SystemExit) as caught:
        logged(fail)
    assert caught.value.code == 1


def test_an_error_of_ours_leaves_the_logs_as_it_is(logged: Logged) -> None:
    def fail() -> None:
        raise ConfigurationError("a port is in use")

    with pytest.raises(ConfigurationError):
        logged(fail)


def test_lines_of_others_that_repeat_themselves_are_held_back(logged: Logged) -> None:
    def repeat() -> None:
        for number in range(20):
            logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
            logging.getLogger("asyncio").warning("task 0x%x took %d s" % (number, number))  # noqa: G002, UP031

    assert len(logged(repeat)) == 2


def test_a_fault_that_every_request_meets_is_one_line(logged: Logged) -> None:
    def fail() -> None:
        for number in range(20):
            try:
                int("no number" * number)
            except ValueError as error:
                conceal(error)

    (line,) = map(json.loads, logged(fail))
    assert line["fault"] in line["event"]
    assert "Traceback" in line["exception"]


def test_text_that_is_none_and_lines_that_are_formatted_already_are_written(logged: Logged) -> None:
    def say() -> None:
        logging.getLogger("tidegate.test").warning("half a pair: %s", "\ud83d")
        write_lines("formatted\n")

    lines = logged(say)
    assert lines[1] == "formatted"
    assert "half a pair" in lines[0]


def test_without_logs_nothing_is_written_and_nothing_counted() -> None:
    write_lines("nowhere\n")
    assert num_dropped_lines() == 0


# ---- descriptor 2


def test_bytes_become_lines_as_they_come(logged: Logged) -> None:
    def feed() -> None:
        lines = StderrLines(worker="r-0")
        for data in (b"first\nsec", b"ond\n\n", b"\xff" * 20_000, b"unfinished", b""):
            lines.feed(data)

    found = [json.loads(line) for line in logged(feed)]
    assert [(line["event"][:10], line["worker"]) for line in found] == [
        ("first", "r-0"),
        ("second", "r-0"),
        ("\ufffd" * 10, "r-0"),
        ("unfinished", "r-0"),
    ]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("I0000 00:00:1764365686.683463   23141 chttp2_transport.cc:1403] Got goaway", "debug"),
        ("W1128 21:34:45.683463   23141 tcp_server.cc:1] slow", "warning"),
        ("E0000 00:00:1764365686.683463   23141 tcp_server.cc:1] File descriptor limit reached. Retrying.", "error"),
        ("2026-01-31 12:00:00.123 [E:onnxruntime:, sequential_executor.cc:1] Non-zero status code", "error"),
        ("\x1b[0;93m2026-01-31 12:00:00.123 [W:onnxruntime:Default, device.cc:1] no device\x1b[m", "warning"),
        ("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR", "debug"),
        ('{"level":"info","event":"listening","url":"http://127.0.0.1:1"}', "debug"),
        ('{"level":"error","event":"failed","subject":"request","detail":"stream channel was closed"}', "warning"),
        ('{"level":"unknown"}', "warning"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "warning"),
    ],
)
def test_machine_code_s_own_level_is_kept(logged: Logged, text: str, level: str) -> None:
    (line,) = map(json.loads, logged(lambda: StderrLines().feed(text.encode() + b"\n"), level="debug"))
    assert line["level"] == level


OWN_STDERR = """
import os, sys
from tidegate.observability.logs import logging_to
from tidegate.observability.stderr import stderr_logged
with logging_to("info", "json"), stderr_logged():
    os.write(2, b"machine code says 100%\\n")
    print("python says", file=sys.stderr)
    {last}
print("after", file=sys.stderr)
"""


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", source]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=bare_environment())


def test_what_is_written_to_descriptor_2_is_logged_until_the_block_ends() -> None:
    result = run_python(OWN_STDERR.format(last="pass"))
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["event"], line["logger"]) for line in found] == [
        ("machine code says 100%", "stderr"),
        ("python says", "stderr"),
    ]
    assert (result.returncode, result.stderr) == (0, "after\n")


def test_a_crash_leaves_its_stack_on_standard_error() -> None:
    result = run_python(OWN_STDERR.format(last="os.abort()"))
    assert result.returncode < 0
    assert "Fatal Python error: Aborted" in result.stderr
