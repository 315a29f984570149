"""InternLM2-reward (1.8b, 7b, 20b): a Llama in other clothes, scored at a reward token.

The body computes what a Llama does, with query, key and value projections fused in one
tensor. The head reads the token `reward_token_id`, which the published code appends to every
sequence that does not end with it.

Its tokenizer is Python code over a sentencepiece model, and the published folders hold no
tokenizer.json: they are refused until their owner has made one, see docs/models.md.

Sources: config.json of internlm/internlm2-1_8b-reward, -7b- and -20b- on the Hugging Face hub;
xtuner/tools/model_converters/modeling_internlm2_reward/ of InternLM/xtuner, which writes such
checkpoints; rewardbench/models/internlm.py of allenai/reward-bench for the reward token;
vllm/model_executor/models/internlm2.py for the fused projections; arXiv:2403.17297.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel, PretrainedConfig

from guerdon.reward.adapters.base import Adapter, PublishedNetwork, Shapes
from guerdon.reward.engine.heads import Reads
from guerdon.reward.types import ModelKind


class InternLM2ForRewardModel(PublishedNetwork, LlamaPreTrainedModel):  # type: ignore[misc]
    """A Llama body and one number at the last token."""

    reads = Reads.LAST
    labels = 1

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def head(self) -> nn.Module:
        """The one layer."""
        head: nn.Module = self.v_head
        return head


_SAME: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "reward_token_id",
)
"""What both configs call alike. All must be given: the defaults of the two differ."""


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    base = {"rope_theta": float(values["rope_theta"]), "rope_type": "default"}
    scaling = values.get("rope_scaling")
    kind = scaling and scaling.get("type")
    # The dynamic kind changes nothing up to max_position_embeddings, and no longer sequence
    # is taken.
    if not scaling or kind == "dynamic":
        return base
    if kind == "linear":
        return base | {"rope_type": "linear", "factor": float(scaling["factor"])}
    raise ValueError(f"rope_scaling is {scaling}, known are the types linear and dynamic")


_NAMES: Final = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""Within a layer: the checkpoint's names, and Llama's. `attention.wqkv` becomes three."""


def _split(fused: torch.Tensor, config: PretrainedConfig) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values, which are fused key head by key head."""
    group = config.num_attention_heads // config.num_key_value_heads
    size = config.hidden_size // config.num_attention_heads
    parts = fused.view(config.num_key_value_heads, group + 2, size, *fused.shape[1:])
    cut = (parts[:, :group], parts[:, group], parts[:, group + 1])
    return tuple(part.reshape(-1, *fused.shape[1:]).contiguous() for part in cut)


class InternLM2Reward(Adapter):
    """InternLM2-reward, 1.8b, 7b and 20b."""

    name = "InternLM2-reward"
    architecture = "InternLM2ForRewardModel"
    model_type = "internlm2"
    kind = ModelKind.SEQUENCE
    code = (
        "configuration_internlm2.InternLM2Config",
        "modeling_internlm2.InternLM2ForRewardModel",
        "tokenization_internlm2.InternLM2Tokenizer",
        "tokenization_internlm2_fast.InternLM2TokenizerFast",
    )
    unused = ()
    own_tokenizer = True
    network = InternLM2ForRewardModel

    def read_config(self, values: Mapping[str, Any]) -> PretrainedConfig:
        """The Llama that computes the same."""
        lacking = sorted({*_SAME, "bias", "rope_theta"} - values.keys())
        if lacking:
            raise ValueError(f"it does not say {', '.join(lacking)}")
        if values["hidden_size"] % values["num_attention_heads"]:
            raise ValueError("hidden_size is no multiple of num_attention_heads")
        if not 0 <= values["reward_token_id"] < values["vocab_size"]:
            raise ValueError(
                f"reward_token_id is {values['reward_token_id']}, outside the vocabulary"
            )
        return LlamaConfig(
            **{name: values[name] for name in _SAME},
            **{name: values.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            attention_bias=values["bias"],
            rope_parameters=_rope(values),
            architectures=list(values["architectures"]),
            num_labels=1,
        )

    def layout(self, config: PretrainedConfig) -> Shapes:
        """The checkpoint's tensors."""
        width, middle = config.hidden_size, config.intermediate_size
        heads, shared = config.num_attention_heads, config.num_key_value_heads
        fused = (heads + 2 * shared) * (width // heads)
        shapes: Shapes = {
            "model.tok_embeddings.weight": (config.vocab_size, width),
            "model.norm.weight": (width,),
            "v_head.weight": (1, width),
        }
        layer: Shapes = {
            "attention.wqkv.weight": (fused, width),
            "attention.wo.weight": (width, width),
            "feed_forward.w1.weight": (middle, width),
            "feed_forward.w2.weight": (width, middle),
            "feed_forward.w3.weight": (middle, width),
            "attention_norm.weight": (width,),
            "ffn_norm.weight": (width,),
        }
        if config.attention_bias:
            layer |= {"attention.wqkv.bias": (fused,), "attention.wo.bias": (width,)}
        for place in range(config.num_hidden_layers):
            shapes |= {f"model.layers.{place}.{name}": shape for name, shape in layer.items()}
        return shapes

    def convert(
        self, tensors: Iterable[tuple[str, torch.Tensor]], config: PretrainedConfig
    ) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors under Llama's names, the fused projections cut apart."""
        state: dict[str, torch.Tensor] = {}
        for name, tensor in tensors:
            if ".attention.wqkv." in name:
                before, _, kind = name.partition("attention.wqkv.")
                for part, value in zip("qkv", _split(tensor, config), strict=True):
                    state[f"{before}self_attn.{part}_proj.{kind}"] = value
                continue
            renamed = name.replace("model.tok_embeddings.", "model.embed_tokens.")
            for theirs, ours in _NAMES.items():
                renamed = renamed.replace(f".{theirs}.", f".{ours}.")
            state[renamed] = tensor
        return state

    def ending(self, config: PretrainedConfig) -> int | None:
        """The reward token, which the head reads."""
        return int(config.reward_token_id)
