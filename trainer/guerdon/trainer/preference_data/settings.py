"""The settings of `guerdon data pairs`."""

from __future__ import annotations

from dataclasses import dataclass

from guerdon.settings import not_negative, positive
from guerdon.trainer.common.services.settings import PickSettings


@dataclass(frozen=True, kw_only=True)
class PairsSettings(PickSettings):
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

    in_flight: int = 32
    """Prompts that are sampled or scored at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "in_flight")
        not_negative(self, "limit")
