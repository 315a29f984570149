"""The small model of the cascade: the first layers of the large one, trained to rank as it does."""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy.demo.policy import BASE
from deploy.demo.processes import flags, run

LAYERS = 10
"""Of the large model's thirty."""


def train(folder: Path, large: Path, *, sampler: str, reward: str, max_tokens: int) -> Path:
    """The small model's folder: a finished one, or a new one.

    It learns from pairs of the policy's answers to training questions, as the large one ranks
    them.

    Args:
        folder: of the pairs and the model; a part that is finished is not made again.
        large: the large model's folder.
        sampler: HOST:PORT of the policy.
        reward: HOST:PORT/MODEL of the large model.
        max_tokens: of an answer.
    """
    pairs, model = folder / "pairs", folder / "model"
    if (model / "guerdon.json").exists():
        return model
    rows = pairs / "pairs.jsonl"
    if not rows.exists():
        options = {
            "policy": BASE,
            "sampler": sampler,
            "reward": reward,
            "prompts": "questions-train",
            "samples-per-prompt": 8,
            "max-tokens": max_tokens,
            "pick": "all",
            "max-per-prompt": 12,
            "output": pairs,
        }
        run(["data", "pairs", *flags(options), "--unfinished", "--overwrite"], "no pairs were made")
    options = {
        "base": first_layers(large, folder / "base"),
        "train": rows,
        "eval": "helpful-eval",
        "epochs": 0.5,
        "batch-size": 16,
        "lr": 1e-4,
        "output": model,
    }
    failure = "training the small reward model failed; its message is above"
    run(["train", "reward", *flags(options), "--overwrite"], failure)
    return model


def first_layers(large: Path, folder: Path) -> Path:
    """A checkpoint of the large model's first layers, its embeddings and its head."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForSequenceClassification.from_pretrained(large, dtype=torch.float32)
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(large).save_pretrained(folder)
    return folder
