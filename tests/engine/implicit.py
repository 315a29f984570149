"""Policies and references, and what plain `transformers` makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.support.tiny import tiny_checkpoint
from transformers import AutoModelForCausalLM

from guerdon.models import Manifest
from guerdon.reward.types import BatchScores, TokenArray

BETA = 0.3

Pairs = Sequence[tuple[TokenArray, Sequence[TokenArray]]]
"""Prompts and their responses as token ids."""


def implicit_folder(folder: Path, architecture: str, **settings: Any) -> Path:
    """A policy, a reference, and the guerdon.json that makes a reward of them."""
    for seed, name in enumerate(("policy", "reference")):
        tiny_checkpoint(folder / name, architecture, seed=seed, causal_lm=True, **settings)
    Manifest(kind="implicit", policy="policy", reference="reference", beta=BETA).write(folder)
    return folder


class Direct:
    """β·Σ(log π − log π_ref) of one sequence at a time, by plain transformers."""

    def __init__(self, folder: Path, beta: float = BETA) -> None:
        self._beta = beta
        self._models = [
            AutoModelForCausalLM.from_pretrained(
                folder / name, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            for name in ("policy", "reference")
        ]

    def reward(self, prompt: Sequence[int], response: Sequence[int]) -> float:
        ids = torch.tensor([[*map(int, prompt), *map(int, response)]])
        begin, sums = len(prompt), []
        for model in self._models:
            with torch.no_grad():
                logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
            places = torch.arange(begin, ids.shape[1])
            sums.append(float(logprobs[places - 1, ids[0, places]].sum()))
        return self._beta * (sums[0] - sums[1])

    def rewards(self, pairs: Pairs) -> npt.NDArray[np.float64]:
        return np.array([self.reward(p, response) for p, rs in pairs for response in rs])


def flat(scores: BatchScores) -> npt.NDArray[np.float64]:
    """The scores of a batch, in order."""
    return np.array([score.score for row in scores.items for score in row])
