"""How reward models are asked about a policy's completions, and what if they refuse one. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from guerdon.client.types import ModelInfo
from guerdon.data import is_plain
from guerdon.trainer.common.data.same_prompts import conversation_key
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.services.policy_text import PolicyText
from guerdon.trainer.common.services.prompts import Prompts
from guerdon.trainer.common.services.settings import DrawSettings
from guerdon.trainer.common.services.types import PromptRow


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRules:
    """How a run puts completions to the reward models, and what it does if one is refused."""

    text: PolicyText | None = None
    """Without it, completions are always sent as text."""
    longest: int = 0
    """Tokens that the longest prompt and completion may have together, in the policy's tokens."""
    too_long: Literal["refuse", "prompt-left", "allow"] = "refuse"
    refused: Literal["penalise", "stop"] = "penalise"
    penalty: float = -10.0

    @classmethod
    def of(cls, settings: DrawSettings, tokenizer: Any, *prompts: Prompts) -> RequestRules:
        """What the settings say.

        Args:
            settings: of the run.
            tokenizer: of the policy.
            prompts: all that is sampled.
        """
        forms: dict[str, PromptRow] = {}
        for row in chain.from_iterable(one.rows for one in prompts):
            forms.setdefault(_form(row), row)
        first, *others = forms.values()
        return cls(
            text=PolicyText.of(tokenizer, first.turns, first.inputs, others),
            longest=max(one.longest for one in prompts) + settings.max_tokens,
            too_long=settings.reward_too_long,
            refused=settings.reward_refused,
            penalty=settings.refused_reward,
        )

    def check(self, model: ModelInfo, what: str) -> None:
        """Refuse a model that takes less than may be drawn.

        Args:
            model: as its server describes it.
            what: it is called in errors.

        Raises:
            SettingsError: it takes less.
        """
        ending = len(self.text.ending_ids) if self.text else 0
        most = self.longest + ending
        if self.too_long == "refuse" and self.longest and 0 < model.max_tokens < most:
            raise SettingsError(
                f"{what} takes {model.max_tokens} tokens, and the longest prompt with max_tokens "
                f"of completion may have {most} (in the policy's tokens): lower max_tokens, or set "
                "reward_too_long to prompt-left (drop the prompt's start) or allow (see "
                "reward_refused)"
            )

    def filled(self, scores: Sequence[float | None], weight: float) -> list[float]:
        """The scores, with the penalty where there is none: never better than a score."""
        sign = math.copysign(1.0, weight)
        worst = min([self.penalty, *(sign * score for score in scores if score is not None)])
        return [sign * worst if score is None else score for score in scores]


def _form(row: PromptRow) -> str:
    """What may make a template end answers otherwise than after another prompt.

    That is what it is given beside the turns, and turns that are of tools or more than a text.
    """
    tools = {
        (turn["role"], *sorted(turn))
        for turn in row.turns
        if turn["role"] in ("tool", "function") or not is_plain(turn)
    }
    return conversation_key(sorted(tools), row.inputs)
