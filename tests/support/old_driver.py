"""A machine with a GPU whose driver is too old for this torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from guerdon.models import devices


def pretend_old_driver(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on torch says that the driver is too old as it begins to use CUDA."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    driver = folder / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02")
    monkeypatch.setattr(devices, "_DRIVER", driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
