"""The config.json files as they are published, and the sizes of the files beside them.

The weights cannot be had here. What can be checked: that each config is known, and that the
tensors which the server would ask for have the size that the hub lists for the checkpoint.
"""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch

from guerdon.reward.adapters import find_adapter

LLAMA_8B: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "use_cache": False,
}
GATED: dict[str, Any] = {
    "architectures": ["LlamaForRewardModelWithGating"],
    "auto_map": {
        "AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"
    },
    "gating_hidden_dim": 1024,
    "gating_n_hidden": 3,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "num_objectives": 19,
    "pad_token_id": 128256,
    "vocab_size": 128257,
}
INTERNLM2: dict[str, Any] = {
    "architectures": ["InternLM2ForRewardModel"],
    "attn_implementation": "eager",
    "auto_map": {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModel": "modeling_internlm2.InternLM2ForRewardModel",
    },
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "model_type": "internlm2",
    "num_key_value_heads": 8,
    "pad_token_id": 2,
    "reward_token_id": 92527,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "vocab_size": 92544,
}
QWEN: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 4096,
    "model_type": "qwen2",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.37.0",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": LLAMA_8B
    | GATED
    | {
        "eos_token_id": 128001,
        "gating_temperature": 10,
        "max_position_embeddings": 8192,
        "rope_scaling": None,
        "torch_dtype": "float32",
        "transformers_version": "4.40.0",
    },
    "nicolinho/QRM-Llama3.1-8B": LLAMA_8B
    | GATED
    | {
        "attn_implementation": "flash_attention_2",
        "eos_token_id": [128001, 128008, 128009],
        "gating_newtork": True,
        "gating_temperature": 5.0,
        "loss": "quantile_regression",
        "max_position_embeddings": 131072,
        "num_quantiles": 19,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
    },
    "Qwen/Qwen2.5-Math-RM-72B": QWEN
    | {
        "architectures": ["Qwen2ForRewardModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
            "AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel",
        },
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "max_window_layers": 70,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "sliding_window": 4096,
    },
    "Qwen/Qwen2.5-Math-PRM-7B": QWEN
    | {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
            "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
        },
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05,
        "sliding_window": 131072,
    },
    "internlm/internlm2-1_8b-reward": INTERNLM2
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
    },
    "internlm/internlm2-7b-reward": INTERNLM2
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
    },
    "internlm/internlm2-20b-reward": INTERNLM2
    | {
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_attention_heads": 48,
        "num_hidden_layers": 48,
    },
}

HEADS = {
    "RLHFlow/ArmoRM-Llama3-8B-v0.1": {
        # As the headers of the published shards have them.
        "regression_layer.weight": (19, 4096),
        "reward_transform_matrix": (19, 19),
        "gating.layers.3.weight": (19, 1024),
        "gating.logit_scale": (1,),
    },
    "nicolinho/QRM-Llama3.1-8B": {
        "regression_layer.weight": (361, 4096),
        "gating.layers.2.running_mean": (1024,),
        "gating.layers.9.bias": (19,),
    },
    "Qwen/Qwen2.5-Math-RM-72B": {"score.0.weight": (8192, 8192), "score.2.weight": (1, 8192)},
    "Qwen/Qwen2.5-Math-PRM-7B": {"score.0.bias": (3584,), "score.2.weight": (2, 3584)},
    "internlm/internlm2-1_8b-reward": {
        "v_head.weight": (1, 2048),  # as the header of the published file has it
        "model.layers.23.attention.wqkv.weight": (4096, 2048),
    },
    "internlm/internlm2-7b-reward": {
        "v_head.weight": (1, 4096),
        "model.layers.31.attention.wqkv.weight": (6144, 4096),
    },
    "internlm/internlm2-20b-reward": {
        "v_head.weight": (1, 6144),
        "model.layers.47.attention.wqkv.weight": (8192, 6144),
    },
}


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint with this config must hold."""
    adapter = find_adapter(CONFIGS[name])
    assert adapter is not None
    config = adapter.read_config(CONFIGS[name])
    if (layout := adapter.layout(config)) is not None:
        return layout
    with torch.device("meta"):
        model = adapter.network(config)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_published_config_is_known(name: str) -> None:
    adapter = find_adapter(CONFIGS[name])
    assert adapter is not None
    assert adapter.foreign_code(CONFIGS[name]["auto_map"]) == ""
    found = shapes(name)
    assert {key: found.get(key) for key in HEADS[name]} == HEADS[name]


@pytest.mark.parametrize(
    ("name", "head_bytes", "language_head", "published"),
    [
        # Bytes of the shards as the hub lists them, in GB of 10⁹. ArmoRM's and QRM's heads are
        # stored in float32, and Qwen's checkpoint still holds the language model's head.
        ("RLHFlow/ArmoRM-Llama3-8B-v0.1", 4, 0, 4.98 + 5.00 + 4.92 + 0.143),
        ("nicolinho/QRM-Llama3.1-8B", 4, 0, 4.98 + 5.00 + 4.92 + 0.149),
        ("Qwen/Qwen2.5-Math-PRM-7B", 2, 152064 * 3584, 3.97 + 3.86 + 3.86 + 3.56),
        ("internlm/internlm2-7b-reward", 2, 0, 4 * 1.95 + 3 * 1.98 + 0.99),
    ],
)
def test_the_tensors_fill_the_published_files(
    name: str, head_bytes: int, language_head: int, published: float
) -> None:
    total = 2 * language_head
    for key, shape in shapes(name).items():
        total += prod(shape) * (2 if key.startswith("model.") else head_bytes)
    assert total / 1e9 == pytest.approx(published, abs=0.02)
