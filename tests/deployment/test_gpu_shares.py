"""Several processes on one GPU: each gets a share, and what is too small is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from deploy.demo import gpu

FAKE = """#!/bin/sh
echo "$@" > {seen}
echo "{free}, {total}"
"""


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose nvidia-smi tells of 30,000 of 40,960 MiB free; the file of its arguments."""
    program, seen = tmp_path / "nvidia-smi", tmp_path / "seen"
    program.write_text(FAKE.format(seen=seen, free=30000, total=40960))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return seen


def test_the_gpu_that_is_visible_is_asked(with_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.gpu_memory() == (30000 / 1024, 40.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    gpu.gpu_memory()
    assert with_gpu.read_text().split()[-2:] == ["-i", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.gpu_memory() is None


def test_the_shares_of_what_runs_together_leave_room_for_cuda() -> None:
    memory = (70.0, 80.0)
    together = [["serve", "reward", "--model", "m=x"], ["train", "ppo", "--policy", "p"]]
    shares = [
        float(gpu.environment_of(command, memory)["PYTORCH_ALLOC_CONF"].partition(":")[2])
        for command in together
    ]
    flag, share = gpu.sampler_flags(memory)
    assert flag == "--gpu-memory-utilization"
    assert 0.8 <= sum(shares) + float(share) <= 0.9
    # vLLM counts its share itself, and a bound of torch's would be a second one.
    assert "PYTORCH_ALLOC_CONF" not in gpu.environment_of(["serve", "sampler"], memory)


def test_without_a_gpu_nothing_changes() -> None:
    assert gpu.sampler_flags(None) == []
    assert "PYTORCH_ALLOC_CONF" not in gpu.environment_of(["train", "ppo"], None)
    assert gpu.too_small(None) == ""


def test_a_gpu_that_is_too_small_is_said() -> None:
    assert gpu.too_small((12.0, 16.0)) == ""
    assert "the GPU has 3.5 of 8.0 GiB free" in gpu.too_small((3.5, 8.0))
