"""PairRM: a DeBERTa-v3 that reads a prompt and two answers, and says which one is better.

Written after `DebertaV2PairRM` of LLM-Blender (Jiang et al., arXiv:2306.02561, section 3;
github.com/yuchenlin/LLM-Blender, llm_blender/pair_ranker/pairrm.py), with the names of the
tensors of `llm-blender/PairRM-hf`:

    pretrained_model.*   the encoder
    head_layer.1, .4     linear layers around a tanh: [source; candidate] -> n_tasks

The network itself is in `pairrm_network`, which alone brings in DeBERTa.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from transformers import PretrainedConfig

from guerdon.models import Manifest
from guerdon.reward.adapters.base import Adapter
from guerdon.reward.types import ModelKind
from guerdon.serving.errors import CheckpointRefused

MARKS: Final = {
    "<|source|>": "source_prefix_id",
    "<|candidate1|>": "cand1_prefix_id",
    "<|candidate2|>": "cand2_prefix_id",
}
"""The tokens before the prompt and either answer, and where config.json has their ids."""
MAX_TOKENS: Final = 2048
"""The longest sequence it was trained on: 1,224 tokens of prompt and 412 of each answer
(`tokenize_pair` of llm_blender/blender/blender_utils.py)."""


class PairRM(Adapter):
    """PairRM-hf."""

    name = "PairRM"
    architecture = "DebertaV2PairRM"
    model_type = "deberta-v2"
    kind = ModelKind.PAIRWISE
    unused = ()

    def read_config(self, values: Mapping[str, Any]) -> PretrainedConfig:
        """The config with what the published class reads from it."""
        for name in (*MARKS.values(), "n_tasks"):
            value = values.get(name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"it gives {name} = {value!r}, and a positive whole number is needed there"
                )
        if not isinstance(values.get("drop_out"), int | float):
            raise ValueError("it does not say drop_out")
        config = super().read_config(values)
        ids = list(self.marks(config).values())
        if len(set(ids)) != len(ids) or max(ids) >= config.vocab_size:
            raise ValueError(
                f"it gives the marks {', '.join(MARKS)} the ids {ids}: they must be different "
                f"and below vocab_size ({config.vocab_size})"
            )
        return config

    @property
    def network(self) -> type[Any]:
        """A DeBERTa that reads three marks."""
        from guerdon.reward.adapters.pairrm_network import DebertaV2PairRM

        return DebertaV2PairRM

    def longest(self, config: PretrainedConfig) -> int | None:
        """The longest in training: positions are relative unless the config says otherwise."""
        return None if config.position_biased_input else MAX_TOKENS

    def marks(self, config: PretrainedConfig) -> Mapping[str, int]:
        """The ids of `MARKS`."""
        return {mark: int(getattr(config, name)) for mark, name in MARKS.items()}

    def fill(self, manifest: Manifest) -> Manifest:
        """The kind."""
        if manifest.double_bos:
            raise CheckpointRefused(
                f"double_bos can't be given for a published {self.name}: how its texts begin "
                "is its own"
            )
        return dataclasses.replace(manifest, kind="pairwise")
