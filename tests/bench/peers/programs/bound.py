"""What no engine can beat: the matrix products of the model's linear layers, and nothing else.

Every weight matrix once, times as many rows as a batch has tokens; equal beginnings count once.
With weights as they are or in oneDNN's layout, whichever is faster for a batch.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch
from tests.bench.common import seconds
from tests.bench.peers.calls import Call
from tests.bench.peers.programs.plain import Encoder
from tests.bench.peers.programs.program import Batch, arguments, work
from transformers import AutoConfig, AutoModelForSequenceClassification

from guerdon.reward.engine.prepacked import prepack


def main() -> None:
    """Take calls for ever."""
    args = arguments()
    encoder = Encoder(args.folder)
    dtype = getattr(torch, args.dtype)
    plain = torch.nn.ModuleList(
        torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)
        for outputs, inputs in linear_shapes(args.folder)
    )
    laid_out = copy.deepcopy(plain)
    prepack(torch.nn.ModuleList([laid_out]))

    def prepare(calls: Sequence[Call]) -> Batch:
        rows = computed_tokens([tokens for call in calls for tokens in encoder.sequences(call)])
        inputs = {
            layer.in_features: torch.randn(rows, layer.in_features, dtype=dtype) for layer in plain
        }

        @torch.inference_mode()
        def products(layers: torch.nn.ModuleList) -> None:
            for layer, shape in zip(layers, plain, strict=True):
                layer(inputs[shape.in_features])

        def batch(layers: torch.nn.ModuleList) -> list[list[float]]:
            products(layers)
            return [[] for _ in calls]

        for layers in (plain, laid_out):
            products(layers)  # warm
        fastest = min((plain, laid_out), key=lambda layers: seconds(lambda: products(layers)))
        return functools.partial(batch, fastest)

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
