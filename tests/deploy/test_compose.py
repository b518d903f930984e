"""docker-compose.yml: its parts find each other, and nobody else finds them. There is no container engine here."""

from __future__ import annotations

from typing import Any

import yaml

from tests.deploy.processes import DEPLOY

ROOT = DEPLOY.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
REPLICAS = ["tidegate-1", "tidegate-2"]


def read(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


def mounts(service: str) -> dict[str, str]:
    """Where in the container what of the repository lies."""
    split = (volume.split(":") for volume in SERVICES[service]["volumes"])
    return {parts[1]: parts[0] for parts in split if parts[0].startswith("./")}


def test_everything_that_was_promised_is_there() -> None:
    assert set(SERVICES) == {*REPLICAS, "envoy", "redis", "prometheus", "alertmanager", "grafana"}


def test_what_is_mounted_is_in_the_repository_and_cannot_be_written() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source, _, *mode = volume.split(":")
            if source.startswith("./"):
                assert (ROOT / source).exists(), volume
                assert mode == ["ro"], volume
            else:
                assert source in COMPOSE["volumes"], (name, volume)


def test_nothing_is_published_beyond_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_watches_the_replicas_and_tells_alertmanager() -> None:
    config = read("prometheus/prometheus.yml")
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert jobs["tidegate"] == [f"{replica}:8080" for replica in REPLICAS]
    assert jobs["alertmanager"] == config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert jobs["alertmanager"] == ["alertmanager:9093"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]
    assert mounts("prometheus") == {"/etc/prometheus": "./deploy/prometheus"}


def test_alertmanager_reads_its_configuration() -> None:
    assert "--config.file=/etc/alertmanager/alertmanager.yml" in SERVICES["alertmanager"]["command"]
    assert mounts("alertmanager") == {"/etc/alertmanager": "./deploy/alertmanager"}


def test_grafana_finds_its_sources_and_dashboards() -> None:
    sources = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert [source["url"] for source in sources] == ["http://prometheus:9090", "http://alertmanager:9093"]
    (provider,) = read("grafana/provisioning/dashboards/tidegate.yml")["providers"]
    places = mounts("grafana")
    assert places[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    assert places["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    folder, _, name = home.rpartition("/")
    assert (ROOT / places[folder] / name).is_file()
