"""Prompts, settings and a tokenizer for the tests of rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.tiny import CHATML, tiny_tokenizer

from guerdon.trainer.common.services.prompts import Prompts, load_prompts
from guerdon.trainer.rl.settings import OnlineRFTSettings


def write_rows(path: Path, rows: list[Any]) -> str:
    """A JSONL file; a string is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def tokenizer() -> Any:
    """A small real one, with ChatML."""
    return tiny_tokenizer(chat_template=CHATML)


def some_prompts(folder: Path, count: int) -> Prompts:
    """Different questions with answers."""
    rows = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(count)]
    path = write_rows(folder / "prompts.jsonl", rows)
    return load_prompts(path, tokenizer(), max_prompt_tokens=256)


def settings(**changes: Any) -> OnlineRFTSettings:
    """Settings of a run, rewards by length unless told otherwise."""
    values: dict[str, Any] = {
        "policy": "-", "sampler": "127.0.0.1:1", "prompts": "-", "eval_prompts": "-",
        "output": "-", "verifier": ("length:4",), "max_tokens": 8, "patience": 20.0,
        "request_timeout": 10.0,
    }  # fmt: skip
    return OnlineRFTSettings(**(values | changes))
