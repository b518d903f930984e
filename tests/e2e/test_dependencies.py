"""What dependencies do by default and must not: no verb writes below HOME, none calls out of the machine."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bundles import write_tiny_bundle, write_tiny_stream_bundle
from tests.servers import COMMAND, bare_environment, serving
from tidegate.bundle import GRAPH
from tidegate_models.recipe import dump_recipe, load_recipe

MODULES = Path(__file__).parents[1] / "export" / "user_modules.py"
LOCAL = "127.0.0.1,localhost"


@dataclass
class Stranger:
    """A machine on which nothing was ever run: an empty HOME, and a proxy that notes who wants to go out."""

    home: Path
    proxy: str
    asked: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        # What the tests set for themselves, and what this machine may have set for others, is not there.
        kept = {
            name: value
            for name, value in bare_environment().items()
            if "proxy" not in name.lower() and not name.startswith(("XDG_", "ORT_", "MPL"))
        }
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), self.proxy)
        return {**kept, **proxies, "HOME": str(self.home), "no_proxy": LOCAL, "NO_PROXY": LOCAL}

    def run(self, *arguments: object) -> None:
        command = [*COMMAND, *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr

    def check(self) -> None:
        assert list(self.home.rglob("*")) == []
        assert self.asked == []


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    (tmp_path / "home").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = Stranger(tmp_path / "home", f"http://127.0.0.1:{listener.getsockname()[1]}")

        def note() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        found.asked.append(connection.recv(4096).partition(b"\r\n")[0].decode("latin-1"))

        thread = threading.Thread(target=note)
        thread.start()
        yield found
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_server_and_its_workers_leave_nothing_and_call_nobody(stranger: Stranger, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundles")
    with serving(tmp_path / "bundles", "--workers", "2", environment=stranger.environment) as server:
        body = json.dumps({"sequences": [{"text": "To be"}]}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{server.http}/v1/models/tiny:predict", body, timeout=30) as reply:
            assert reply.status == 200
        stranger.run("bench", "tiny", "--server", server.grpc, "--seconds", "0.1", "--plot", tmp_path / "plot.png")
        server.tell(signal.SIGTERM)
        assert server.wait() == 0
    stranger.check()


def test_verbs_that_make_and_check_bundles_leave_nothing_and_call_nobody(stranger: Stranger, tmp_path: Path) -> None:
    out, source = tmp_path / "bundles", write_tiny_stream_bundle(tmp_path / "bundles")
    stranger.run("import", source / GRAPH, "--name", "foreign", "--out", out)
    stranger.run("quantize", write_tiny_bundle(out), "--out", out, "--seconds", "0", "--method", "weight-only")
    stranger.run("export", f"{MODULES}:Tagger", "--name", "tagger", "--example-shape", "1,8,6", "--out", out)
    stranger.run("check", out)
    stranger.check()


def test_training_leaves_nothing_and_calls_nobody(stranger: Stranger, tmp_path: Path) -> None:
    recipe = load_recipe("text")
    network = recipe.network.model_copy(update={"hidden_size": 8, "embedding_size": 4})
    training = recipe.training.model_copy(update={"steps": 6, "evaluate_every": 3, "streams": 2, "window": 16})
    (tmp_path / "tiny.toml").write_text(
        dump_recipe(recipe.model_copy(update={"network": network, "training": training}))
    )
    (tmp_path / "my.txt").write_text("to be, or not to be. " * 100)
    out = tmp_path / "runs" / "mine"
    stranger.run("train", tmp_path / "tiny.toml", "--data", tmp_path / "my.txt", "--out", out, "--device", "cpu")
    assert (out / "loss.png").stat().st_size > 0
    stranger.check()
