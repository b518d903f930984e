"""The configurations of Prometheus and Alertmanager, by their own tools."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import promql
from tests.deploy.processes import DEPLOY, RULES, amtool, promtool

CASES = sorted((DEPLOY / "prometheus/tests").glob("*.yml"))
METRICS = re.compile(r"\b(?:tidegate|process)_\w+")


def test_prometheus_accepts_its_configuration() -> None:
    checked = promtool("check", "config", DEPLOY / "prometheus/prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    assert f"{len(RULES)} rule files found" in checked.stdout


def test_rules_have_no_lint() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)
    assert checked.returncode == 0, checked.stderr


def test_alertmanager_accepts_its_configuration() -> None:
    checked = amtool("check-config", DEPLOY / "alertmanager/alertmanager.yml")
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_rules_do_as_their_cases_say(case: Path) -> None:
    tested = promtool("test", "rules", case)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_case_where_it_fires_and_one_where_it_does_not() -> None:
    asked = [test for case in CASES for group in yaml.safe_load(case.read_text())["tests"] for test in alerts_of(group)]
    fires = {test["alertname"] for test in asked if test["exp_alerts"]}
    # Where several servers or models are in a case, that only some are named is the other half.
    named = {rule["alert"] for rule in promql.rules() if "alert" in rule}
    assert named <= fires
    quiet = {test["alertname"] for test in asked if not test["exp_alerts"]}
    compared = {test["alertname"] for test in asked if 0 < len(test["exp_alerts"]) < test["series"]}
    assert named <= quiet | compared


def alerts_of(group: dict[str, Any]) -> list[dict[str, Any]]:
    return [test | {"series": len(group["input_series"])} for test in group.get("alert_rule_test", [])]


def test_alerts_say_how_bad_it_is_and_what_it_means() -> None:
    for rule in promql.rules():
        if "alert" in rule:
            assert rule["alert"].startswith("Tidegate")
            assert rule["labels"]["severity"] in {"critical", "warning"}, rule
            assert set(rule["annotations"]) == {"summary", "description"}, rule
            # Prometheus knows the labels of the expression only: others would be empty.
            assert not set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) & {"severity", "window"}, rule


def test_every_alert_is_explained() -> None:
    documented = re.findall(r"^\| `(Tidegate\w+)`", (DEPLOY.parent / "docs/monitoring.md").read_text(), re.MULTILINE)
    assert documented == list(dict.fromkeys(promql_names()))


def promql_names() -> list[str]:
    order = ["alerts", "objectives"]
    groups = [yaml.safe_load((DEPLOY / f"prometheus/rules/{name}.yml").read_text())["groups"] for name in order]
    return [rule["alert"] for file in groups for group in file for rule in group["rules"] if "alert" in rule]


def test_alertmanager_knows_whom_to_tell_of_each_alert() -> None:
    config = DEPLOY / "alertmanager/alertmanager.yml"
    for severity, receiver in (("critical", "somebody-now"), ("warning", "somebody-today")):
        routed = amtool("config", "routes", "test", f"--config.file={config}", f"severity={severity}")
        assert routed.stdout.strip() == receiver


def test_inhibitions_name_alerts_that_exist() -> None:
    config = yaml.safe_load((DEPLOY / "alertmanager/alertmanager.yml").read_text())
    named = {rule["alert"] for rule in promql.rules() if "alert" in rule}
    text = str(config["inhibit_rules"])
    assert set(re.findall(r"Tidegate[A-Z]\w+", text)) <= named
