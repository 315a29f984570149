"""How the engine computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How the engine computes."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the computation; auto: the checkpoint's own."""
