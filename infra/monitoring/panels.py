"""Panels of one look, over the builders of Grafana's Foundation SDK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Panel,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from msgspec import Struct

from contract.telemetry import Metric
from infra.monitoring.promql import select

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG: Final = "riverlens"
# Of Grafana's 24 columns; with these every row comes out even.
_STAT, _GRAPH = (4, 4), (8, 8)
_GREEN, _AMBER, _RED = "green", "orange", "red"

AnyPanel = Builder[Panel]


class Query(Struct, frozen=True):
    """An expression, and how its series are called: `{{label}}` stands for a label."""

    expression: str
    legend: str = ""


class Limits(Struct, frozen=True):
    """From which value on a panel is amber, and red; `falling` where less is worse."""

    amber: float | None
    red: float | None
    falling: bool = False

    def build(self) -> dashboards.ThresholdsConfig:
        """As Grafana wants them: colours upwards from the lowest value."""
        amber, red = self.amber, self.red
        steps: list[tuple[float | None, str]]
        if self.falling:
            top = _AMBER if amber is not None else _RED
            steps = [(None, _RED if red is not None else top)]
            steps += [(red, _AMBER if amber is not None else _GREEN)] if red is not None else []
            steps += [(amber, _GREEN)] if amber is not None else []
        else:
            steps = [(None, _GREEN)]
            steps += [(amber, _AMBER)] if amber is not None else []
            steps += [(red, _RED)] if red is not None else []
        return (
            dashboards.ThresholdsConfig()
            .mode(ThresholdsMode.ABSOLUTE)
            .steps([Threshold(value=value, color=colour) for value, colour in steps])
        )


def _targets(queries: Sequence[Query]) -> list[Builder[Dataquery]]:
    return [
        prometheus.Dataquery()
        .ref_id(chr(ord("A") + place))
        .expr(query.expression)
        .datasource(SOURCE)
        .range()
        .legend_format(query.legend or "__auto")
        for place, query in enumerate(queries)
    ]


def graph(
    title: str,
    unit: str,
    *queries: Query,
    about: str,
    limits: Limits | None = None,
    top: float | None = None,
) -> AnyPanel:
    """Lines over time, from 0 to `top`. `about` says what a person reads from it; limits are drawn as lines."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(_GRAPH[0])
        .height(_GRAPH[1])
        .fill_opacity(8)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .targets(_targets(queries))
    )
    if top is not None:
        panel = panel.max(top)
    if limits is not None:
        style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(limits.build()).thresholds_style(style)
    return panel


def number(title: str, unit: str, query: Query, *, about: str, limits: Limits | None = None) -> AnyPanel:
    """One number as of now, coloured by its limits, over a line of its past."""
    panel = (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .span(_STAT[0])
        .height(_STAT[1])
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.BACKGROUND if limits is not None else BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .targets(_targets([query]))
    )
    return panel if limits is None else panel.thresholds(limits.build())


class Row(Struct, frozen=True):
    """A heading and the panels below it."""

    title: str
    panels: tuple[AnyPanel, ...]


def dashboard(uid: str, title: str, about: str, collections_of: Metric, rows: Sequence[Row]) -> Dashboard:
    """A dashboard with a variable for the data source and one for the collections that `collections_of` knows."""
    built = (
        dashboards.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .refresh("30s")
        .time("now-3h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboards.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboards.QueryVariable("collection")
            .label("Collection")
            .datasource(SOURCE)
            .query(f"label_values({select(collections_of)}, collection)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(multi=True)
            .include_all(include_all=True)
            .all_value(".*")
        )
        .link(
            dashboards.DashboardLink("Riverlens")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(as_dropdown=True)
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
    )
    for row in rows:
        built = built.with_row(dashboards.Row(row.title))
        for panel in row.panels:
            built = built.with_panel(panel)
    whole = built.build()
    for number, placed in enumerate(whole.panels or [], 1):
        placed.id_val = number
    return whole


SECONDS: Final = units.Seconds
SHORT: Final = units.Short
SHARE: Final = units.PercentUnit
BYTES: Final = units.BytesIEC
PER_SECOND: Final = units.RequestsPerSecond
EVENTS_PER_SECOND: Final = units.EventsPerSecond
