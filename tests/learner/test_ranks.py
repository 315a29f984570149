"""One process against two, by DDP and by FSDP2 over gloo: the same gradients, steps and weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.learner.ranks import CASES, result
from tests.learner.support import apart, most_apart, norm

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` says to the processes."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(policy: Callable[[str], Path]) -> dict[str, Any]:
    """By the only process there is."""
    return {case: result(policy("llama"), case) for case in CASES}


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def together(
    request: pytest.FixtureRequest,
    policy: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, dict[str, Any]]:
    """By two."""
    out = tmp_path_factory.mktemp("ranks") / "found.pt"
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    what = ["-m", "tests.learner.ranks", str(policy("llama")), str(out)]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    env |= FSDP if request.param == "fsdp2" else {}
    done = subprocess.run(
        [sys.executable, "-m", *launch, *what],
        cwd=ROOT,
        env=env,
        timeout=240,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(out)
    return request.param, found


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_learn_what_one_learns(
    alone: dict[str, Any], together: tuple[str, dict[str, Any]], case: str
) -> None:
    how, found = together[0], together[1][case]
    right = alone[case]
    assert found["packed"]
    assert found["wrapper"] == ("DistributedDataParallel" if how == "ddp" else "FSDPPolicyModel")
    assert found["sharded"] == (found["parameters"] if how == "fsdp2" else 0)
    assert apart(right["float64"], found["float64"]) < 2e-7
    limit = 1e-6 * max(1.0, norm(right["float32"]))
    assert most_apart(right["float32"], found["float32"]) < limit
    assert apart(right["float32"], found["float32"]) < 1e-5
    for mine, theirs in zip(right["metrics"], found["metrics"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-7)
    for mine, theirs in zip(right["divergence"], found["divergence"], strict=True):
        assert theirs == pytest.approx(mine, abs=1e-5)
    assert most_apart(right["tensors"], found["tensors"]) < 1e-5
    for mine, theirs in zip(right["canaries"], found["canaries"], strict=True):
        assert list(theirs) == pytest.approx(list(mine), abs=1e-5)
    assert found["resumed"] == found["metrics"][1]
