"""Panels and queries in Python's words, and as Grafana's JSON has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
ONE = 'instance=~"$instance"'
"""What every query is narrowed to."""
RATE = "$__rate_interval"
WIDTH = 24


@dataclass(frozen=True, kw_only=True)
class Query:
    """One line, or family of lines, of a panel."""

    expr: str
    legend: str = ""
    style: str = "lines"
    """lines, heatmap or table."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture."""

    title: str
    about: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stack: bool = False
    logarithmic: bool = False
    maximum: float | None = None
    thresholds: Sequence[tuple[str, float]] = ()
    """Colour from a value on; green below."""
    mappings: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Value to (text, colour)."""


Rows = Sequence[tuple[str, Sequence[Panel]]]


def rate(metric: str, labels: str, by: str) -> str:
    """Per second, summed."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[{RATE}]))"


def quantile(q: float, metric: str, labels: str, by: str) -> str:
    """A quantile of a histogram over the rate interval."""
    labels_and_bound = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', labels, labels_and_bound)})"


def process_panels(job: str) -> list[Panel]:
    """Whether the processes take work, and what they take of their machines."""

    def each(metric: str, what: str = "") -> Query:
        return Query(expr=f'{metric}{{job="{job}", {ONE}}}', legend=f"{{{{instance}}}}{what}")

    return [
        Panel(
            title="Ready",
            unit="short",
            width=8,
            about="1 while a server takes work: models loaded, not draining.",
            queries=[each("guerdon_ready")],
        ),
        Panel(
            title="File descriptors",
            unit="short",
            width=8,
            about="Open, and the most that may be: without one no connection is taken.",
            queries=[each("process_open_fds"), each("process_max_fds", " limit")],
        ),
        Panel(
            title="Certificate",
            unit="s",
            width=8,
            about="Time until the TLS certificate ends; ten years at most, and without TLS.",
            queries=[
                Query(
                    expr="clamp_max(guerdon_certificate_expiry_timestamp_seconds"
                    f'{{job="{job}", {ONE}}} - time(), 10 * 365 * 86400)',
                    legend="{{instance}}",
                )
            ],
        ),
        Panel(
            title="Certificates and tokens read again",
            unit="short",
            width=24,
            about="Since the start. After a failure what was before is in force; the log says why.",
            queries=[
                Query(
                    expr=f'guerdon_reloads_total{{job="{job}", {ONE}}}',
                    legend="{{instance}} {{what}} {{outcome}}",
                )
            ],
        ),
        Panel(
            title="Memory",
            unit="bytes",
            width=12,
            about="Resident memory of the server's process, and the most that it may be.",
            queries=[
                each("process_resident_memory_bytes"),
                each("guerdon_memory_limit_bytes", " limit"),
            ],
        ),
        Panel(
            title="CPU",
            unit="short",
            width=12,
            about="Cores in use.",
            queries=[
                Query(
                    expr=f'rate(process_cpu_seconds_total{{job="{job}", {ONE}}}[{RATE}])',
                    legend="{{instance}}",
                )
            ],
        ),
    ]


def target(query: Query, place: int) -> dict[str, Any]:
    """Grafana's form of a query."""
    made: dict[str, Any] = {
        "refId": chr(ord("A") + place),
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
    }
    if query.style == "table":
        return made | {"format": "table", "instant": True, "range": False}
    if query.style == "heatmap":
        made["format"] = "heatmap"
    return made | {"range": True, "instant": False}


def defaults(panel: Panel) -> dict[str, Any]:
    """Units, colours, axes."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": value} for colour, value in panel.thresholds]
    fixed = panel.kind == "timeseries"
    made: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if fixed else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [
            {
                "type": "value",
                "options": {
                    value: {"text": text, "color": colour, "index": index}
                    for index, (value, (text, colour)) in enumerate(panel.mappings.items())
                },
            }
        ]
        if panel.mappings
        else [],
    }
    if panel.maximum is not None:
        made |= {"min": 0, "max": panel.maximum}
    if fixed:
        made["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stack else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stack else "none", "group": "A"},
            "scaleDistribution": {"type": "log", "log": 10}
            if panel.logarithmic
            else {"type": "linear"},
        }
    return made


OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "auto",
    },
    "heatmap": {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Spectral", "steps": 64, "reverse": False},
        "cellGap": 0,
        "yAxis": {"unit": "short", "axisPlacement": "left"},
        "rowsFrame": {"layout": "le"},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": True},
    },
    "table": {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}},
}

TABLE = [
    {
        "id": "organize",
        "options": {
            "excludeByName": {"Time": True, "Value": True, "__name__": True, "job": True},
            "indexByName": {
                name: place
                for place, name in enumerate(
                    ("model", "revision", "current", "kind", "mode", "dtype", "device", "instance")
                )
            },
        },
    }
]


def picture(panel: Panel, number: int, left: int, top: int) -> dict[str, Any]:
    """Grafana's form of a panel."""
    overrides: list[dict[str, Any]] = []
    if any(query.legend == "limit" for query in panel.queries):
        overrides.append(
            {
                "matcher": {"id": "byName", "options": "limit"},
                "properties": [
                    {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
                    {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}},
                ],
            }
        )
    made = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height},
        "targets": [target(query, place) for place, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults(panel), "overrides": overrides},
        "options": OPTIONS[panel.kind],
    }
    return made | ({"transformations": TABLE} if panel.kind == "table" else {})


def layout(rows: Rows) -> list[dict[str, Any]]:
    """All panels, row under row, each row's panels from left to right."""
    made: list[dict[str, Any]] = []
    top = 0
    for title, panels in rows:
        grid = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": title,
                "gridPos": grid,
                "collapsed": False,
                "panels": [],
            }
        )
        top += 1
        left = height = 0
        for panel in panels:
            if left + panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            made.append(picture(panel, len(made) + 1, left, top))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return made


def label_variable(name: str, query: str) -> dict[str, Any]:
    """A choice among the values of a label; several, or all."""
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A file of Grafana's."""

    uid: str
    title: str
    about: str
    variables: Sequence[tuple[str, str]]
    """Name and query of each choice among the values of a label."""
    rows: Rows

    def to_json(self) -> dict[str, Any]:
        """As Grafana has it."""
        source = {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "current": {"text": "Prometheus", "value": "guerdon-prometheus"},
        }
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": ["guerdon"],
            "schemaVersion": 41,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "",
            "annotations": {"list": []},
            "links": [],
            "templating": {"list": [source, *(label_variable(*each) for each in self.variables)]},
            "panels": layout(self.rows),
        }

    def text(self) -> str:
        """The file's text."""
        return json.dumps(self.to_json(), indent=2) + "\n"
