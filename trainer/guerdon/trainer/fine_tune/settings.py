"""The settings of `guerdon train sft|dpo|orpo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from guerdon.settings import not_negative, positive, refuse_idle
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.trl.settings import FineTuneSettings


@dataclass(frozen=True, kw_only=True)
class PolicySettings(FineTuneSettings):
    """What the three share."""

    policy: str
    """Folder, hub name or embedded model to begin from."""
    sample_prompts: int = 4
    """Held-out prompts that are answered before and after, greedily, for samples.jsonl."""
    sample_tokens: int = 64
    """Tokens of the longest of these answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "sample_prompts")
        positive(self, "sample_tokens")
        refuse_idle(
            self, ("sample_tokens",), used=self.sample_prompts, because="where sample_prompts is 0"
        )


@dataclass(frozen=True, kw_only=True)
class SFTSettings(PolicySettings):
    """Supervised fine-tuning."""

    algorithm: ClassVar[str] = "sft"
    default_lr: ClassVar[float] = 2e-5
    default_lora_lr: ClassVar[float] = 2e-4

    packing: Literal["auto", "off"] = "auto"
    """Compute a batch in one row without padding: `auto` when a probe shows that its answers
    don't see each other."""


@dataclass(frozen=True, kw_only=True)
class DPOSettings(PolicySettings):
    """Direct preference optimisation."""

    algorithm: ClassVar[str] = "dpo"
    default_lr: ClassVar[float] = 5e-6
    default_lora_lr: ClassVar[float] = 5e-5

    beta: float = 0.1
    """β: how strongly the policy is held to the reference."""
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """The paper's (arXiv:2305.18290), IPO's (arXiv:2310.12036, over mean log-probabilities as in
    TRL), or SLiC's hinge (arXiv:2305.10425)."""
    label_smoothing: float = 0.0
    """Label smoothing for sigmoid: share of the pairs that are taken to be the wrong way round
    (cDPO)."""
    precompute_reference: bool = False
    """Compute the reference's log-probabilities once, before training, and let it go: less
    memory, less time where there are several epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "beta")
        if not 0 <= self.label_smoothing < 0.5:
            raise SettingsError(
                f"label_smoothing is {self.label_smoothing}, it must be 0 or more and under 0.5"
            )
        if self.label_smoothing and self.loss != "sigmoid":
            raise SettingsError("label_smoothing is for loss = sigmoid only")


@dataclass(frozen=True, kw_only=True)
class ORPOSettings(PolicySettings):
    """Odds-ratio preference optimisation: no reference."""

    algorithm: ClassVar[str] = "orpo"
    default_lr: ClassVar[float] = 1e-5
    default_lora_lr: ClassVar[float] = 1e-4

    odds_weight: float = 0.1
    """λ: weight of the odds ratio beside the likelihood of the chosen answer (arXiv:2403.07691)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "odds_weight")
