"""Rewards as settings name them: `[WEIGHT*]HOST:PORT/MODEL` of served models. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon.trainer.common.errors import OutputError, SettingsError
from guerdon.trainer.common.services.patience import parse_address

_WEIGHT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\*(.*)", re.S)


def split_weight(spec: str, setting: str) -> tuple[float, str]:
    """The weight of `WEIGHT*REST`, and the rest; 1 when there is none.

    Raises:
        SettingsError: the weight is 0 or not finite.
    """
    found = _WEIGHT.fullmatch(spec)
    if found is None:
        return 1.0, spec
    weight = float(found[1])
    if weight == 0 or weight in (float("inf"), float("-inf")):
        raise SettingsError(f"{setting}: the weight of {spec!r} must be finite and not 0")
    return weight, found[2]


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """A served reward model, as the settings name it."""

    name: str
    """The name of this part of the reward: the model's, without revision."""
    weight: float
    address: str
    """HOST:PORT."""
    model: str
    """A name, an alias, or `name@revision`."""

    def described(self, *, normalized: bool) -> str:
        """The model, and whether its scores are normalised: without its server's address."""
        return f"{self.model} (normalised)" if normalized else self.model


def parse_reward(spec: str, setting: str = "reward") -> RewardSpec:
    """The reward model of `HOST:PORT/MODEL` or `WEIGHT*HOST:PORT/MODEL`.

    Raises:
        SettingsError: it is none of these.
    """
    weight, rest = split_weight(spec, setting)
    address, slash, model = rest.strip().partition("/")
    name = model.partition("@")[0]
    if not slash or not name:
        raise SettingsError(f"{setting}: {spec!r} is not HOST:PORT/MODEL or WEIGHT*HOST:PORT/MODEL")
    return RewardSpec(name, weight, parse_address(address, setting), model)


def check_same_models(
    folder: Path, before: Mapping[str, Any], settings: Any, keys: Sequence[str]
) -> None:
    """Refuse to go on with rewards by other models; their servers may have moved.

    Args:
        folder: of the run.
        before: the settings that it was begun with.
        settings: those of now.
        keys: the settings that name reward models.

    Raises:
        OutputError: the models are others.
    """
    for key in keys:
        was, now = before.get(key, []), getattr(settings, key)
        now = list(now) if isinstance(now, tuple) else now
        if _models(was) != _models(now):
            raise OutputError(
                f"{folder} was begun with {key} = {was!r}, not {now!r}: a resumed "
                "run may find the same models at another address, but not other models"
            )


def _models(rewards: str | Sequence[str]) -> list[tuple[float, str]]:
    """Which models give rewards, wherever they are served."""
    given = [rewards] if isinstance(rewards, str) else rewards
    return [(spec.weight, spec.model) for spec in map(parse_reward, filter(None, given))]
