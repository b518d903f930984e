"""Every expression of deploy/: of rules, of alerts, of dashboards, and the choices that their variables offer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.deploy.processes import DEPLOY, RULES

DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
# What Grafana puts in: all of everything, and a window of some scrapes of the test.
VARIABLES = {"job": "tidegate", "instance": ".+", "model": ".+", "version": ".+", "__rate_interval": "15s"}

_OUTSIDE = re.compile(r"""(\{[^}]*\}|"[^"]*"|'[^']*')""")
_COMPARISON = re.compile(r"(==|!=|<=|>=|<|>)(?!\s*bool)")
_ABSENT = re.compile(r"absent\((.*)\)", re.DOTALL)


class Used(NamedTuple):
    """An expression, and where it stands."""

    where: str
    expr: str


def rules() -> list[dict[str, Any]]:
    """All rules of deploy/prometheus, as they stand there."""
    return [rule for file in RULES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def recordings() -> list[Used]:
    return [Used(_name(rule), rule["expr"]) for rule in rules() if "record" in rule]


def alerts() -> list[Used]:
    return [Used(_name(rule), rule["expr"]) for rule in rules() if "alert" in rule]


def panels() -> list[Used]:
    """What the panels of all dashboards ask, with their variables filled in."""
    return [
        Used(f"{file.stem}: {panel['title']}", filled(target["expr"]))
        for file in DASHBOARDS
        for panel in panels_of(file)
        for target in panel["targets"]
    ]


def drawn_alerts() -> list[Used]:
    return [
        Used(f"{file.stem}: {annotation['name']}", filled(annotation["expr"]))
        for file in DASHBOARDS
        for annotation in json.loads(file.read_text())["annotations"]["list"]
    ]


class Choice(NamedTuple):
    """A variable that offers the values of a label of the series that a selector finds."""

    where: str
    selector: str
    label: str


def choices() -> Iterator[Choice]:
    for file in DASHBOARDS:
        for variable in json.loads(file.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
                assert found is not None, variable
                yield Choice(f"{file.stem}: {variable['name']}", filled(found[1]), found[2])


def panels_of(file: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard, without the headings of rows."""
    return [panel for panel in json.loads(file.read_text())["panels"] if panel["type"] != "row"]


def filled(expr: str) -> str:
    """Put values in for variables; KeyError for one that is not known."""
    return re.sub(r"\$(\w+)", lambda found: VARIABLES[found[1]], expr)


def measured(expr: str) -> str:
    """Return an alert's expression so that it says something where all is well, too.

    A comparison leaves nothing of what does not fulfil it; with `bool` it says 0, and both sides of an `and` must
    still have the same labels. `absent` says nothing as long as its argument does: that is asked instead.
    """
    absent = _ABSENT.fullmatch(expr.strip())
    if absent:
        return absent[1]
    return _outside_of_selectors(expr, lambda text: _COMPARISON.sub(r"\1 bool", text))


def _outside_of_selectors(expr: str, change: Callable[[str], str]) -> str:
    parts = _OUTSIDE.split(expr)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))


def _name(rule: dict[str, Any]) -> str:
    labels = "".join(f" {value}" for value in rule.get("labels", {}).values())
    return f"{rule.get('alert', rule.get('record'))}{labels}"
