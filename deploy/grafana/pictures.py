"""Panels and queries in Python's words, and as Grafana's JSON has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
ONE = 'instance=~"$instance"'
"""What every query is narrowed to."""
RATE = "$__rate_interval"
WIDTH = 24


@dataclass(frozen=True)
class Query:
    """One line, or family of lines, of a panel."""

    expr: str
    legend: str = ""
    style: str = "lines"
    """lines, heatmap or table."""


@dataclass(frozen=True)
class Panel:
    """One picture."""

    title: str
    about: str
    queries: Sequence[Query]
    _: KW_ONLY
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


def rate(metric: str, labels: str, by: str = "") -> str:
    """Per second, summed."""
    group = f" by ({by}) " if by else ""
    return f"sum{group}(rate({metric}{{{labels}}}[{RATE}]))"


def quantile(q: float, metric: str, labels: str, by: str) -> str:
    """A quantile of a histogram over the rate interval."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', labels, f'{by}, le'.lstrip(', '))})"


def names(by: str) -> str:
    """The legend that tells series apart by labels."""
    return " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",") if label)


def rates(metric: str, labels: str, by: str) -> Query:
    """Per second, by labels."""
    return Query(rate(metric, labels, by), names(by))


def sums(metric: str, by: str, labels: str = ONE) -> Query:
    """The sum of a gauge, by labels."""
    return Query(f"sum by ({by}) ({metric}{{{labels}}})", names(by))


def quantiles(
    metric: str, labels: str, by: str = "", qs: Sequence[float] = (0.5, 0.95, 0.99)
) -> list[Query]:
    """p50, p95, … of a histogram, by labels."""
    return [Query(quantile(q, metric, labels, by), f"p{q * 100:g} {names(by)}".strip()) for q in qs]


def stat(title: str, about: str, query: Query, **other: Any) -> Panel:
    """A number that is seen at once."""
    return Panel(title, about, [query], **{"kind": "stat", "width": 4, "height": 4} | other)


def engines_up(what: str, prefix: str) -> Panel:
    """Whether all engines take work."""
    return stat(
        "Engines up",
        f"{what} whose engine takes work. Red: some don't.",
        Query(f"min({prefix}_engine_up{{{ONE}}})", "all up"),
        mappings={"1": ("all up", "green"), "0": ("DOWN", "red")},
    )


def failures(prefix: str, labels: str) -> Panel:
    """The part of the calls that failed by a fault of the server."""
    requests = f"{prefix}_requests_total"
    failed = rate(requests, f'{labels}, code=~"INTERNAL|UNKNOWN|DATA_LOSS"')
    return stat(
        "Failures of ours",
        "Calls that ended with INTERNAL, UNKNOWN or DATA_LOSS.",
        Query(f"({failed} or vector(0)) / {rate(requests, labels)}"),
        unit="percentunit",
        thresholds=[("orange", 0.001), ("red", 0.01)],
    )


def outcomes(about: str, prefix: str, labels: str, *, width: int = 8) -> Panel:
    """Calls by status code, those that were refused unread among them."""
    refused = rate(f"{prefix}_refused_calls_total", ONE, "code") + " or vector(0)"
    return Panel(
        "Calls by outcome",
        f"gRPC status. RESOURCE_EXHAUSTED is overload{about}",
        [
            rates(f"{prefix}_requests_total", labels, "code"),
            Query(refused, "{{code}} (from headers)"),
        ],
        unit="reqps",
        stack=True,
        width=width,
    )


def process_panels(job: str) -> list[Panel]:
    """Whether the processes take work, and what they take of their machines."""
    of_job = f'{{job="{job}", {ONE}}}'

    def each(metric: str, what: str = "") -> Query:
        return Query(f"{metric}{of_job}", f"{{{{instance}}}}{what}")

    certificate = f"guerdon_certificate_expiry_timestamp_seconds{of_job} - time()"
    return [
        Panel(
            "Ready",
            "1 while a server takes work: models loaded, not draining.",
            [each("guerdon_ready")],
        ),
        Panel(
            "File descriptors",
            "Open, and the most that may be: without one no connection is taken.",
            [each("process_open_fds"), each("process_max_fds", " limit")],
        ),
        Panel(
            "Certificate",
            "Time until the TLS certificate ends; ten years at most, and without TLS.",
            [Query(f"clamp_max({certificate}, 10 * 365 * 86400)", "{{instance}}")],
            unit="s",
        ),
        Panel(
            "Certificates and tokens read again",
            "Since the start. After a failure what was before is in force; the log says why.",
            [each("guerdon_reloads_total", " {{what}} {{outcome}}")],
            width=24,
        ),
        Panel(
            "Memory",
            "Of the server and of the processes that it started, and the most that it may be.",
            [each("guerdon_resident_memory_bytes"), each("guerdon_memory_limit_bytes", " limit")],
            unit="bytes",
            width=12,
        ),
        Panel(
            "CPU",
            "Cores that the server's own process uses, without what it started.",
            [Query(f"rate(process_cpu_seconds_total{of_job}[{RATE}])", "{{instance}}")],
            width=12,
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
