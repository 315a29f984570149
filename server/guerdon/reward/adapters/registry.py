"""Which published model a config.json belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guerdon.reward.adapters import armorm, inf_orm, internlm2, pairrm, qrm, qwen_math, urm
from guerdon.reward.adapters.base import Adapter
from guerdon.reward.types import ModelKind

ADAPTERS: tuple[Adapter, ...] = (
    qwen_math.REWARD,
    qwen_math.PROCESS,
    inf_orm.ADAPTER,
    armorm.ADAPTER,
    qrm.ADAPTER,
    urm.ADAPTER,
    internlm2.ADAPTER,
    pairrm.ADAPTER,
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
