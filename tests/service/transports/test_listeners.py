"""Sockets that listen: addresses, families, sharing, Unix sockets."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tidegate.errors import ConfigurationError
from tidegate.transports.listeners import listen, listening, url_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def connect(host: str, port: int) -> None:
    with socket.create_connection((host, port)):
        pass


@pytest.mark.parametrize(
    ("address", "answers"),
    [
        ("127.0.0.1:0", ["127.0.0.1"]),
        ("[::1]:0", ["::1"]),
        ("[::]:0", ["127.0.0.1", "::1"]),
        ("0.0.0.0:0", ["127.0.0.1"]),
    ],
)
def test_who_reaches_an_address(address: str, answers: list[str]) -> None:
    with listen("http", address) as listener:
        for host in ("127.0.0.1", "::1"):
            if host in answers:
                connect(host, listener.getsockname()[1])
            else:
                with pytest.raises(ConnectionRefusedError):
                    connect(host, listener.getsockname()[1])


def test_a_port_in_use_is_told_with_the_flag() -> None:
    with listen("http", "127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"--grpc: 127.0.0.1:{port}: address already in use"):
            listen("grpc", f"127.0.0.1:{port}")


def test_a_name_that_is_not_found() -> None:
    with pytest.raises(ConfigurationError, match=r"--http: no\.such\.host\.invalid:0"):
        listen("http", "no.such.host.invalid:0")


def test_processes_share_a_port() -> None:
    with (
        listen("http", "127.0.0.1:0", is_shared=True) as first,
        listen("http", f"127.0.0.1:{first.getsockname()[1]}", is_shared=True) as second,
    ):
        assert second.getsockname() == first.getsockname()


def test_what_is_accepted_does_not_wait_and_notices_clients_that_are_gone() -> None:
    with listen("http", "127.0.0.1:0", stalled=7) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_unix_socket_has_its_mode(path: Path, mode: int) -> None:
    with listen("http", f"unix:{path}", mode=mode):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_unix_socket_goes_with_its_server(path: Path) -> None:
    with listening("http", f"unix:{path}"):
        assert path.is_socket()
    assert not path.exists()


def test_the_socket_of_another_server_stays(path: Path) -> None:
    with listening("http", f"unix:{path}"):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.is_socket()


@pytest.fixture
def left_behind(path: Path) -> Path:
    """The socket of a server that was killed."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    return path


def test_a_socket_that_was_left_behind_is_taken_over(left_behind: Path) -> None:
    with listen("http", f"unix:{left_behind}"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(left_behind))


def test_a_unix_socket_in_use_is_told(path: Path) -> None:
    with listen("http", f"unix:{path}"):
        with pytest.raises(ConfigurationError, match="address already in use"):
            listen("http", f"unix:{path}")
        assert path.is_socket()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="file exists"):
        listen("http", f"unix:{path}")
    assert path.read_text() == "mine"


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="too long"):
        listen("http", f"unix:{tmp_path / ('x' * 120)}")


def test_a_socket_without_a_path() -> None:
    name = f"tidegate-test-{os.getpid()}"
    with listen("http", f"unix-abstract:{name}") as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0{name}")
        assert url_of(listener) == f"unix-abstract:{name}"


def test_urls_of_listeners(path: Path) -> None:
    with listen("http", "127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        assert url_of(listener, "localhost", is_tls=True) == f"https://localhost:{port}"
    with listen("http", "[::1]:0") as listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"
    with listen("http", f"unix:{path}") as listener:
        assert url_of(listener) == f"unix:{path}"
