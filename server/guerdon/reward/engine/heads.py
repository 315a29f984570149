"""What turns hidden states into logits, and which hidden states it reads.

Only the places that are read go through a head, and always in float32: a logit of 23.05
rounded to bfloat16 would be 23.0. Heads are known by their class in `transformers`, never
guessed from the names of their weights: an unknown one is refused.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from guerdon.reward.engine.plan import Places
from guerdon.serving.errors import CheckpointRefused

Logits = npt.NDArray[np.float32]
"""Shape [rows read, num_labels]."""


class Reads(enum.Enum):
    """Which tokens of a sequence a head reads."""

    LAST = "last"
    FIRST = "first"
    MEAN = "mean"
    STEPS = "steps"
    GATE = "gate"
    """A place that the item gives, which may lie in the prompt, and the last token."""
    MARKS = "marks"
    """The `MARKS` places that the item gives: before a prompt and either answer to it."""
    RESPONSE = "response"


MARKS = 3


def first_read(reads: Reads, readout: npt.NDArray[np.int64] | None, length: int) -> int:
    """The first token of a sequence whose hidden state is read.

    Args:
        reads: what the head reads.
        readout: the tokens that the item gives, for a head that needs them.
        length: tokens of the sequence.
    """
    if reads in (Reads.FIRST, Reads.MEAN):
        return 0
    first = length - 1 if readout is None else int(readout.min(initial=length - 1))
    return max(0, first - 1) if reads is Reads.RESPONSE else first  # what foretells it


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A classification head: what it reads and what it does with it."""

    reads: Reads
    labels: int
    """Numbers that it gives for each place it reads."""
    layers: nn.Module
    """Hidden states to logits [N, labels], in float32. They are [N, H]; [N, 2, H] for
    `Reads.GATE`, and [N, MARKS, H] for `Reads.MARKS`."""

    def logits(
        self,
        hidden: torch.Tensor,
        sequences: Sequence[Places],
        readout: Sequence[npt.NDArray[np.int64]],
    ) -> list[Logits]:
        """The logits of each sequence.

        Args:
            hidden: [M, H], the hidden states of a whole batch, in any order.
            sequences: for each sequence the places in `hidden` of its tokens, in order.
            readout: `Reads.STEPS` and `MARKS`: for each sequence the tokens of it to read;
                `Reads.GATE`: the one where the gate reads.
        """
        rows, counts = self._rows(hidden, sequences, readout)
        if not len(rows):
            return [np.zeros((0, self.labels), dtype=np.float32) for _ in counts]
        logits = self.layers(rows).cpu().numpy()
        return list(np.split(logits, np.cumsum(counts)[:-1]))

    def _rows(
        self,
        hidden: torch.Tensor,
        sequences: Sequence[Places],
        readout: Sequence[npt.NDArray[np.int64]],
    ) -> tuple[torch.Tensor, list[int]]:
        if self.reads is Reads.MEAN:
            return _means(hidden, sequences), [1] * len(sequences)
        if self.reads in (Reads.STEPS, Reads.MARKS):
            assert len(readout) == len(sequences), "this head needs the places to read"
            picks = [s[steps] for s, steps in zip(sequences, readout, strict=True)]
        elif self.reads is Reads.GATE:
            assert len(readout) == len(sequences), "a gated model needs the gate's places"
            picks = [s[[int(gate[0]), -1]] for s, gate in zip(sequences, readout, strict=True)]
        else:
            end = -1 if self.reads is Reads.LAST else 0
            picks = [s[[end]] for s in sequences]
        places = torch.from_numpy(np.concatenate(picks)).to(hidden.device)
        rows = hidden.index_select(0, places).float()
        if self.reads is Reads.GATE:
            return rows.view(len(picks), 2, -1), [1] * len(picks)
        if self.reads is Reads.MARKS:
            return rows.view(len(picks), MARKS, -1), [1] * len(picks)
        return rows, [len(p) for p in picks]


def _means(hidden: torch.Tensor, sequences: Sequence[Places]) -> torch.Tensor:
    """The mean over each sequence's tokens, [N, H]."""
    # One after the other: what adds rows by index adds them in any order on a GPU, so that a
    # score would differ from run to run.
    places = (torch.from_numpy(s).to(hidden.device) for s in sequences)
    return torch.stack([hidden.index_select(0, p).float().mean(0) for p in places])


class _First(nn.Module):
    """Calls a module that takes [N, T, H] and reads T = 0 with rows [N, H]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(rows[:, None])
        return out


_Parts = Callable[[Any], tuple[Reads, list[nn.Module]]]


def _bert(model: Any) -> tuple[Reads, list[nn.Module]]:
    return Reads.FIRST, [_First(model.bert.pooler), model.classifier]


def _roberta(model: Any) -> tuple[Reads, list[nn.Module]]:
    return Reads.FIRST, [_First(model.classifier)]


def _deberta(model: Any) -> tuple[Reads, list[nn.Module]]:
    return Reads.FIRST, [_First(model.pooler), model.classifier]


def _modernbert(model: Any) -> tuple[Reads, list[nn.Module]]:
    pooling = model.config.classifier_pooling
    reads = {"cls": Reads.FIRST, "mean": Reads.MEAN}.get(pooling)
    if reads is None:
        raise CheckpointRefused(f"classifier_pooling is {pooling!r}, known are 'cls' and 'mean'")
    return reads, [model.head, model.classifier]


_SEQUENCE_HEADS: dict[str, _Parts] = {
    "GPT2ForSequenceClassification": lambda m: (Reads.LAST, [m.score]),
    "GPTNeoXForSequenceClassification": lambda m: (Reads.LAST, [m.score]),
    "BertForSequenceClassification": _bert,
    "RobertaForSequenceClassification": _roberta,
    "XLMRobertaForSequenceClassification": _roberta,
    "CamembertForSequenceClassification": _roberta,
    "DebertaForSequenceClassification": _deberta,
    "DebertaV2ForSequenceClassification": _deberta,
    "ModernBertForSequenceClassification": _modernbert,
}
_TOKEN_HEADS: dict[str, _Parts] = {
    "ModernBertForTokenClassification": lambda m: (Reads.STEPS, [m.head, m.classifier]),
    **{
        f"{name}ForTokenClassification": lambda m: (Reads.STEPS, [m.classifier])
        for name in ("GPT2", "GPTNeoX", "Bert", "Roberta", "XLMRoberta", "DebertaV2", "Deberta")
    },
}


@runtime_checkable
class OwnHead(Protocol):
    """A model that says itself how it makes its logits (`guerdon.reward.adapters`)."""

    reads: Reads
    labels: int

    def head(self) -> nn.Module:
        """The layers from the hidden states that are read to logits."""
        ...


def find_head(model: Any) -> Head:
    """The head of a model of `transformers`, or of one that is written here.

    Raises:
        CheckpointRefused: nobody here knows how this class makes its logits.
    """
    if isinstance(model, OwnHead):
        head = model.head()
        if any(parameter.dtype != torch.float32 for parameter in head.parameters()):
            head = copy.deepcopy(head).float()
        return Head(model.reads, model.labels, head.eval())
    reads, layers = _parts(model)
    if model.dtype != torch.float32:
        layers = [copy.deepcopy(layer).float() for layer in layers]
    return Head(reads, int(model.config.num_labels), nn.Sequential(*layers).eval())


def _parts(model: Any) -> tuple[Reads, list[nn.Module]]:
    cls = type(model)
    if cls.__module__.startswith("transformers."):
        if cls.forward is GenericForSequenceClassification.forward:
            return Reads.LAST, [model.score]
        if cls.forward is GenericForTokenClassification.forward:
            return Reads.STEPS, [model.score]
        known = _SEQUENCE_HEADS.get(cls.__name__) or _TOKEN_HEADS.get(cls.__name__)
        if known is not None:
            return known(model)
    raise CheckpointRefused(f"the head of {cls.__name__} is not one that this server knows")
