"""PairRM: a DeBERTa-v3 that reads a prompt and two answers, and says which one is better.

`transformers` has no such class, and no checkpoint's code is run, so it is written here after
`DebertaV2PairRM` of LLM-Blender (Jiang et al., arXiv:2306.02561, section 3;
github.com/yuchenlin/LLM-Blender, llm_blender/pair_ranker/pairrm.py), with the names of the
tensors of `llm-blender/PairRM-hf`:

    pretrained_model.*   the encoder
    head_layer.1, .4     linear layers around a tanh: [source; candidate] -> n_tasks

The network itself is in `pairrm_network`, which alone brings in DeBERTa.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import nn
from transformers import PretrainedConfig

from guerdon.serving.errors import CheckpointRefused

ARCHITECTURE: Final = "DebertaV2PairRM"
MARKS: Final = {
    "<|source|>": "source_prefix_id",
    "<|candidate1|>": "cand1_prefix_id",
    "<|candidate2|>": "cand2_prefix_id",
}
"""The tokens before the prompt and either answer, and where config.json has their ids."""
MAX_TOKENS: Final = 2048
"""The longest sequence it was trained on: 1,224 tokens of prompt and 412 of each answer
(`tokenize_pair` of llm_blender/blender/blender_utils.py)."""


def margins(head: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """By how much the first answer is preferred, [N, 1].

    Args:
        head: [N, 2H] to [N, tasks].
        rows: hidden states at the source's and both candidates' marks, side by side, [N, 3H].
    """
    source, first, second = rows.chunk(3, dim=-1)
    left, right = (head(torch.cat([source, answer], dim=-1)) for answer in (first, second))
    found: torch.Tensor = (left - right).mean(dim=-1, keepdim=True)
    return found


def marks_of(config: PretrainedConfig) -> tuple[int, ...]:
    """The ids of `MARKS`, in their order."""
    return tuple(int(getattr(config, name)) for name in MARKS.values())


def check_pairrm_config(folder: Path, config: PretrainedConfig) -> None:
    """Refuse a config that lacks what the published class reads from it."""
    for name in (*MARKS.values(), "n_tasks"):
        value = getattr(config, name, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointRefused(
                f"{folder}/config.json gives {name} = {value!r}: a {ARCHITECTURE} needs a "
                "positive whole number there"
            )
    if not isinstance(getattr(config, "drop_out", None), int | float):
        raise CheckpointRefused(f"{folder}/config.json lacks drop_out, which {ARCHITECTURE} needs")
    ids = marks_of(config)
    if len(set(ids)) != len(ids) or max(ids) >= config.vocab_size:
        raise CheckpointRefused(
            f"{folder}/config.json gives the marks {', '.join(MARKS)} the ids {list(ids)}: they "
            f"must be different and below vocab_size ({config.vocab_size})"
        )
