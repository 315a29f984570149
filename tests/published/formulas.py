"""The published formulas, for one sequence, straight from a checkpoint's tensors.

Nothing here uses the server: the bodies are `transformers`' own (InternLM2's is written out
from its published code), and every head is computed from the tensors by their names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.published.checkpoints import OBJECTIVES, QUANTILES
from transformers import (
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

Tensors = dict[str, torch.Tensor]
BODIES = {
    "llama": (LlamaModel, LlamaConfig),
    "qwen2": (Qwen2Model, Qwen2Config),
    "qwen3": (Qwen3Model, Qwen3Config),
}


class Formula:
    """A checkpoint's reward of one sequence of token ids."""

    def __init__(self, folder: Path) -> None:
        self.values = json.loads((folder / "config.json").read_text())
        self.t: Tensors = load_file(folder / "model.safetensors")
        self.name = self.values["architectures"][0]
        if self.values["model_type"] == "internlm2":
            return
        cls, config = BODIES[self.values["model_type"]]
        known = {
            k: v for k, v in self.values.items() if k not in ("auto_map", "attn_implementation")
        }
        self.body = cls._from_config(config(**known), attn_implementation="eager").eval()
        self.body.load_state_dict(
            {k.removeprefix("model."): v for k, v in self.t.items() if k.startswith("model.")}
        )

    @torch.no_grad()
    def hidden(self, tokens: Sequence[int]) -> torch.Tensor:
        """The last hidden states, [T, H]."""
        ids = torch.tensor([list(tokens)])
        if self.values["model_type"] == "internlm2":
            return internlm2_hidden(self.t, self.values, ids[0])
        found: torch.Tensor = self.body(input_ids=ids).last_hidden_state[0]
        return found

    def two_layers(self, rows: torch.Tensor) -> torch.Tensor:
        """Linear, ReLU, Linear."""
        t = self.t
        middle = F.relu(rows @ t["score.0.weight"].T + t["score.0.bias"])
        return middle @ t["score.2.weight"].T + t["score.2.bias"]

    def last(self, tokens: Sequence[int]) -> float:
        """One number at the last token: Skywork, Qwen2.5-Math-RM, INF-ORM, InternLM2."""
        row = self.hidden(tokens)[-1]
        if self.name.endswith("ForSequenceClassification") and "score.weight" in self.t:
            return float(self.t["score.weight"][0] @ row)
        if self.name == "InternLM2ForRewardModel":
            return float(self.t["v_head.weight"][0] @ row)
        return float(self.two_layers(row)[0])

    def step_probabilities(self, tokens: Sequence[int], marker: int) -> list[float]:
        """softmax(logits)[1] at each marker: what Qwen2.5-Math-PRM's card prints."""
        places = [i for i, token in enumerate(tokens) if token == marker]
        logits = self.two_layers(self.hidden(tokens))
        return [float(torch.softmax(logits[i], -1)[1]) for i in places]

    def gated(self, tokens: Sequence[int], pattern: Sequence[int]) -> tuple[float, list[float]]:
        """Score and attributes of ArmoRM and QRM."""
        t, ids = self.t, list(tokens)
        size = len(pattern)
        places = [j for j in range(len(ids) - size + 1) if ids[j : j + size] == list(pattern)]
        hidden = self.hidden(tokens)
        values = t["regression_layer.weight"] @ hidden[-1]
        x = hidden[places[-1]]
        if "num_quantiles" in self.values:
            values = values.reshape(OBJECTIVES, QUANTILES).mean(dim=1)
            for place in (0, 3, 6):
                x = F.relu(t[f"gating.layers.{place}.weight"] @ x)
                norm = {
                    key: t[f"gating.layers.{place + 2}.{key}"]
                    for key in ("weight", "bias", "running_mean", "running_var")
                }
                x = (x - norm["running_mean"]) / torch.sqrt(norm["running_var"] + 1e-5)
                x = x * norm["weight"] + norm["bias"]
            last = 9
        else:
            for place in (0, 1, 2):
                x = F.relu(
                    t[f"gating.layers.{place}.weight"] @ x + t[f"gating.layers.{place}.bias"]
                )
            last = 3
        x = t[f"gating.layers.{last}.weight"] @ x + t[f"gating.layers.{last}.bias"]
        gate = torch.softmax(x / self.values["gating_temperature"], 0) * t["gating.logit_scale"][0]
        adjusted = values @ t["reward_transform_matrix"]
        shown = adjusted if "num_quantiles" in self.values else values  # each its own `rewards`
        return float((gate * adjusted).sum()), shown.tolist()

    def weighted_means(self, tokens: Sequence[int]) -> tuple[float, list[float]]:
        """Score and attributes of URM."""
        t, row = self.t, self.hidden(tokens)[-1]
        means = (t["score.weight"] @ row).view(5, 2)[:, 0]
        x = row
        for place in (0, 2):
            x = F.selu(t[f"weights.fc.{place}.weight"] @ x + t[f"weights.fc.{place}.bias"])
        weights = t["weights.fc.4.weight"] @ x + t["weights.fc.4.bias"]
        return float((means * weights).sum()), means.tolist()


def internlm2_hidden(t: Tensors, values: dict[str, float], ids: torch.Tensor) -> torch.Tensor:
    """InternLM2's body, as its published modeling_internlm2.py computes it: [T] to [T, H]."""
    heads, shared = int(values["num_attention_heads"]), int(values["num_key_value_heads"])
    width = int(values["hidden_size"])
    size, group, length = width // heads, heads // shared, len(ids)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return t[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + values["rms_norm_eps"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        out = x @ t[f"{name}.weight"].T
        return out + t[f"{name}.bias"] if f"{name}.bias" in t else out

    frequencies = values["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    scaling = values.get("rope_scaling")
    linear_factor = scaling["factor"] if scaling and scaling["type"] == "linear" else 1.0  # type: ignore[index]
    angles = torch.outer(torch.arange(length) / linear_factor, frequencies).repeat(1, 2)

    def rotate(x: torch.Tensor) -> torch.Tensor:  # [T, heads, D]
        a, b = x.chunk(2, dim=-1)
        return x * angles.cos()[:, None] + torch.cat([-b, a], -1) * angles.sin()[:, None]

    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    x = t["model.tok_embeddings.weight"][ids]
    for layer in range(int(values["num_hidden_layers"])):
        at = f"model.layers.{layer}"
        qkv = linear(norm(x, f"{at}.attention_norm.weight"), f"{at}.attention.wqkv")
        qkv = qkv.view(length, shared, group + 2, size)  # "b q (h gs d) -> b q h gs d"
        q = rotate(qkv[:, :, :group].reshape(length, heads, size))
        k = rotate(qkv[:, :, -2]).repeat_interleave(group, dim=1)
        v = qkv[:, :, -1].repeat_interleave(group, dim=1)
        weights = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        weights = weights.masked_fill(later, float("-inf")).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, v).reshape(length, width)
        x = x + linear(mixed, f"{at}.attention.wo")
        y = norm(x, f"{at}.ffn_norm.weight")
        gate = F.silu(linear(y, f"{at}.feed_forward.w1")) * linear(y, f"{at}.feed_forward.w3")
        x = x + linear(gate, f"{at}.feed_forward.w2")
    return norm(x, "model.norm.weight")


def rendered_ids(folder: Path, conversation: list[dict[str, str]]) -> list[int]:
    """A whole conversation as tokens, by the tokenizer of the folder alone."""
    # AutoTokenizer would write the rules anew by the class, where the file has others.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    return [int(i) for i in np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])]
