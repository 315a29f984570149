"""The reward manager of verl, in verl's own reward worker, against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.packages import python_with, run_program
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import RewardClient

ROLLOUTS = Path(__file__).with_name("verl_rollouts.py")
PACKAGES = (
    *("verl==0.9.1", "tensordict==0.10.0", "pyvers==0.2.3", "orjson==3.13.0", "ray==2.49.2"),
    *("omegaconf==2.4.0", "antlr4-python3-runtime==4.9.3", "hydra-core==1.3.8"),
    *("codetiming==1.4.0", "torchdata==0.11.0"),
)
"""verl, and what it imports that isn't here; what it only wants elsewhere is left out."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_verl_gets_the_scores_of_the_native_client(tmp_path: Path) -> None:
    python = python_with(tmp_path / "verl", *PACKAGES, dependencies=False)
    folder = tiny_checkpoint(tmp_path / "m", "llama", seed=5)
    with running_server({"helpful": folder}, dtype="float32") as server:
        printed = run_program(python, ROLLOUTS, folder, server.address, "helpful")
        found, *refusals = printed.splitlines()[-10:]
        answered = json.loads(found)
        with RewardClient(server.address) as rewards:
            native = [
                rewards.score_one("helpful", turns, [answer]).values[0]
                for turns, answer in answered["said"]
            ]
    assert len(set(native)) == len(native) == 7
    for way in ("alone", "together"):
        scores = [result["reward_score"] for result in answered[way]]
        assert scores == pytest.approx(native, abs=1e-4)
        assert all(result["reward_extra_info"] == {} for result in answered[way])
    assert answered["sums"] == pytest.approx(native, abs=1e-4)
    assert refusals[0] == "responses: has turns of tools or users, not one answer alone"
    assert "control token" in refusals[1]
    section = "reward.reward_kwargs.guerdon."
    assert all(refusal.startswith(section) for refusal in refusals[2:])
    assert [refusal.removeprefix(section).partition(",")[0] for refusal in refusals[2:]] == [
        "modle: is not one of server",
        "tls.cafile: is not one of ca",
        "tls: must be a mapping",
        "options: must be a mapping",
        "options.prioritty: is not one of priority",
        "end_tokens: must be a list of texts",
        "ignored_keys: must be a list of texts",
    ]
