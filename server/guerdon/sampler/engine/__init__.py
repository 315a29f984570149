"""The policy on vLLM: drawing completions, and taking new weights whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guerdon.sampler.engine.settings import EngineSettings
    from guerdon.sampler.types import PolicyEngine


def new_engine(folder: Path, name: str, settings: EngineSettings) -> PolicyEngine:
    """An engine for the policy in a folder, not started."""
    from guerdon.sampler.engine.vllm_engine import VLLMEngine

    return VLLMEngine(folder, name, settings)
