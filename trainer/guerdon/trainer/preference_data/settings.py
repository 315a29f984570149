"""The settings of `guerdon data pairs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.services.settings import DrawSettings, not_negative, positive


@dataclass(frozen=True, kw_only=True)
class PairsSettings(DrawSettings):
    """Preference pairs of a policy's own answers."""

    policy: str
    """Folder, hub name or embedded model that the sampler serves: its tokenizer and template."""
    sampler: str
    """HOST:PORT of the policy sampler; its weights are left as they are."""
    output: str
    """Folder of the run; pairs.jsonl is in it."""
    limit: int = 0
    """First so many prompts; 0 takes all."""
    seed: int = 0
    """Seed of sampling and of choice."""

    pick: Literal["extremes", "random", "all"] = "extremes"
    """The best answer against the worst; the best against a random worse one; or every pair."""
    min_margin: float = 0.0
    """Pairs whose rewards are not further apart than this are left out."""
    max_per_prompt: int = 0
    """Most pairs of a prompt, those furthest apart, for --pick all; 0 keeps all."""
    unfinished: bool = False
    """Take answers that were cut at max_tokens too."""

    in_flight: int = 32
    """Prompts that are sampled or scored at once."""

    def __post_init__(self) -> None:
        """Refuse values that can't be, naming the key."""
        super().__post_init__()
        positive(self, "in_flight")
        for name in ("limit", "min_margin", "max_per_prompt"):
            not_negative(self, name)
        if self.samples_per_prompt < 2:
            raise SettingsError("samples_per_prompt must be at least 2: a pair has two answers")
        if self.max_per_prompt and self.pick != "all":
            raise SettingsError("max_per_prompt is for pick = all only")
