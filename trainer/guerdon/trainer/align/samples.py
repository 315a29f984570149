"""samples.jsonl: answers to some held-out prompts, before and after, to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from guerdon.trainer.align.inputs import AlignInputs, prompt_of
from guerdon.trainer.run_folder import write_whole


@torch.no_grad()
def answer(model: Any, inputs: AlignInputs) -> list[str]:
    """The likeliest answer, token by token, to each of the first held-out prompts."""
    settings, tokenizer = inputs.settings, inputs.tokenizer
    device = next(model.parameters()).device
    found = []
    for ids in _prompts(inputs):
        ids_1P = torch.tensor([ids], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
            out_1L = model.generate(
                ids_1P, attention_mask=torch.ones_like(ids_1P), do_sample=False, use_cache=True,
                max_new_tokens=settings.sample_tokens, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id, temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
        found.append(str(tokenizer.decode(out_1L[0, len(ids) :], skip_special_tokens=True)))
    return found


def write_samples(
    path: Path, inputs: AlignInputs, answers: Sequence[Sequence[str]], steps: int
) -> None:
    """Write the answers before and after.

    Args:
        path: samples.jsonl.
        inputs: of the run.
        answers: before, and after.
        steps: of the training.
    """
    lines = []
    for kind, step, given in zip(("before", "after"), (0, steps), answers, strict=True):
        for place, (ids, text) in enumerate(zip(_prompts(inputs), given, strict=True)):
            prompt = inputs.tokenizer.decode(ids)
            row = {"step": step, "kind": kind, "row": place, "prompt": prompt, "response": text}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))


def _prompts(inputs: AlignInputs) -> list[list[int]]:
    rows = inputs.eval.rows[: inputs.settings.sample_prompts]
    return [list(prompt_of(row)) for row in rows]
