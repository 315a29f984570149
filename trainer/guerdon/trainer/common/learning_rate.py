"""The peak learning rate of recipes that train all weights or LoRA's."""

from __future__ import annotations

from decimal import Decimal
from typing import ClassVar


class LearningRate:
    """The rate of settings with `lr` and `lora_r`; `--help` tells the class's own defaults."""

    default_lr: ClassVar[float]
    default_lora_lr: ClassVar[float]
    lr: float | None
    lora_r: int

    @classmethod
    def shown_defaults(cls) -> dict[str, str]:
        """The default of `lr` in words, for help and reference."""
        rates = (Decimal(repr(rate)) for rate in (cls.default_lr, cls.default_lora_lr))
        return {"lr": "{:e}, and {:e} for LoRA".format(*rates)}

    @property
    def learning_rate(self) -> float:
        """The peak learning rate, chosen or by default."""
        if self.lr is not None:
            return self.lr
        return self.default_lora_lr if self.lora_r else self.default_lr
