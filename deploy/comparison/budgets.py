"""How much of everything: what a stage is told beside where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.demo import policy

Options = Mapping[str, float | int | str]
"""Of a command, by the name of the option."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Options of every stage."""

    reward: Options
    sft: Options
    dpo: Options
    orpo: Options
    rft: Options
    ppo: Options
    evaluation: Options


MAX_TOKENS = policy.SETTINGS["max-tokens"]
"""Of a completion, wherever one is drawn: then all of it is on the same axes."""

BUDGETS = {
    # About 40 minutes on two CPU cores that do nothing else.
    "small": Budget(
        reward={"epochs": 2},
        sft={"epochs": 2},
        dpo={"epochs": 2, "lr": 2e-5},
        orpo={"epochs": 2, "lr": 4e-5, "odds-weight": 0.5},
        rft={
            "samples-per-prompt": 4,
            "keep": "top",
            "top": 1,
            "epochs": 2,
            "lr": 2e-5,
            "eval-samples": 2,
        },
        ppo=policy.SETTINGS | {"steps": 6, "eval-every": 3, "eval-limit": 0, "checkpoint-every": 2},
        evaluation={"samples-per-prompt": 4},
    ),
    # Shows that every stage works; its numbers mean nothing.
    "tiny": Budget(
        reward={"epochs": 1, "limit": 32, "eval-limit": 16, "stats-pairs": 8},
        sft={"epochs": 1, "limit": 16, "eval-limit": 8},
        dpo={"epochs": 1, "limit": 16, "eval-limit": 8},
        orpo={"epochs": 1, "limit": 16, "eval-limit": 8},
        rft={
            "samples-per-prompt": 2,
            "keep": "top",
            "top": 1,
            "steps": 2,
            "batch-size": 8,
            "eval-limit": 6,
            "eval-samples": 1,
        },
        ppo=policy.SETTINGS
        | {
            "steps": 2,
            "prompts-per-step": 2,
            "samples-per-prompt": 2,
            "eval-every": 1,
            "eval-limit": 6,
            "eval-samples": 1,
            "checkpoint-every": 1,
        },
        evaluation={"samples-per-prompt": 1, "limit": 6},
    ),
}
