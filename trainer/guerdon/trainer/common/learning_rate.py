"""The peak learning rate of recipes that train all weights or LoRA's."""

from __future__ import annotations

from typing import ClassVar


class LearningRate:
    """The rate of settings with `lr` and `lora_r`; `--help` tells the class's own defaults."""

    default_lr: ClassVar[float]
    default_lora_lr: ClassVar[float]
    lr: float | None
    lora_r: int

    @property
    def learning_rate(self) -> float:
        """The peak learning rate, chosen or by default."""
        if self.lr is not None:
            return self.lr
        return self.default_lora_lr if self.lora_r else self.default_lr
