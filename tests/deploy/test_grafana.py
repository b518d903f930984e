"""The dashboards: as their generator writes them, as Grafana reads them, and tidy."""

from __future__ import annotations

import copy
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.writing import FOLDER, texts
from tests.deploy import promql
from tests.deploy.processes import DEPLOY
from tests.deploy.schema import faults

each_dashboard = pytest.mark.parametrize("file", promql.DASHBOARDS, ids=lambda file: file.stem)
PROVISIONING = DEPLOY / "grafana/provisioning"


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_the_files_are_what_the_generator_writes() -> None:
    written = {file.name: file.read_text() for file in FOLDER.iterdir()}
    assert written == texts(), "run make dashboards"


@each_dashboard
def test_a_dashboard_is_as_grafana_publishes_its_schema(file: Path) -> None:
    assert faults(read(file)) == []


def test_the_schema_is_held_against_the_files() -> None:
    """An unknown key, a wrong type, and a value that is none of an enumeration are found."""
    document = read(promql.DASHBOARDS[0])
    panel = next(panel for panel in document["panels"] if panel["type"] == "timeseries")
    for change in ({"tittle": "x"}, {"title": 3}, {"options": panel["options"] | {"tooltip": {"mode": "some"}}}):
        changed = copy.deepcopy(document)
        next(panel for panel in changed["panels"] if panel["type"] == "timeseries").update(change)
        assert faults(changed), change


@each_dashboard
def test_every_panel_has_a_title_a_description_a_unit_and_the_chosen_source(file: Path) -> None:
    for panel in promql.panels_of(file):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["fieldConfig"]["defaults"].get("thresholds") or panel["type"] != "stat", panel["title"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), panel["title"]
    titles = [panel["title"] for panel in promql.panels_of(file)]
    assert len(titles) == len(set(titles))


@each_dashboard
def test_every_query_is_narrowed_by_the_variables(file: Path) -> None:
    document = read(file)
    names = {variable["name"] for variable in document["templating"]["list"]}
    assert {"datasource", "job", "instance"} <= names
    for panel in promql.panels_of(file):
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used - {"__rate_interval"} <= names
            assert "job" in used or "ALERTS" in target["expr"], target["expr"]
            # A rate over a fixed window is wrong at one zoom or another; what lasts an hour says so.
            assert not re.search(r"(rate|increase)\([^\[]+\[(?!\$__rate_interval|1h)", target["expr"]), target["expr"]


@each_dashboard
def test_panels_lie_side_by_side(file: Path) -> None:
    places = [panel["gridPos"] for panel in read(file)["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart or above, (one, other)
    assert len({panel["id"] for panel in read(file)["panels"]}) == len(places)


def test_what_is_recorded_is_drawn_or_judged() -> None:
    used = " ".join(use.expr for use in (*promql.panels(), *promql.alerts()))
    assert [rule for rule in promql.recordings() if rule.where.split()[0] not in used] == []


def test_grafana_is_told_where_prometheus_and_the_dashboards_are() -> None:
    sources = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    scraping = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    prometheus, alertmanager = sources
    assert prometheus["jsonData"]["timeInterval"] == scraping
    assert prometheus["jsonData"]["alertmanagerUid"] == alertmanager["uid"]
