"""PairRM's published formula, from the parts of transformers alone.

Sources: `DebertaV2PairRM` (llm_blender/pair_ranker/pairrm.py), `tokenize_pair`
(llm_blender/blender/blender_utils.py), `get_scores_from_cmps` (llm_blender/gpt_eval/utils.py),
all of github.com/yuchenlin/LLM-Blender.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tests.support import hub
from tokenizers import Tokenizer
from transformers import DebertaV2Config


class Published:
    """One comparison at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import DebertaV2Model

        tensors = load_file(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        self.marks = [config[f"{name}_prefix_id"] for name in ("source", "cand1", "cand2")]
        self.encoder = DebertaV2Model(DebertaV2Config(**config)).eval()
        self.encoder.load_state_dict(
            {k.removeprefix("pretrained_model."): t for k, t in tensors.items() if "head" not in k}
        )
        self.head = {k.removeprefix("head_layer."): t for k, t in tensors.items() if "head" in k}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def margin(self, source: str, first: str, second: str, cut: int = 0) -> float:
        """The published logit: above 0 where the first answer is better."""
        texts = zip(hub.MARKS[:3], (source, first, second), strict=True)
        head, left, right = (self.tokenizer.encode(mark + text).ids for mark, text in texts)
        ids = torch.tensor([head[:2] + head[2 + cut :] + left + right])
        with torch.no_grad():
            hidden = self.encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            at = [hidden[ids == mark] for mark in self.marks]
            margins = [self._score(torch.cat([at[0], one], dim=-1)) for one in at[1:]]
        return float((margins[0] - margins[1]).mean())

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        inner = torch.tanh(rows @ self.head["1.weight"].T + self.head["1.bias"])
        return inner @ self.head["4.weight"].T + self.head["4.bias"]

    def scores(self, source: str, answers: Sequence[str], cut: int = 0) -> Any:
        """`max_logits`: the mean over all candidates, the own one included."""
        size = len(answers)
        compared = np.zeros((size, size))
        for i in range(size):
            for j in range(size):
                if i != j:
                    compared[i, j] = self.margin(source, answers[i], answers[j], cut)
        return (compared - compared.T).mean(axis=-1)
