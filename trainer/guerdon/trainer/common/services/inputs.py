"""The policy and the prompts that a run or an evaluation starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon.trainer.common.data.tokens import max_positions
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.services.prompts import Prompts


@dataclass(frozen=True, slots=True)
class RunInputs:
    """The policy's folder, config and tokenizer, and the prompts."""

    policy: Path
    config: Any
    """The config of `transformers`."""
    tokenizer: Any
    prompts: Prompts
    eval_prompts: Prompts

    @property
    def shared(self) -> int:
        """Held-out prompts that are trained on too: a leak."""
        trained = {_key(row.turns) for row in self.prompts.rows}
        return sum(_key(row.turns) in trained for row in self.eval_prompts.rows)


def check_positions(config: Any, max_tokens: int, longest: int) -> None:
    """Refuse what the policy has no positions for.

    Args:
        config: of the policy.
        max_tokens: of a completion.
        longest: tokens of the longest prompt.

    Raises:
        SettingsError: both together are too long.
    """
    known = max_positions(config)
    if known and longest + max_tokens > known:
        raise SettingsError(
            f"the longest prompt has {longest} tokens and max_tokens is {max_tokens}, "
            f"but the policy has {known} positions"
        )


def _key(turns: Any) -> str:
    return json.dumps(turns, sort_keys=True)
