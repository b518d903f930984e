"""Prometheus and Alertmanager in processes of their own, with the configurations of deploy/ and other addresses.

What is replaced: addresses by those of the test, waiting times by short ones. Expressions stay as they are.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import yaml

from tests.programs import program

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = sorted((DEPLOY / "prometheus/rules").glob("*.yml"))
INTERVAL = "1s"
PATIENCE = 60.0

Labels = dict[str, str]
T = TypeVar("T")


class Sample(NamedTuple):
    """One series of an answer, as of now."""

    labels: Labels
    value: float


class Prometheus(NamedTuple):
    """A running Prometheus."""

    url: str

    def query(self, expr: str) -> list[Sample]:
        """Return what an expression says now; AssertionError with Prometheus' words where it cannot be read."""
        found = self._get("query", query=expr)["result"]
        return [Sample(series["metric"], float(series["value"][1])) for series in found]

    def label_values(self, label: str, selector: str) -> list[str]:
        values: list[str] = self._get(f"label/{label}/values", **{"match[]": selector})
        return values

    def firing(self) -> list[Labels]:
        """Return the labels of alerts that fire."""
        return [alert["labels"] for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"]

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules with their health and last error."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: str) -> Any:
        reply = httpx.get(f"{self.url}/api/v1/{what}", params=parameters).json()
        assert reply["status"] == "success", f"{parameters}: {reply}"
        return reply["data"]


class Alertmanager(NamedTuple):
    """A running Alertmanager."""

    address: str

    def alerts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"http://{self.address}/api/v2/alerts").raise_for_status().json()
        return found


@contextlib.contextmanager
def prometheus(
    targets: Sequence[str], alertmanager: str | None = None, rules: Mapping[str, str] | None = None
) -> Iterator[Prometheus]:
    """Start Prometheus before servers at HOST:PORT; end it after the block.

    Args:
        targets: What it scrapes as the job tidegate.
        alertmanager: HOST:PORT of who is told; None: nobody.
        rules: Files of rules by name; None: those of deploy/, whose alerts fire without waiting.
    """
    with tempfile.TemporaryDirectory(prefix="tidegate-prometheus-") as folder:
        place, config = Path(folder), _config(targets, alertmanager)
        for name, text in (rules or impatient_rules()).items():
            (place / name).write_text(text)
        config["rule_files"] = ["*.rules.yml"]
        (place / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [program("prometheus"), f"--config.file={place / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={place / 'data'}", "--web.listen-address=127.0.0.1:0"]
        with _started(command, "Server is ready to receive web requests") as address:
            yield Prometheus(f"http://{address}")


@contextlib.contextmanager
def alertmanager(webhook: str) -> Iterator[Alertmanager]:
    """Start Alertmanager, whose receivers all tell ``webhook``; end it after the block."""
    with tempfile.TemporaryDirectory(prefix="tidegate-alertmanager-") as folder:
        config = yaml.safe_load((DEPLOY / "alertmanager/alertmanager.yml").read_text())
        for route in (config["route"], *config["route"]["routes"]):
            route |= {"group_wait": "100ms", "group_interval": "1s"}
        for receiver in config["receivers"]:
            receiver["webhook_configs"] = [{"url": f"{webhook}/{receiver['name']}"}]
        Path(folder, "alertmanager.yml").write_text(yaml.safe_dump(config))
        command = [program("prometheus-alertmanager"), f"--config.file={folder}/alertmanager.yml"]
        command += [f"--storage.path={folder}/data", "--web.listen-address=127.0.0.1:0", "--cluster.listen-address="]
        with _started(command, "Listening on") as address:
            yield Alertmanager(address)


def until(condition: Callable[[], T]) -> T:
    """Ask until the answer is true; AssertionError with the last one when patience ends."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, answer
    return answer


def impatient_rules() -> dict[str, str]:
    """The rules of deploy/ with alerts that fire as soon as their expression holds."""
    return {
        f"{file.stem}.rules.yml": re.sub(r"^( +)for: \w+$", r"\1for: 0s", file.read_text(), flags=re.MULTILINE)
        for file in RULES
    }


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    return _run("promtool", *arguments)


def amtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return _run("amtool", *arguments)


def _run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [program(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def _config(targets: Sequence[str], alertmanager: str | None) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL}
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "tidegate"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
    told = [] if alertmanager is None else [alertmanager]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": told}]}]
    return config


@contextlib.contextmanager
def _started(command: Sequence[str], sign: str) -> Iterator[str]:
    """Start a program that logs where it listens, and ``sign`` when it does; yield its HOST:PORT."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield _where(process, sign)
        finally:
            process.kill()


def _where(process: subprocess.Popen[str], sign: str) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        # The two lines come in either order.
        log = "".join(said)
        listening = re.search(r'msg="Listening on" address=(\S+)', log)
        if listening and sign in log:
            return listening[1]
    raise AssertionError(f"it did not start: {''.join(said)}")
