"""Panels of the reward server's dashboard, drawn from Prometheus' answers to their queries."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib
from deploy.demo.console import ROOT, DemoFailed, console
from deploy.demo.processes import serving
from deploy.demo.reward import held_out
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from guerdon.client import DeadlineExceeded, Item, Overloaded, RewardClient

matplotlib.use("Agg")
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "reward-server.json"
PANELS = (
    "Calls by outcome",
    "Responses scored",
    "Whole call",
    "Tokens computed and reused",
    "Where the time goes (mean)",
    "Quantiles by revision",
)
VARIABLES = {"$instance": ".*", "$model": ".*", "$__rate_interval": "15s"}
CALLERS = (1, 4, 16)
"""So many threads at a time, in each third of the load; half of the last are bulk work."""


def draw_dashboard(model: Path, to: Path, seconds: int) -> None:
    """Serve a model, put load on it, and draw what Prometheus saw.

    Raises:
        DemoFailed: there is no Prometheus, or the server failed.
    """
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        raise DemoFailed("there is no prometheus here: apt-get install prometheus")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(["reward", "--model", f"helpful={model}"], folder / "server.log") as served:
            metrics = json.loads((folder / "server.json").read_text())["http_port"]
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                url = f"127.0.0.1:{probe.getsockname()[1]}"
            config = {
                "global": {"scrape_interval": "2s"},
                "scrape_configs": [
                    {
                        "job_name": "guerdon-reward",
                        "static_configs": [{"targets": [f"127.0.0.1:{metrics}"]}],
                    }
                ],
            }
            (folder / "prometheus.json").write_text(json.dumps(config))  # JSON is YAML
            command = [prometheus, f"--config.file={folder / 'prometheus.json'}"]
            command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={url}"]
            with (folder / "prometheus.log").open("w") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                begun = time.time()
                for callers in CALLERS:
                    console.print(f"callers at a time: {callers}, for {seconds // len(CALLERS)} s")
                    put_load(served.grpc, callers, seconds / len(CALLERS))
                draw(url, begun, time.time(), to)
            finally:
                process.terminate()
                process.wait(20)


def put_load(address: str, callers: int, seconds: float) -> None:
    """Calls with the demo's held-out answers, one after the other from each caller."""
    items = [Item(group.prompt, group.answers[:2]) for group in held_out()]
    end = time.monotonic() + seconds

    def call(place: int) -> None:
        bulk = callers == max(CALLERS) and place % 2
        with RewardClient(address) as client:
            while time.monotonic() < end:
                for item in items[place % 3 :: 3]:
                    if time.monotonic() < end:
                        with contextlib.suppress(Overloaded, DeadlineExceeded):  # shown, too
                            client.score("helpful", [item], priority="batch" if bulk else "online")

    threads = [threading.Thread(target=call, args=(place,)) for place in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def draw(url: str, begun: float, ended: float, to: Path) -> None:
    """The panels, in rows of three."""
    panels = {each["title"]: each for each in json.loads(DASHBOARD.read_text())["panels"]}
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    for axes, title in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        draw_panel(axes, panels[title], url, begun, ended)
    figure.supxlabel("seconds", fontsize=8)
    figure.savefig(to, dpi=80)


def draw_panel(axes: Axes, panel: dict[str, Any], url: str, begun: float, ended: float) -> None:
    """One panel: each series of each query is a line."""
    for target in panel["targets"]:
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        asked = {"query": expression, "start": begun, "end": ended, "step": 2}
        address = f"http://{url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(address, timeout=30) as reply:
            found = json.load(reply)["data"]["result"]
        for series in found:
            labels = series["metric"]
            legend = re.sub(
                r"\{\{(.*?)\}\}", lambda m, at=labels: at.get(m[1], "")[:18], target["legendFormat"]
            )
            times, values = zip(*((t - begun, float(v)) for t, v in series["values"]), strict=True)
            axes.plot(times, values, label=legend.strip(), linewidth=1.2)
    axes.set_title(panel["title"], fontsize=10, loc="left")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    units = {"cps": "a second", "reqps": "calls a second", "s": "seconds", "percentunit": "share"}
    axes.set_ylabel(units.get(unit, ""), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.set_xlim(0, ended - begun)
    if panel["fieldConfig"]["defaults"]["custom"]["scaleDistribution"]["type"] == "log":
        axes.set_yscale("log")
    elif axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, loc="best")
