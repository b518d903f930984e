"""The parts of docker-compose.yml as plain processes, from a request to the message that somebody gets of an alert.

Grafana is not among them: what it shows, the expressions of its panels, is asked of Prometheus in test_monitoring.py.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.deploy.busy import BLOCK, EXTRAORDINARY, ORDINARY, loads, post, write_bundles
from tests.deploy.processes import PATIENCE, Alertmanager, Prometheus, alertmanager, prometheus, until
from tests.envoy import Envoy, Upstream, envoy_before
from tests.redis import RedisServer, redis_server
from tests.servers import RunningServer, serving

MODEL = "tiny-forecast"


class Message(NamedTuple):
    """What a receiver of Alertmanager was told."""

    receiver: str
    status: str
    alerts: list[dict[str, Any]]


class House(NamedTuple):
    """What runs."""

    redis: RedisServer
    replicas: list[RunningServer]
    envoy: Envoy
    prometheus: Prometheus
    alertmanager: Alertmanager
    messages: queue.Queue[Message]

    @property
    def url(self) -> str:
        return f"http://{self.envoy.http}/v1"

    def told_of(self, name: str) -> Message:
        """The next message about that alert."""
        while True:
            message = self.messages.get(timeout=PATIENCE)
            if any(alert["labels"]["alertname"] == name for alert in message.alerts):
                return message


@contextlib.contextmanager
def listening(messages: queue.Queue[Message]) -> Iterator[str]:
    """Whoever should come: an HTTP server that takes Alertmanager's messages; yields its URL."""

    class Pager(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            messages.put(Message(self.path.removeprefix("/"), body["status"], body["alerts"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - its name there
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pager) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    messages: queue.Queue[Message] = queue.Queue()
    bundles = write_bundles(tmp_path / "bundles")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        flags = ("--store", redis.url, "--store-timeout", "2")
        replicas = [stack.enter_context(serving(bundles, *flags)) for _ in range(2)]
        upstreams = [Upstream(replica.http.removeprefix("http://"), replica.grpc) for replica in replicas]
        envoy = stack.enter_context(envoy_before(upstreams))
        telling = stack.enter_context(alertmanager(stack.enter_context(listening(messages))))
        watching = stack.enter_context(prometheus([upstream.http for upstream in upstreams], telling.address))
        until(lambda: len(watching.query("tidegate_ready == 1")) == len(replicas))
        yield House(redis, replicas, envoy, watching, telling, messages)


def step(house: House, session: str, level: float, steps: int) -> httpx.Response:
    url, headers = f"{house.url}/sessions/{session}:step", {"tidegate-session": session}
    return httpx.post(url, json={"values": loads(level, steps)}, headers=headers)


def applied(house: House, session: str, level: float, steps: int) -> None:
    response = step(house, session, level, steps)
    assert response.is_success, response.text


def opened(house: House) -> str:
    session: str = post(f"{house.url}/sessions", {"model": MODEL, "durable": True})["id"]
    return session


def names(house: House) -> set[str]:
    return {alert["labels"]["alertname"] for alert in house.alertmanager.alerts()}


def test_somebody_hears_of_inputs_that_a_model_does_not_predict(house: House) -> None:
    session = opened(house)
    applied(house, session, ORDINARY, 20 * BLOCK)
    until(lambda: house.prometheus.query("sum(tidegate_surprise_steps_total) >= 80"))
    assert "TidegateDrift" not in names(house)

    applied(house, session, EXTRAORDINARY, 20 * BLOCK)
    message = house.told_of("TidegateDrift")
    assert (message.receiver, message.status) == ("somebody-today", "firing")
    told = message.alerts[0]
    assert {"model": MODEL, "version": "1", "severity": "warning", "job": "tidegate"}.items() <= told["labels"].items()
    assert told["annotations"]["summary"].startswith(f"{MODEL}/1 drifts on ")

    until(lambda: step(house, session, ORDINARY, 20 * BLOCK).is_success and not drifting(house))


def drifting(house: House) -> bool:
    return any(labels["alertname"] == "TidegateDrift" for labels in house.prometheus.firing())


def test_somebody_hears_of_a_store_that_is_away_and_only_of_that(house: House) -> None:
    session = opened(house)
    house.redis.kill()
    assert step(house, session, ORDINARY, 1).status_code == 503
    message = house.told_of("TidegateStoreDown")
    assert (message.receiver, message.status) == ("somebody-now", "firing")
    assert {alert["labels"]["store"] for alert in message.alerts} == {"redis"}

    def unready_is_kept_quiet() -> bool:
        found = [alert for alert in house.alertmanager.alerts() if alert["labels"]["alertname"] == "TidegateNotReady"]
        return bool(found) and all(alert["status"]["inhibitedBy"] for alert in found)

    until(unready_is_kept_quiet)
    house.redis.start()
    while house.told_of("TidegateStoreDown").status != "resolved":
        pass
    applied(house, session, ORDINARY, 1)


def test_somebody_hears_of_a_replica_that_is_gone(house: House) -> None:
    gone, left = house.replicas
    gone.process.kill()
    message = house.told_of("TidegateDown")
    assert message.receiver == "somebody-now"
    assert [alert["labels"]["instance"] for alert in message.alerts] == [gone.http.removeprefix("http://")]
    assert httpx.get(f"{left.http}/readyz").is_success
    applied(house, opened(house), ORDINARY, 1)
