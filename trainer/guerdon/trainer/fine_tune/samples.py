"""samples.jsonl: answers to some held-out prompts, before and after, to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch

from guerdon.trainer.common.models.language_model import autocast
from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup
from guerdon.trainer.common.run_folder import write_whole
from guerdon.trainer.common.services.policy_text import answer_text
from guerdon.trainer.fine_tune.inputs import PolicyInputs, prompt_ids


class SampledAnswer(TypedDict):
    """What a policy said."""

    response: str
    tokens: int
    finished: bool


@torch.no_grad()
def answer_prompts(
    model: Any, inputs: PolicyInputs, processes: ProcessGroup = SINGLE_PROCESS
) -> list[SampledAnswer]:
    """The likeliest answer, token by token, to each of the first held-out prompts."""
    settings = inputs.settings
    prompts = [list(prompt_ids(row)) for row in inputs.eval.rows[: settings.sample_prompts]]

    def some(places: list[int]) -> list[SampledAnswer]:
        return [_answer(model, prompts[place], inputs) for place in places]

    return processes.share_out([len(ids) for ids in prompts], some)


def _answer(model: Any, ids: list[int], inputs: PolicyInputs) -> SampledAnswer:
    settings, tokenizer = inputs.settings, inputs.tokenizer
    device = next(model.parameters()).device
    ids_1P = torch.tensor([ids], device=device)
    with autocast(model, settings.dtype):
        out_1L = model.generate(
            ids_1P,
            attention_mask=torch.ones_like(ids_1P),
            do_sample=False,
            use_cache=True,
            max_new_tokens=settings.sample_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            temperature=None,
            top_p=None,
            top_k=None,
        )
    said = out_1L[0, len(ids) :].tolist()
    finished = bool(said) and said[-1] == tokenizer.eos_token_id
    return SampledAnswer(
        response=answer_text(tokenizer, said, finished=finished),
        tokens=len(said),
        finished=finished,
    )


def write_samples(
    path: Path, inputs: PolicyInputs, answers: Sequence[Sequence[SampledAnswer]], steps: int
) -> None:
    """Write the answers before and after; the rows are as the other recipes'.

    Args:
        path: samples.jsonl.
        inputs: of the run.
        answers: before, and after.
        steps: of the training.
    """
    lines = []
    for kind, step, given in zip(("before", "after"), (0, steps), answers, strict=True):
        for place, said in enumerate(given):
            row = {
                "step": step,
                "kind": kind,
                "prompt_index": place,
                "sample": 0,
                "prompt": inputs.eval.turns[place],
                **inputs.eval.inputs[place].columns(),
                **said,
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))
