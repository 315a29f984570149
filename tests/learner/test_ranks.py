"""One process against two, by DDP and by FSDP2 over gloo: the same gradients, steps and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.learner.ranks import CASES, result, write_results
from tests.learner.support import apart, most_apart, norm
from tests.support.forked import Child, rank_environment
from tests.support.ports import free_port

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` says to the processes."""


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
    folder = tmp_path_factory.mktemp("ranks")
    out, port = folder / "found.pt", free_port()
    told = {"ACCELERATE_USE_CPU": "true", **(FSDP if request.param == "fsdp2" else {})}
    ranks = [
        Child(
            folder / f"{rank}.log",
            write_results,
            policy("llama"),
            out,
            environment=told | rank_environment(rank, 2, port),
        )
        for rank in range(2)
    ]
    assert [rank.wait(240) for rank in ranks] == [0, 0], ranks[0].log() + ranks[1].log()
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
