"""A language model as a classifier of its own: the logits of a few tokens after the last place."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from guerdon.reward.engine.heads import Reads
from guerdon.reward.engine.language_head import DetachedHead


class VerdictNetwork(nn.Module):
    """An `OwnHead` that reads what a language model would say next.

    What it doesn't say itself, the language model does: engines and probes take it for a model of
    `transformers`.

    Args:
        language_model: a causal language model of `transformers`, which stays as it is.
        tokens: those whose logits are read, in this order.
    """

    reads = Reads.LAST

    def __init__(self, language_model: Any, tokens: Sequence[int]) -> None:
        super().__init__()
        self.language_model = language_model
        self._tokens = list(tokens)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("language_model"), name)

    @property
    def labels(self) -> int:
        """How many tokens are read."""
        return len(self._tokens)

    def head(self) -> nn.Module:
        """Hidden states [N, H] to the logits [N, labels], in float32."""
        return DetachedHead(self.language_model, self._tokens)

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """The logits [B, labels] after the last place, of all that the language model says."""
        logits: torch.Tensor = self.language_model(**inputs).logits
        return SimpleNamespace(logits=logits[:, -1, self._tokens])
