"""A real Prometheus beside a real server under load: every expression of deploy/ says something."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

import pytest

from tests.deploy import promql
from tests.deploy.busy import kept_busy, write_bundles
from tests.deploy.processes import DEPLOY, Prometheus, prometheus, until
from tests.deploy.promql import Used
from tests.servers import serving


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus before a server that is busy as long as anybody looks."""
    bundles = write_bundles(tmp_path_factory.mktemp("bundles"))
    with serving(bundles) as server, kept_busy(server), prometheus([server.http.removeprefix("http://")]) as running:
        yield running


def silent(running: Prometheus, uses: Iterable[Used]) -> list[Used]:
    """Those that have no data, or nothing but what is no number."""
    return [use for use in uses if not any(math.isfinite(sample.value) for sample in running.query(use.expr))]


def says_something(running: Prometheus, uses: list[Used]) -> None:
    left = uses
    assert left

    def all_have_spoken() -> bool:
        nonlocal left
        left = silent(running, left)
        return not left

    try:
        until(all_have_spoken)
    except AssertionError:
        pytest.fail(f"no data: {left}")


def test_every_recording_rule_has_data(watching: Prometheus) -> None:
    says_something(watching, promql.recordings())
    recorded = [Used(rule.where, rule.where.split()[0]) for rule in promql.recordings()]
    says_something(watching, recorded)


def test_every_alert_has_something_to_judge(watching: Prometheus) -> None:
    says_something(watching, [Used(where, promql.measured(expr)) for where, expr in promql.alerts()])


def test_every_panel_has_data(watching: Prometheus) -> None:
    says_something(watching, promql.panels())


def test_alerts_are_drawn_into_the_dashboards(watching: Prometheus) -> None:
    """The load's model is asked about loads unlike those that it knows, so one alert fires."""
    says_something(watching, promql.drawn_alerts())
    drifting = {"alertname": "TidegateDrift", "model": "tiny-forecast"}
    until(lambda: any(drifting.items() <= labels.items() for labels in watching.firing()))


def test_every_variable_offers_a_choice(watching: Prometheus) -> None:
    left = list(promql.choices())
    assert left
    until(lambda: all(watching.label_values(choice.label, choice.selector) for choice in left))


def test_all_rules_are_evaluated_without_an_error(watching: Prometheus) -> None:
    rules = until(lambda: [] if any(rule["health"] == "unknown" for rule in watching.rules()) else watching.rules())
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    assert len(rules) == len(promql.rules())


def test_the_documentation_names_every_metric_and_no_other(watching: Prometheus) -> None:
    cells = re.findall(r"^\| (`tidegate_[^|]+)", (DEPLOY.parent / "docs/monitoring.md").read_text(), re.MULTILINE)
    documented = {name for cell in cells for name in re.findall(r"tidegate_\w+", cell)}
    served = until(lambda: watching.label_values("__name__", '{job="tidegate",__name__=~"tidegate_.+"}'))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in served} == documented


def test_a_comparison_is_asked_for_its_left_side() -> None:
    assert promql.measured('a{b="c>d"} > 1 and e <= 2') == 'a{b="c>d"} > bool 1 and e <= bool 2'
    assert promql.measured('absent(up{job="x"})') == 'up{job="x"}'
