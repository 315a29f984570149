"""Checkpoints that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.tiny import tiny_checkpoint

MORE = {
    "granite": {"num_key_value_heads": 2, "logits_scaling": 4.0},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.25},
    "qwen3_moe": {
        "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "decoder_sparse_step": 1,
    },
}  # fmt: skip
"""What the architectures beyond `DECODERS` need."""


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny language model of an architecture, with tied embeddings where it is a Llama."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            values = dict(MORE.get(architecture, {}))
            if architecture == "llama":
                values["tie_word_embeddings"] = True
            folder = tmp_path_factory.mktemp("policy") / architecture
            made[architecture] = tiny_checkpoint(folder, architecture, causal_lm=True, **values)
        return made[architecture]

    return make
