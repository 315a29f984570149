"""The dashboard and the rules as files: whole, in order, and of metrics that exist."""

from __future__ import annotations

import itertools
import re
import subprocess

import pytest
import yaml

from guerdon.gateway.metrics import GatewayMetrics
from guerdon.reward.metrics import RewardMetrics
from guerdon.sampler.metrics import SamplerMetrics

from .support import (
    ALERTS,
    DASHBOARDS,
    DEPLOY,
    FOREIGN,
    GATEWAY,
    PROMETHEUS,
    REWARD,
    ROOT,
    RULE_TESTS,
    RULES,
    SAMPLER,
    dashboard,
    known_series,
    load_script,
    need_program,
    panel_queries,
    rules,
    series_in,
)

SERIES = {
    GATEWAY: known_series(GatewayMetrics),
    REWARD: known_series(RewardMetrics),
    SAMPLER: known_series(SamplerMetrics),
}
EVERY = set[str]().union(*SERIES.values())
each_dashboard = pytest.mark.parametrize("file", SERIES)


def test_the_json_is_what_the_script_makes() -> None:
    made = load_script(DEPLOY / "grafana" / "make_dashboard.py").texts()
    kept = {path.name: path.read_text() for path in DASHBOARDS.iterdir()}
    assert made == kept, "run: python deploy/grafana/make_dashboard.py"


@each_dashboard
def test_panels_have_their_own_ids_and_places(file: str) -> None:
    panels = dashboard(file)["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24, panel["title"]
        own = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert not own & cells, f"{panel['title']} lies over another panel"
        cells |= own


@each_dashboard
def test_panels_say_what_they_show_and_ask_the_chosen_source(file: str) -> None:
    for panel in dashboard(file)["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters))
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@each_dashboard
def test_the_provisioned_source_is_the_dashboards_default(file: str) -> None:
    provisioned = DEPLOY / "grafana/provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(provisioned.read_text())["datasources"]
    variables = {each["name"]: each for each in dashboard(file)["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]
    scrape = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scrape["scrape_interval"]


def test_dashboards_are_told_apart() -> None:
    assert len({dashboard(file)["uid"] for file in SERIES}) == len(SERIES)


@each_dashboard
def test_every_variable_that_is_used_is_defined(file: str) -> None:
    defined = {each["name"] for each in dashboard(file)["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", (DASHBOARDS / file).read_text()))
    assert used - {"__rate_interval", "__all"} == defined


def check_expressions(expressions: dict[str, str], known: set[str]) -> None:
    for name, expression in expressions.items():
        asked = series_in(expression)
        assert asked, f"{name} asks for nothing: {expression}"
        assert asked <= known, f"{name} asks for {asked - known}"


@each_dashboard
def test_panels_ask_only_for_metrics_that_exist(file: str) -> None:
    variables = dashboard(file)["templating"]["list"]
    own = {each["name"]: each["definition"] for each in variables if "definition" in each}
    check_expressions(panel_queries(file) | own, SERIES[file] | FOREIGN)


def test_rules_ask_only_for_metrics_that_exist() -> None:
    recorded = {str(rule["record"]) for rule in rules("rules.yml")}
    for file in RULES:
        found = {str(rule.get("record") or rule["alert"]): rule["expr"] for rule in rules(file)}
        check_expressions(found, EVERY | FOREIGN | recorded)


@each_dashboard
def test_every_metric_is_on_the_dashboard(file: str) -> None:
    stems = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in SERIES[file]}
    shown = set().union(*map(series_in, panel_queries(file).values()))
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown}
    assert stems - shown == set()


def test_promtool_accepts_the_configuration() -> None:
    done = subprocess.run(
        [need_program("promtool"), "check", "config", PROMETHEUS / "prometheus.yml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_ring_on_their_fault_and_only_then() -> None:
    done = subprocess.run(
        [need_program("promtool"), "test", "rules", *RULE_TESTS],
        capture_output=True,
        text=True,
        cwd=PROMETHEUS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_to_ring_and_explained() -> None:
    all_alerts = [rule for file in ALERTS for rule in rules(file)]
    names = {rule["alert"] for rule in all_alerts}
    tests = [
        test
        for file in RULE_TESTS
        for test in yaml.safe_load((PROMETHEUS / file).read_text())["tests"]
    ]
    rung = {
        each["alertname"]
        for test in tests
        for each in test["alert_rule_test"]
        if each.get("exp_alerts")
    }
    assert rung == names
    explained = (ROOT / "docs" / "operations.md").read_text()
    assert {name for name in names if f"`{name}`" not in explained} == set()
    for rule in all_alerts:
        assert rule["labels"]["severity"] in {"page", "ticket", "info"}
        assert rule["annotations"]["summary"]


@pytest.mark.parametrize("part", ["metrics", "alerts"])
def test_operations_names_nothing_that_is_not_there(part: str) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    if part == "alerts":
        assert set(re.findall(r"`(Guerdon[A-Z]\w+)`", text)) == {
            rule["alert"] for file in ALERTS for rule in rules(file)
        }
        return
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in EVERY}
    written = set(re.findall(r"`(guerdon_\w+)`", text))
    assert written == stems
