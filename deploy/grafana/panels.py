"""The kinds of panel, as functions of what they show.

Knows how a value looks: units, colours, legends, thresholds. Knows no metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel = Builder[models.Panel]
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

HEIGHT = 8
NUMBER_HEIGHT = 4
GREEN, ORANGE, RED = "green", "orange", "red"

SECONDS = units.Seconds
BYTES = units.BytesIEC
SHARE = units.PercentUnit
COUNT = units.Short
REQUESTS = units.RequestsPerSecond


class Query(NamedTuple):
    """An expression and the name of its series; ``{{label}}`` stands for a label's value."""

    expr: str
    legend: str


class Level(NamedTuple):
    """The colour from this value on."""

    value: float
    color: str


class About(NamedTuple):
    """A panel's title, description and unit, one of Grafana's."""

    title: str
    text: str
    unit: str


class _Described(Protocol):
    """What the builders of all kinds of panel have in common."""

    def title(self, title: str) -> Self: ...
    def description(self, description: str) -> Self: ...
    def datasource(self, datasource: models.DataSourceRef) -> Self: ...
    def unit(self, unit: str) -> Self: ...
    def span(self, w: int) -> Self: ...
    def height(self, h: int) -> Self: ...
    def targets(self, targets: list[Builder[variants.Dataquery]]) -> Self: ...


_Panel = TypeVar("_Panel", bound=_Described)


def lines(
    about: About,
    *queries: Query,
    width: int = 12,
    limit: float | None = None,
    is_stacked: bool = False,
    is_from_zero: bool = True,
) -> timeseries.Panel:
    """Return curves over time; ``limit`` is drawn as a dashed line."""
    panel = _described(timeseries.Panel(), about, width, HEIGHT).targets(_targets(queries))
    if is_from_zero:
        panel.min(0)
    panel.line_width(1).fill_opacity(60 if is_stacked else 8).show_points(common.VisibilityMode.NEVER)
    panel.tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    panel.legend(_legend())
    if is_stacked:
        panel.stacking(build.StackingConfig().mode(common.StackingMode.NORMAL).group("all"))
    if limit is not None:
        panel.thresholds(_levels([Level(limit, RED)]))
        panel.thresholds_style(build.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    return panel


def dashed(panel: timeseries.Panel, pattern: str, color: str) -> timeseries.Panel:
    """Draw the series whose names match ``pattern`` as dashed lines of one colour."""
    look = [
        models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 8]}),
        models.DynamicConfigValue("custom.fillOpacity", 0),
        models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color}),
    ]
    return panel.override_by_regexp(pattern, look)


def number(about: About, query: Query, levels: Sequence[Level] = (), width: int = 4) -> stat.Panel:
    """Return the latest value, large, in the colour of the level it has reached."""
    panel = _described(stat.Panel(), about, width, NUMBER_HEIGHT).targets(_targets([query]))
    panel.reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.graph_mode(common.BigValueGraphMode.AREA if levels else common.BigValueGraphMode.NONE)
    panel.color_mode(common.BigValueColorMode.VALUE)
    return panel.thresholds(_levels(levels))


def heat(about: About, buckets: str, width: int = 12) -> heatmap.Panel:
    """Return the buckets of a histogram over time; ``buckets`` is the increase of each, by ``le``."""
    target = _query(Query(buckets, "{{le}}"), 0).format(PromQueryFormat.HEATMAP)
    panel = _described(heatmap.Panel(), about, width, HEIGHT).targets([target])
    panel.calculate(False).cell_gap(1).filter_values(heatmap.FilterValueRange().le(1e-9))
    panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Spectral").steps(64).exponent(0.5))
    panel.y_axis(heatmap.YAxisConfig().unit(about.unit))
    return panel.mode(common.TooltipDisplayMode.SINGLE).show_y_histogram().hide_legend()


class State(NamedTuple):
    """What a value means."""

    text: str
    color: str


def states(about: About, query: Query, meanings: Sequence[State], width: int = 24) -> statetimeline.Panel:
    """Return bars of states over time; the value i means ``meanings[i]``."""
    panel = _described(statetimeline.Panel(), about, width, HEIGHT).targets(_targets([query]))
    panel.mappings([_mapping(meanings)]).fill_opacity(80).line_width(0).legend(_legend())
    panel.show_value(common.VisibilityMode.AUTO).merge_values(merge_values=True)
    return panel.thresholds(_levels([Level(value, state.color) for value, state in enumerate(meanings)]))


def listing(about: About, query: Query, labels: Sequence[str], width: int = 12) -> table.Panel:
    """Return a table of the series' labels, as of now."""
    target = _query(query, 0).format(PromQueryFormat.TABLE).instant()
    panel = _described(table.Panel(), about, width, HEIGHT).targets([target])
    chosen = {"include": {"pattern": f"^({'|'.join(labels)})$"}}
    return panel.with_transformation(models.DataTransformerConfig("filterFieldsByName", options=chosen))


def _described(panel: _Panel, about: About, width: int, height: int) -> _Panel:
    panel.title(about.title).description(about.text).unit(about.unit).datasource(SOURCE)
    return panel.span(width).height(height)


def _targets(queries: Sequence[Query]) -> list[Builder[variants.Dataquery]]:
    return [_query(query, index) for index, query in enumerate(queries)]


def _query(query: Query, index: int) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend)
    return target.datasource(SOURCE).ref_id(chr(ord("A") + index)).range()


def _levels(levels: Sequence[Level]) -> dashboard.ThresholdsConfig:
    first = [] if levels and levels[0].value == 0 else [models.Threshold(None, GREEN)]
    steps = [models.Threshold(float(value), color) for value, color in levels]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps([*first, *steps])


def _mapping(meanings: Sequence[State]) -> models.ValueMap:
    return models.ValueMap(
        {
            str(value): models.ValueMappingResult(state.text, state.color, index=value)
            for value, state in enumerate(meanings)
        }
    )


def _legend() -> build.VizLegendOptions:
    legend = build.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM)
    return legend.display_mode(common.LegendDisplayMode.LIST).calcs([])
