"""A reward model as plain `transformers` computes it, and calls as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tests.bench.peers.calls import Call
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging


class Encoder:
    """Calls as tokens, by the model's own tokenizer and chat template."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def sequences(self, call: Call) -> list[list[int]]:
        """The tokens of each response with its prompt."""
        if call.tokens:
            return [call.prompt + response for response in call.responses]
        turns = [[*call.prompt, {"role": "assistant", "content": text}] for text in call.responses]
        found: list[list[int]] = self.tokenizer.apply_chat_template(turns)["input_ids"]
        return found


class PlainModel:
    """The checkpoint as `transformers` loads it."""

    def __init__(self, folder: str, dtype: str) -> None:
        logging.disable_progress_bar()
        self.encoder = Encoder(folder)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()

    @torch.inference_mode()
    def padded(self, sequences: Sequence[list[int]]) -> list[float]:
        """Raw scores of one batch, padded on the right to its longest sequence."""
        longest = max(map(len, sequences))
        filler = self.model.config.pad_token_id
        ids = torch.tensor([s + [filler] * (longest - len(s)) for s in sequences])
        mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        return [float(score) for score in logits[:, 0]]

    def calls(self, calls: Sequence[Call]) -> list[list[float]]:
        """Scores of several calls as one padded batch."""
        sequences = [self.encoder.sequences(call) for call in calls]
        scores = iter(self.padded([one for call in sequences for one in call]))
        return [[next(scores) for _ in call] for call in sequences]
