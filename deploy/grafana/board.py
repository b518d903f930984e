"""What all dashboards have in common: variables, links to each other, alerts as annotations, rows.

Knows the labels that select what is shown, but no metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.panels import RED, SOURCE, Panel

TAG = "tidegate"
INSTANCE = 'job=~"$job",instance=~"$instance"'
"""Selects the servers that the variables name."""

MODEL = f'{INSTANCE},model=~"$model",version=~"$version"'
"""Selects the models on these servers that the variables name."""

RATE = "$__rate_interval"
"""At least four scrapes, and at least the distance between two points of a curve."""

ALERTS = 'ALERTS{alertname=~"Tidegate.+",alertstate="firing"}'


class Row(NamedTuple):
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


class Board(NamedTuple):
    """A dashboard: ``uid`` is its address and its file's name."""

    uid: str
    title: str
    text: str


def assemble(board: Board, rows: Sequence[Row], *, is_by_model: bool = False) -> models.Dashboard:
    """Return the dashboard; ``is_by_model`` adds variables that choose models."""
    made = build.Dashboard(f"tidegate / {board.title}").uid(board.uid).description(board.text).tags([TAG])
    made.time("now-1h", "now").refresh("30s").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    made.link(_links()).annotation(_alerts()).with_variable(_source())
    made.with_variable(_choice("job", "Job", "label_values(tidegate_ready, job)"))
    made.with_variable(_choice("instance", "Server", 'label_values(tidegate_ready{job=~"$job"}, instance)'))
    if is_by_model:
        known = f"tidegate_model_info{{{INSTANCE}}}"
        made.with_variable(_choice("model", "Model", f"label_values({known}, model)"))
        known = f'tidegate_model_info{{{INSTANCE},model=~"$model"}}'
        made.with_variable(_choice("version", "Version", f"label_values({known}, version)"))
    for row in rows:
        made.with_row(build.Row(row.title))
        for panel in row.panels:
            made.with_panel(panel)
    return _numbered(made.build())


def _numbered(board: models.Dashboard) -> models.Dashboard:
    for number, panel in enumerate(board.panels or [], start=1):
        panel.id_val = number
    return board


def _source() -> build.DatasourceVariable:
    return build.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def _choice(name: str, label: str, query: str) -> build.QueryVariable:
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    choice = build.QueryVariable(name).label(label).datasource(SOURCE).query(query).current(everything)
    choice.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return choice.multi(True).include_all(True).all_value(".+")


def _alerts() -> build.AnnotationQuery:
    return build.AnnotationQuery().name("Alerts").datasource(SOURCE).enable(True).icon_color(RED).expr(ALERTS)


def _links() -> build.DashboardLink:
    link = build.DashboardLink("tidegate").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.include_vars(True).keep_time(True).as_dropdown(False)
