"""Small random checkpoints with the config keys and tensor names of published reward models.

    folder = PUBLISHED["armorm"](tmp_path / "m")

The config keys are those of the config.json files on the Hugging Face hub (see the modules of
`guerdon.reward.adapters` for which), with small sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.support.tiny import CHATML, tiny_checkpoint, tiny_tokenizer

WIDTH = 64
HIDDEN = 24  # of gating networks
OBJECTIVES = 19
QUANTILES = 19
EXTRA, REWARD = "<extra_0>", "<|reward|>"
EOT, START, END, BEGIN = (
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
)

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""Llama 3's chat template, in short."""

Tensors = dict[str, torch.Tensor]


def _random(seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, gain=1.5: (
        gain * shape[-1] ** -0.5 * torch.randn(shape, generator=generator)
    )


def _checkpoint(
    folder: Path,
    architecture: str,
    head: Tensors,
    config: dict[str, Any],
    tokens: tuple[str, ...],
    template: str = CHATML,
    eos: str | None = None,
    drop: tuple[str, ...] = (),
    **body: Any,
) -> Path:
    """A random body under another head and another config.json."""
    words = tiny_tokenizer(chat_template=template)
    words.add_special_tokens({"additional_special_tokens": list(tokens)})
    if eos is not None:
        words.eos_token = eos
    tiny_checkpoint(folder, architecture, tokenizer=False, vocab_size=len(words), **body)
    words.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors | head, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    for key in ("id2label", "label2id", "num_labels", *drop):
        values.pop(key, None)
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def _auto_map(**entries: Any) -> dict[str, Any]:
    return {"auto_map": entries}


ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def _two_layers(outputs: int, seed: int) -> Tensors:
    draw = _random(seed)
    return {
        "score.0.weight": draw(WIDTH, WIDTH),
        "score.0.bias": draw(WIDTH),
        "score.2.weight": draw(outputs, WIDTH, gain=3),
        "score.2.bias": draw(outputs),
    }


def qwen_rm(folder: Path) -> Path:
    """Qwen2.5-Math-RM: no num_labels, no pad token, and the language model's head left in."""
    head = _two_layers(1, 1) | {"lm_head.weight": _random(2)(300, WIDTH)}
    code = _auto_map(
        AutoConfig="configuration_qwen2_rm.Qwen2RMConfig",
        AutoModel="modeling_qwen2_rm.Qwen2ForRewardModel",
    )
    config = {"architectures": ["Qwen2ForRewardModel"], "use_sliding_window": False,
              "sliding_window": 4096, "max_window_layers": 70, "use_mrope": False}  # fmt: skip
    return _checkpoint(
        folder, "qwen2", head, config | code, (), drop=("pad_token_id", "layer_types")
    )


def qwen_prm(folder: Path) -> Path:
    """Qwen2.5-Math-PRM."""
    code = _auto_map(
        AutoConfig="configuration_qwen2_rm.Qwen2RMConfig",
        AutoModel="modeling_qwen2_rm.Qwen2ForProcessRewardModel",
    )
    config = {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "use_sliding_window": False,
        "sliding_window": 131072,
        "max_window_layers": 28,
    }
    return _checkpoint(
        folder,
        "qwen2",
        _two_layers(2, 3),
        config | code,
        (EXTRA,),
        drop=("pad_token_id", "layer_types"),
    )


def inf_orm(folder: Path) -> Path:
    """INF-ORM."""
    config = {"architectures": ["INFORMForSequenceClassification"]} | ONE_LABEL
    return _checkpoint(folder, "llama", _two_layers(1, 4), config, (BEGIN, EOT, START, END), LLAMA3)


def _gated(folder: Path, head: Tensors, more: dict[str, Any], seed: int) -> Path:
    code = _auto_map(
        AutoModelForSequenceClassification="modeling_custom.LlamaForRewardModelWithGating"
    )
    draw = _random(seed)
    head = head | {
        # A gate that differs from prompt to prompt, and a transform that is not symmetric.
        "gating.logit_scale": torch.tensor([1.7]),
        "reward_transform_matrix": torch.eye(OBJECTIVES)
        - 0.3 * draw(OBJECTIVES, OBJECTIVES, gain=1),
    }
    config = {
        "architectures": ["LlamaForRewardModelWithGating"],
        "num_objectives": OBJECTIVES,
        "gating_hidden_dim": HIDDEN,
        "gating_n_hidden": 3,
    }
    tokens = (BEGIN, EOT, START, END)
    return _checkpoint(
        folder, "llama", head, config | ONE_LABEL | code | more, tokens, LLAMA3, eos=EOT
    )


def armorm(folder: Path) -> Path:
    """ArmoRM-Llama3-8B-v0.1."""
    draw = _random(5)
    head = {"regression_layer.weight": draw(OBJECTIVES, WIDTH, gain=3)}
    sizes = [WIDTH, HIDDEN, HIDDEN, HIDDEN, OBJECTIVES]
    for place in range(4):
        head[f"gating.layers.{place}.weight"] = draw(sizes[place + 1], sizes[place], gain=8)
        head[f"gating.layers.{place}.bias"] = draw(sizes[place + 1])
    return _gated(folder, head, {"gating_temperature": 10}, 6)


def qrm(folder: Path) -> Path:
    """QRM-Llama3.1-8B: batch normalisation with running statistics of its own."""
    draw = _random(7)
    head = {"regression_layer.weight": draw(OBJECTIVES * QUANTILES, WIDTH, gain=3)}
    for place in range(3):
        size = HIDDEN if place else WIDTH
        head[f"gating.layers.{3 * place}.weight"] = draw(HIDDEN, size, gain=2)
        norm = f"gating.layers.{3 * place + 2}"
        head[f"{norm}.weight"] = 1 + draw(HIDDEN)
        head[f"{norm}.bias"] = draw(HIDDEN)
        head[f"{norm}.running_mean"] = draw(HIDDEN)
        head[f"{norm}.running_var"] = 0.5 + draw(HIDDEN).abs()
        head[f"{norm}.num_batches_tracked"] = torch.tensor(20)
    head["gating.layers.9.weight"] = draw(OBJECTIVES, HIDDEN, gain=8)
    head["gating.layers.9.bias"] = draw(OBJECTIVES)
    more = {"num_quantiles": QUANTILES, "gating_temperature": 5.0,
            "loss": "quantile_regression", "gating_newtork": True,
            "attn_implementation": "flash_attention_2"}  # fmt: skip
    return _gated(folder, head, more, 8)


def urm(folder: Path) -> Path:
    """URM-LLaMa-3.1-8B."""
    draw = _random(9)
    head = {"score.weight": draw(10, WIDTH, gain=3)}
    for place, outputs in ((0, WIDTH), (2, WIDTH), (4, 5)):
        head[f"weights.fc.{place}.weight"] = draw(outputs, WIDTH)
        head[f"weights.fc.{place}.bias"] = draw(outputs)
    name = "LlamaForSequenceClassificationWithNormal_Weights"
    labels = {
        "id2label": {str(n): f"LABEL_{n}" for n in range(10)},
        "label2id": {f"LABEL_{n}": n for n in range(10)},
    }
    code = _auto_map(AutoModelForSequenceClassification=f"modeling.{name}")
    config = {"architectures": [name]} | labels | code
    return _checkpoint(folder, "llama", head, config, (BEGIN, EOT, START, END), LLAMA3)


def skywork_llama(folder: Path, **config: Any) -> Path:
    """Skywork-Reward-V2-Llama: a padding token of its own behind Llama 3's vocabulary."""
    head = {"score.weight": _random(11)(1, WIDTH, gain=3)}
    tokens = (BEGIN, EOT, START, END, "[PAD]")
    return _checkpoint(folder, "llama", head, ONE_LABEL | config, tokens, LLAMA3, eos=EOT)


def skywork_qwen3(folder: Path, **config: Any) -> Path:
    """Skywork-Reward-V2-Qwen3."""
    head = {"score.weight": _random(12)(1, WIDTH, gain=3)}
    return _checkpoint(folder, "qwen3", head, ONE_LABEL | config, (), eos="<|im_end|>")


def internlm2(folder: Path, *, tokenizer_json: bool = True, **config: Any) -> Path:
    """InternLM2-reward, its tokenizer saved with a tokenizer.json as docs/models.md says."""
    bias = bool(config.get("bias", False))
    draw = _random(10)
    _checkpoint(
        folder,
        "llama",
        {"v_head.weight": draw(1, WIDTH, gain=3)},
        {},
        (REWARD,),
        drop=(),
        attention_bias=bias,
    )
    tensors = load_file(folder / "model.safetensors")
    save_file(_fused(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
            "rms_norm_eps", "bos_token_id", "eos_token_id")  # fmt: skip
    published = {
        **{name: values[name] for name in kept},
        "architectures": ["InternLM2ForRewardModel"],
        "model_type": "internlm2",
        "attn_implementation": "eager",
        "bias": False,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "pad_token_id": 2,
        "reward_token_id": values["vocab_size"] - 1,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.41.2",
        **_auto_map(
            AutoConfig="configuration_internlm2.InternLM2Config",
            AutoModel="modeling_internlm2.InternLM2ForRewardModel",
        ),
        **config,
    }
    (folder / "config.json").write_text(json.dumps(published))
    path = folder / "tokenizer_config.json"
    words = json.loads(path.read_text()) | {
        "tokenizer_class": "InternLM2Tokenizer",
        **_auto_map(
            AutoTokenizer=[
                "tokenization_internlm2.InternLM2Tokenizer",
                "tokenization_internlm2_fast.InternLM2TokenizerFast",
            ]
        ),
    }
    path.write_text(json.dumps(words))
    if not tokenizer_json:
        (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    return folder


def _fused(llama: Tensors) -> Tensors:
    """A Llama's tensors under InternLM2's names: for each key head its queries, key and value."""
    names = {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
             "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
             "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
             "embed_tokens": "tok_embeddings"}  # fmt: skip
    found: Tensors = {}
    for name, tensor in llama.items():
        if ".q_proj." in name:
            rows = []
            q, k, v = (llama[name.replace("q_proj", f"{part}_proj")] for part in "qkv")
            for head in range(2):  # 4 query heads and 2 key heads of 16
                rows += [q[32 * head : 32 * head + 32]]
                rows += [x[16 * head : 16 * head + 16] for x in (k, v)]
            found[name.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(rows)
        elif ".k_proj." not in name and ".v_proj." not in name:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            found[name] = tensor
    return found


PUBLISHED: dict[str, Callable[[Path], Path]] = {
    "qwen_rm": qwen_rm,
    "qwen_prm": qwen_prm,
    "inf_orm": inf_orm,
    "armorm": armorm,
    "qrm": qrm,
    "urm": urm,
    "skywork_llama": skywork_llama,
    "skywork_qwen3": skywork_qwen3,
    "internlm2": internlm2,
}
