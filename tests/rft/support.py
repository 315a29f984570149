"""Samples and groups without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task
from guerdon.trainer.rl.settings import OnlineRFTSettings, RFTSettings


def settings_of(**more: Any) -> OnlineRFTSettings:
    values: dict[str, Any] = {
        "policy": "p", "sampler": "s:1", "prompts": "a", "eval_prompts": "b", "output": "o",
        "verifier": ("exact",),
    }  # fmt: skip
    return OnlineRFTSettings(**(values | more))


def rft_settings_of(**more: Any) -> RFTSettings:
    values: dict[str, Any] = {
        "policy": "p", "sampler": "s:1", "prompts": "a", "eval_prompts": "b", "output": "o",
        "verifier": ("exact",), "dtype": "float32", "lr": 1e-3, "batch_size": 8,
        "checkpoint_every": 0,
    }  # fmt: skip
    return RFTSettings(**(values | more))


def group_of(
    uid: int,
    prompt: Sequence[int],
    answers: Sequence[tuple[Sequence[int], float]],
    *,
    finished: bool = True,
) -> Group:
    """A group of (tokens, reward)."""
    row = PromptRow(uid, ({"role": "user", "content": "?"},), "1")
    task = Task(uid, row, np.array(prompt, np.int32))
    samples = [
        Sample(
            task_uid=uid,
            index=i,
            prompt_ids_P=task.prompt_ids_P,
            response_ids_T=np.array(ids, np.int32),
            behaviour_logprobs_T=np.full(len(ids), -1.0, np.float32),
            versions_T=np.ones(len(ids), np.int32),
            finished=finished,
            text=" ".join(map(str, ids)),
            reward=reward,
        )
        for i, (ids, reward) in enumerate(answers)
    ]
    return Group(task, samples)
