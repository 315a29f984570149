"""Writes the Grafana dashboards: `python deploy/grafana/make_dashboard.py`.

The JSON beside it is checked in, and a test holds the two together. Panels are described
in Python because a hundred queries are legible so and are not as Grafana's JSON.
"""

from __future__ import annotations

from pathlib import Path

from gateway_panels import GATEWAY
from reward_panels import REWARD_SERVER
from sampler_panels import SAMPLER

FOLDER = Path(__file__).with_name("dashboards")


def texts() -> dict[str, str]:
    """The text of each file, by its name."""
    return {
        "gateway.json": GATEWAY.text(),
        "reward-server.json": REWARD_SERVER.text(),
        "sampler.json": SAMPLER.text(),
    }


if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
