"""Runs of the recipes on a tiny policy, and what they should have computed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from guerdon.settings import build
from guerdon.trainer.common.trl.folder import TunedPolicyFolder
from guerdon.trainer.common.trl.recipe import fine_tune
from guerdon.trainer.fine_tune.inputs import PolicyInputs
from guerdon.trainer.fine_tune.read_task import read_task
from guerdon.trainer.fine_tune.settings import (
    DPOSettings,
    ORPOSettings,
    PolicySettings,
    SFTSettings,
)

KINDS: dict[str, type[PolicySettings]] = {
    kind.algorithm: kind for kind in (SFTSettings, DPOSettings, ORPOSettings)
}


def settings_of(
    algorithm: str, policy: Path, toy: tuple[Path, Path], output: Path, **more: Any
) -> PolicySettings:
    """Settings with which a tiny policy learns in seconds."""
    values = {
        "policy": str(policy),
        "train": str(toy[0]),
        "eval": str(toy[1]),
        "output": str(output),
        "lr": 1e-3,
        "dtype": "float32",
        "sample_prompts": 2,
        "sample_tokens": 4,
        "log_every": 1,
        "plots": False,
    }
    return build(KINDS[algorithm], values | more)


def run(settings: PolicySettings, *, resume: bool = False) -> tuple[dict[str, Any], str]:
    """The summary, and what was printed."""
    printed = io.StringIO()
    folder = TunedPolicyFolder(settings, resume=resume, overwrite=False)
    console = Console(file=printed, width=200)
    return fine_tune(read_task(settings), folder, console), printed.getvalue()


def inputs_of(settings: PolicySettings) -> PolicyInputs:
    return read_task(settings).inputs


def answer_logprobs(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """log π of each token of an answer, by transformers and nothing else."""
    ids = torch.tensor([[*prompt, *answer]])
    rows = model(input_ids=ids).logits[0].log_softmax(-1)
    places = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return rows[places, ids[0, places + 1]]


def log_ratio(model: Any, reference: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """log π − log π_ref of each token of an answer."""
    with torch.no_grad():
        of_reference = answer_logprobs(reference, prompt, answer)
    return answer_logprobs(model, prompt, answer) - of_reference
