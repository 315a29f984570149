"""Another evaluation of the same prompts, to compare with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.data import RowError, read_jsonl
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.common.measuring.statistics import Estimate, estimate
from guerdon.trainer.common.policy_folder import SAMPLES
from guerdon.trainer.evaluate.policy.columns import HARM, HELDOUT
from guerdon.trainer.evaluate.policy.folder import EVALUATION
from guerdon.trainer.evaluate.policy.winning import Scores

FORMAT = 1
"""The version of evaluation.json's format."""
_SAME = ("prompts", "samples_per_prompt", "max_tokens", "temperature", "rewards")
"""What two evaluations must share to be compared."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The evaluation in a folder, read and found whole."""

    path: Path
    found: Mapping[str, Any]
    """The content of evaluation.json."""
    columns: Mapping[str, Scores]
    """Each completion's number, by the name of a measure and the prompt's index."""

    @classmethod
    def read(cls, folder: str) -> Baseline:
        """The evaluation in a folder.

        Raises:
            DataError: there is none, or it is not whole.
        """
        path = Path(folder)
        if not (path / EVALUATION).exists():
            raise DataError(
                f"baseline: {path} holds no {EVALUATION}: give the folder of an evaluation that "
                "has ended"
            )
        try:
            found = json.loads((path / EVALUATION).read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise DataError(f"baseline: {path} has format {found['format']}, not {FORMAT}")
            columns = _columns(path / SAMPLES)
            rows = sum(len(values) for values in columns["reward"].values())
            whole = found["prompts"]["count"] * found["samples_per_prompt"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RowError) as error:
            raise DataError(f"baseline: {path} can't be read: {error!r}") from error
        if rows != whole:
            raise DataError(f"baseline: {path / SAMPLES} has {rows} completions of {whole}")
        return cls(path, found, columns)

    def check(self, ours: Mapping[str, Any]) -> None:
        """Refuse what can't be compared.

        Args:
            ours: the terms of the evaluation to come, under the keys of evaluation.json.

        Raises:
            DataError: the baseline has others.
        """
        for key in _SAME:
            was, now = self.found.get(key), ours[key]
            if key == "prompts":
                if _identity(was) != _identity(now):
                    raise DataError(
                        f"baseline: {self.path} is of other prompts: {_said(was)}, not {_said(now)}"
                    )
            elif was != now:
                raise DataError(
                    f"baseline: {self.path} was made with {key} = {_text(was)}, not {_text(now)}"
                )

    def check_revisions(self, revisions: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse scores by other revisions of the reward models.

        Raises:
            DataError: they are others.
        """
        theirs = self.found["revisions"]["rewards"]
        for name, revision in revisions["rewards"].items():
            if theirs.get(name) != revision:
                raise DataError(
                    f"baseline: {self.path} was scored by revision {theirs.get(name)} of {name!r}, "
                    f"and {revision} is served now: evaluate the baseline anew"
                )

    def comparable(self, ours: Mapping[str, Any]) -> list[str]:
        """The measures that mean the same in both: those that need not be are left out.

        Args:
            ours: evaluation.json, as far as it is known.
        """
        left = set()
        for key, name in ((HELDOUT, "heldout_reward"), (HARM, "harmful")):
            theirs, mine = (of["revisions"].get(key) for of in (self.found, ours))
            if self.found.get(key) != ours[key] or theirs != mine:
                left.add(name)
        if self.found.get("reference_sha256") != ours["reference_sha256"]:
            left.add("kl")
        return [name for name in self.columns if name not in left]

    def has_weights(self, sha256: str) -> bool:
        """Whether the weights that were evaluated are these."""
        return bool(self.found.get("policy_sha256") == sha256)

    def means(self, name: str) -> dict[int, float]:
        """Each prompt's mean of a measure, by its index."""
        return {index: float(np.mean(values)) for index, values in self.columns[name].items()}

    @property
    def reward(self) -> Estimate:
        """The mean reward."""
        return estimate(list(self.means("reward").values()))


def row_measures(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of samples.jsonl, by the names of the measures."""
    parts = row["parts"]
    found = {"reward": row["reward"]}
    if len(parts) > 1:
        found |= {f"reward/{name}": value for name, value in parts.items()}
    for key, name in (
        ("heldout_reward", "heldout_reward"),
        ("kl", "kl"),
        ("tokens", "length"),
        ("finished", "finished"),
        ("repetition", "repetition"),
        ("refusal", "refusal"),
        ("harmful", "harmful"),
    ):
        if key in row:
            found[name] = row[key]
    return {name: float(value) for name, value in found.items()}


def _columns(path: Path) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {"reward": {}}
    for _, row in read_jsonl(str(path)):
        for name, value in row_measures(row).items():
            found.setdefault(name, {}).setdefault(int(row["prompt_index"]), []).append(value)
    return found


def _identity(prompts: Any) -> tuple[Any, ...]:
    return prompts["sha256"], prompts["count"], *_keys(prompts)


def _keys(prompts: Any) -> tuple[str, str]:
    """The columns of prompt and answer; before they could be chosen, evaluations named none."""
    return prompts.get("prompt_key", "prompt"), prompts.get("answer_key", "answer")


def _said(prompts: Any) -> str:
    keys = "/".join(_keys(prompts))
    return f"{prompts['count']} of {prompts['source']}, {keys} ({prompts['sha256'][:12]}…)"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
