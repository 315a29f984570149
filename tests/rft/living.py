"""A FAKE sampler with a real tiny model behind it: it draws by the weights that it was given."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from guerdon.client.testing import FakePolicyServer


class LivingPolicy:
    """The policy of a `FakePolicyServer`.

    Args:
        folder: of the model whose weights are replaced; float32.
        most: tokens of a completion.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.most = most
        self.server = FakePolicyServer(self.draw)
        self._taken = 0
        self._chance = random.Random(0)

    def weights(self) -> dict[str, torch.Tensor]:
        """What was published last, by name."""
        update = self.server.updates[-1]
        return {
            spec.name: torch.frombuffer(
                bytearray(update.tensors[spec.name]), dtype=getattr(torch, spec.dtype)
            ).reshape(spec.shape)
            for spec in update.specs
        }

    def _update(self) -> None:
        if len(self.server.updates) != self._taken:
            self._taken = len(self.server.updates)
            missing, unknown = self.model.load_state_dict(self.weights(), strict=False)
            assert not unknown
            assert set(missing) <= {"lm_head.weight"}

    @torch.no_grad()
    def draw(
        self, prompt: Sequence[int], seed: int | None, sample: int
    ) -> tuple[list[int], list[float]]:
        """One completion at temperature 1, with its log-probabilities."""
        self._update()
        made = self._chance.random() if seed is None else f"{seed}/{sample}"
        chance = random.Random(made)
        ids, logprobs = list(prompt), []
        for _ in range(self.most):
            row = self.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            token = chance.choices(range(len(row)), weights=row.exp().tolist())[0]
            ids.append(token)
            logprobs.append(row[token].item())
            if token == self.server.eos:
                break
        return ids[len(prompt) :], logprobs
