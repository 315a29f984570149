"""What reward servers answer, as the gateway hands it on: named as in their own JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from guerdon.client import ModelInfo, ScoringInfo
from guerdon.client import Score as ClientScore
from guerdon.gateway.types import Score, Unscored


def ranking_score(reply: ClientScore, info: ScoringInfo) -> Score | Unscored:
    """A score with what the model says beside it; `Unscored` where any number isn't finite."""
    numbers = [reply.score, *(step.score for step in reply.steps), *reply.attributes.values()]
    numbers += [*reply.members, 0.0 if reply.spread is None else reply.spread]
    for number in numbers:
        if not math.isfinite(number):
            return Unscored(f"{info.model} gives {number}, which is no finite number")
    beside = {
        "steps": [dataclasses.asdict(step) for step in reply.steps],
        "attributes": [{"name": k, "value": v} for k, v in reply.attributes.items()],
        "members": [*reply.members],
        "spread": reply.spread,
    }
    said = {name: value for name, value in beside.items() if value not in ([], None)}
    return Score(reply.score, info.model, info.revision, said)


def model_card(info: ModelInfo) -> dict[str, Any]:
    """A model's card, without what it leaves open."""
    card = dataclasses.asdict(info)
    card["attributes"] = {each.name: each.weight for each in info.attributes}
    return {name: value for name, value in card.items() if value is not None}
