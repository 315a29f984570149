"""The Alertmanager of compose.yaml, run for real: who is told of what."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.support.ports import free_port

from .support import DEPLOY, need_program, rules, wait_ready


class Receiver:
    """A webhook: what was posted to which path, as (path, alert name)."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[str, str]] = queue.Queue()
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                for alert in body["alerts"]:
                    told.put((self.path, alert["labels"]["alertname"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def configuration(url: str) -> dict[str, Any]:
    """As Compose fills it in, with the page and ticket webhooks at a URL; groups don't wait."""
    text = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["configs"]["alertmanager"]
    filled = re.sub(
        r"\$\{GUERDON_(PAGE|TICKET)_URL:\?[^}]*\}",
        lambda match: f"{url}/{match[1].lower()}",
        text["content"],
    )
    assert "$" not in filled
    config: dict[str, Any] = yaml.safe_load(filled)
    config["route"]["group_wait"] = "1ms"
    return config


@pytest.fixture
def alertmanager(tmp_path: Path, receiver: Receiver) -> Iterator[str]:
    program, port = need_program("prometheus-alertmanager"), free_port()
    file, log = tmp_path / "alertmanager.yml", tmp_path / "alertmanager.log"
    file.write_text(yaml.safe_dump(configuration(receiver.url)))
    command = [
        program,
        f"--config.file={file}",
        f"--storage.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_ready(process, f"http://127.0.0.1:{port}/-/ready", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def ring(alertmanager: str, *names: str) -> None:
    """Post alerts of the rules, as Prometheus does, all of one job and instance."""
    severities = {
        rule["alert"]: rule["labels"]["severity"]
        for file in ("alerts.yml", "service-alerts.yml")
        for rule in rules(file)
    }
    labels = {"job": "guerdon-reward", "instance": "a"}
    alerts = [{"labels": {"alertname": n, "severity": severities[n], **labels}} for n in names]
    httpx.post(f"{alertmanager}/api/v2/alerts", json=alerts, timeout=10).raise_for_status()


def test_pages_wake_somebody_tickets_wait_and_the_rest_is_for_the_record(
    alertmanager: str, receiver: Receiver
) -> None:
    ring(alertmanager, "GuerdonEngineSaturated")  # info: first, so that it had the time to be told
    ring(alertmanager, "GuerdonServerDown")
    assert receiver.told.get(timeout=120) == ("/page", "GuerdonServerDown")
    # What a server that is down brings with it isn't told; a ticket is, at its own address.
    ring(alertmanager, "GuerdonFlapping", "GuerdonNotReady", "GuerdonMemoryShort")
    assert receiver.told.get(timeout=120) == ("/ticket", "GuerdonMemoryShort")
    ring(alertmanager, "GuerdonFileDescriptorsShort")
    assert receiver.told.get(timeout=120) == ("/page", "GuerdonFileDescriptorsShort")
    assert receiver.told.empty()


def test_prometheus_knows_the_alertmanager() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (manager,) = config["alerting"]["alertmanagers"]
    ((target,),) = [each["targets"] for each in manager["static_configs"]]
    name, _, port = target.partition(":")
    (published,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"][name]["ports"]
    assert published == f"127.0.0.1:{port}:{port}"
