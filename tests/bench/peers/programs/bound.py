"""What no engine can beat: the matrix products of the model's linear layers, and nothing else.

Every weight matrix once, times as many rows as a batch has tokens; equal beginnings count once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.bench.peers.calls import Call
from tests.bench.peers.programs.plain import Encoder
from tests.bench.peers.programs.program import Batch, arguments, work
from transformers import AutoConfig, AutoModelForSequenceClassification


def main() -> None:
    """Take calls for ever."""
    args = arguments()
    encoder = Encoder(args.folder)
    dtype = getattr(torch, args.dtype)
    weights = [torch.randn(shape, dtype=dtype) for shape in linear_shapes(args.folder)]

    def prepare(calls: Sequence[Call]) -> Batch:
        rows = computed_tokens([tokens for call in calls for tokens in encoder.sequences(call)])
        inputs = {w.shape[1]: torch.randn(rows, w.shape[1], dtype=dtype) for w in weights}

        @torch.inference_mode()
        def batch() -> list[list[float]]:
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            return [[] for _ in calls]

        return batch

    work(args.port, prepare)


def linear_shapes(folder: str) -> list[torch.Size]:
    """The weights of the linear layers below the head, in their order."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    layers = (m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear))
    return [layer.weight.shape for layer in layers]


def computed_tokens(sequences: Sequence[list[int]]) -> int:
    """Tokens of a batch when what any of its sequences begin with is computed once."""
    beginnings = set()
    for sequence in sequences:
        beginning = 0
        for token in sequence:
            beginning = hash((beginning, token))
            beginnings.add(beginning)
    return len(beginnings)


if __name__ == "__main__":
    main()
