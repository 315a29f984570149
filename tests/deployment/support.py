"""Where the files of deploy/ are, what they ask Prometheus, and a real Prometheus."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import yaml
from prometheus_client import CollectorRegistry
from tests.support import packages
from tests.support.ports import free_port

from guerdon.gateway.metrics import GatewayMetrics
from guerdon.reward.metrics import RewardMetrics
from guerdon.sampler.metrics import SamplerMetrics
from guerdon.serving.lifecycle import Lifecycle
from guerdon.serving.metrics import ServiceMetrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
GATEWAY, REWARD, SAMPLER = "gateway.json", "reward-server.json", "sampler.json"
PROMETHEUS = DEPLOY / "prometheus"
ALERTS = ("alerts.yml", "gateway-alerts.yml", "sampler-alerts.yml", "service-alerts.yml")
RULES = ("rules.yml", *ALERTS)
RULE_TESTS = ("tests.yml", "gateway-tests.yml", "sampler-tests.yml", "service-tests.yml")

FOREIGN = {
    "up",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
}
"""Metrics that are Prometheus's own, or of every process."""


def need_program(name: str) -> str:
    """Its path; without it the test is skipped, and fails where it must run (CI)."""
    required = bool(os.environ.get("GUERDON_REQUIRE_PROMETHEUS"))
    return packages.need_program(name, "prometheus", "prometheus-alertmanager", required=required)


def load_script(path: Path) -> ModuleType:
    """A script as a module; it finds those beside it."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def dashboard(file: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((DASHBOARDS / file).read_text())
    return made


def panel_queries(file: str) -> dict[str, str]:
    """`row panel letter` to the expression, as the dashboard has it."""
    found: dict[str, str] = {}
    row = ""
    for panel in dashboard(file)["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        for target in panel.get("targets", []):
            found[f"{row} / {panel['title']} / {target['refId']}"] = target["expr"]
    return found


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def known_series(
    kind: type[GatewayMetrics] | type[RewardMetrics] | type[SamplerMetrics],
) -> set[str]:
    """Every series name that a server can expose, `_total`, `_bucket` … included."""
    registry = CollectorRegistry()
    own = (kind(registry), ServiceMetrics(registry, Lifecycle(), None))
    names: set[str] = set()
    for metric in (each for metrics in own for each in vars(metrics).values()):
        labels = dict.fromkeys(metric._labelnames, "x")
        (metric.labels(**labels) if labels else metric).collect()
    for family in registry.collect():
        names |= {sample.name for sample in family.samples}
    return {name for name in names if not name.endswith("_created")}


def series_in(expression: str) -> set[str]:
    """The series and recorded names that an expression asks for."""
    bare = re.sub(r'"[^"]*"', "", expression)
    words = set(re.findall(r"[a-zA-Z_:][\w:]*", bare))
    return {word for word in words if "guerdon_" in word or word in FOREIGN}


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that scrapes."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10)
        body = answer.json()
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result

    def wait_for(self, expression: str, seconds: float = 100) -> None:
        """Until an expression has a value."""
        end = time.monotonic() + seconds
        while not self.query(expression):
            assert time.monotonic() < end, f"no data after {seconds} s: {expression}"
            time.sleep(0.3)

    def wait_for_scrapes(self, more: int) -> None:
        """Until its target was scraped so many times more."""
        scrapes = "count_over_time(up[1h])"
        (series,) = self.query(scrapes)
        self.wait_for(f"{scrapes} >= {int(series['value'][1]) + more}")


@contextlib.contextmanager
def running_prometheus(
    folder: Path, target: str, job_name: str = "guerdon-reward"
) -> Iterator[Prometheus]:
    """The checked-in configuration, with the test's target and a scrape each second."""
    program = need_program("prometheus")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    (job,) = (each for each in config["scrape_configs"] if each["job_name"] == job_name)
    job.pop("dns_sd_configs", None)
    job["static_configs"] = [{"targets": [target]}]
    config["scrape_configs"] = [job]
    del config["alerting"]  # the Alertmanager of compose.yaml is not here
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        program,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_ready(process, f"http://127.0.0.1:{port}/-/ready", folder / "prometheus.log")
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(20)


def wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until a program answers; its log where it does not."""
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} did not start:\n{log.read_text()}")


def check_panel(prometheus: Prometheus, expression: str) -> None:
    """A panel's query, asked as Grafana does with all of each variable chosen, has data."""
    expression = as_grafana_asks(expression)
    result = prometheus.query(expression)
    values = [float(series["value"][1]) for series in result]
    assert values, f"no data: {expression}"
    assert any(math.isfinite(value) for value in values), (expression, result)


def as_grafana_asks(expression: str) -> str:
    """The variables as Grafana fills them in with All chosen."""
    filled = expression.replace("$__rate_interval", "15s")
    filled = filled.replace("$instance", ".*").replace("$model", ".*")
    assert "$" not in filled
    return filled


def check_rules(prometheus: Prometheus, file: str) -> None:
    """Prometheus has evaluated every alert of a file without an error."""
    groups = prometheus.get("rules")["groups"]
    found = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    for rule in rules(file):
        assert found[rule["alert"]] == "ok"
