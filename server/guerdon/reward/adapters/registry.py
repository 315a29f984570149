"""Which published model a config.json belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guerdon.reward.adapters.armorm import ArmoRM
from guerdon.reward.adapters.base import Adapter
from guerdon.reward.adapters.inf_orm import INFORM
from guerdon.reward.adapters.internlm2 import InternLM2Reward
from guerdon.reward.adapters.pairrm import PairRM
from guerdon.reward.adapters.qrm import QRM
from guerdon.reward.adapters.qwen_math import Qwen25MathPRM, Qwen25MathRM
from guerdon.reward.adapters.urm import URM
from guerdon.reward.types import ModelKind

ADAPTERS: tuple[Adapter, ...] = (
    Qwen25MathRM(),
    Qwen25MathPRM(),
    INFORM(),
    ArmoRM(),
    QRM(),
    URM(),
    InternLM2Reward(),
    PairRM(),
)
"""All published models; at most one applies to any config."""


def architectures(kind: ModelKind) -> str:
    """The names of the published architectures of a kind, for people."""
    return " or ".join(adapter.architecture for adapter in ADAPTERS if adapter.kind is kind)


def find_adapter(values: Mapping[str, Any]) -> Adapter | None:
    """The published model that a parsed config.json describes, or None."""
    named = values.get("architectures")
    for adapter in ADAPTERS:
        same = named == [adapter.architecture] and values.get("model_type") == adapter.model_type
        if same and adapter.applies(values):
            return adapter
    return None
