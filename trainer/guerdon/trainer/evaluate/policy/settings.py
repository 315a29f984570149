"""The settings of `guerdon eval policy`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from guerdon.settings import not_negative, positive, refuse_idle
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.processes import settle_dtype
from guerdon.trainer.common.services.settings import PublishSettings


@dataclass(frozen=True, kw_only=True)
class EvalSettings(PublishSettings):
    """What is evaluated, on what terms, and what is measured."""

    policy: str
    """Folder, hub name or embedded model to evaluate; its weights are published to the sampler."""
    reference: str
    """Folder, hub name or embedded model that KL is measured from: what training began with."""
    sampler: str
    """HOST:PORT of a sampler that serves the same architecture; it keeps the policy's weights."""
    output: str
    """Folder of the evaluation."""
    heldout_reward: tuple[str, ...] = ()
    """HOST:PORT/MODEL that the policy was not trained on: parts from the reward when hacked."""
    harm: str = ""
    """HOST:PORT/MODEL of a served classifier that scores harmful answers higher."""
    harm_threshold: float | None = None
    """An answer is harmful when the classifier's raw score is over this. Needed with --harm."""
    baseline: str = ""
    """Folder of another evaluation of the same prompts, for win rates and differences."""
    by: tuple[str, ...] = ()
    """Field of the prompts' rows to break the figures down by. Repeatable."""

    prompts_split: str = "test"
    limit: int = 0
    """First so many prompts; 0 takes all."""
    samples_per_prompt: int = 4
    """Completions drawn for each."""
    temperature: float = 1.0
    """Sampling temperature; for KL the policy's and the reference's logits are divided by it
    too."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype of the computation of KL, and of what is published: as the recipes compute. auto is
    bfloat16 on a GPU and on processors that multiply in it, else float32."""

    publish: Literal["stream", "shared"] = "stream"
    """How weights reach the sampler: over gRPC, or by a path on a shared disk."""

    in_flight: int = 16
    """Prompts that are sampled or scored at once."""
    patience: float = 600.0
    """Seconds that a service may stay away before the evaluation ends."""
    plots: bool = True
    """Draw plots/*.png."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.harm and self.harm_threshold is None:
            raise SettingsError(
                "harm_threshold is missing: only you know from where a score of "
                "the classifier means harm"
            )
        refuse_idle(self, ("harm_threshold",), used=self.harm, because="without harm")
        if self.harm_threshold is not None and not math.isfinite(self.harm_threshold):
            raise SettingsError(f"harm_threshold is {self.harm_threshold}, it must be a number")
        positive(self, "in_flight")
        not_negative(self, "limit")
        if len(set(self.by)) != len(self.by):
            raise SettingsError(f"by names a field twice: {', '.join(self.by)}")
        settle_dtype(self)
