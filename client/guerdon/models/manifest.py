"""`guerdon.json`: what a checkpoint's own files do not say and serving needs.

A folder without it can be served when its head is a plain one-number sequence
classifier; whatever goes beyond that must be stated.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guerdon.settings import SettingsError, build

MANIFEST_NAME = "guerdon.json"
FORMAT_VERSION = 1

KINDS = ("sequence", "attributes", "process", "ensemble", "pairwise", "implicit", "verdict")
AGGREGATIONS = ("mean", "min", "mean_minus_std")
STEP_AGGREGATIONS = ("min", "mean", "last", "product")
QUESTION_SLOTS = ("prompt", "response", "instruction")
"""Names that stand in braces in a `question`, where an item's texts are put."""


class ManifestError(ValueError):
    """`guerdon.json` is missing something or says something that cannot be."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `guerdon.json`. Unknown keys are errors."""

    format: int = FORMAT_VERSION
    kind: str = "sequence"
    """What kind of model it is, one of `KINDS`."""
    mean: float | None = None
    """Mean raw score of the responses in the training set."""
    std: float | None = None
    """Standard deviation of those scores; positive."""
    template_hash: str = ""
    """What `template_hash` gives for the chat template it was trained with."""
    base_model: str = ""
    train_data: str = ""
    """Path or name of the training data, and its SHA-256 where it is a file."""
    max_tokens: int | None = None
    """Longest sequence that is served, where the model's own limit is not what is wanted."""
    attributes: dict[str, float] = field(default_factory=dict)
    """kind = attributes: names in the head's order, and their weights."""
    step_marker: str = ""
    """kind = process: the text of the one token that ends a step."""
    step_aggregation: str = "min"
    """kind = process: how steps become one score, one of `STEP_AGGREGATIONS`."""
    members: tuple[str, ...] = ()
    """kind = ensemble: folders of the members, relative to this one."""
    aggregation: str = "mean"
    """kind = ensemble: one of `AGGREGATIONS`."""
    std_weight: float = 1.0
    """kind = ensemble, mean_minus_std: λ in mean − λ·std."""
    policy: str = ""
    """kind = implicit: the trained language model: a folder, relative to this one, or a name that
    `resolve_model` knows."""
    reference: str = ""
    """kind = implicit: the language model that training held it to, in the same way."""
    reference_hash: str = ""
    """kind = implicit: what `weights_hash` gives for the reference."""
    beta: float | None = None
    """kind = implicit: β in β·(log π − log π_ref); positive. There is no default."""
    question: tuple[str, ...] = ()
    """kind = verdict: what the model is asked, in pieces that are tokenised each by itself. Of
    `QUESTION_SLOTS`, `{prompt}` and `{response}` stand in it once, in this order."""
    instruction: str = ""
    """kind = verdict: what stands for `{instruction}` where an item has no system turn."""
    yes_token: str = ""
    """kind = verdict: the text of the one token that speaks for the response."""
    no_token: str = ""
    """kind = verdict: that of the one that speaks against it; without it the score is a logit."""
    probability: bool = False
    """kind = verdict: whether the score is p(yes) of the two tokens instead of its log-odds."""
    double_bos: bool = False
    """Whether the model was trained on sequences that begin with two BOS tokens."""
    training: dict[str, Any] = field(default_factory=dict)
    """Free notes of the training: settings, seed, held-out accuracy, versions."""

    def __post_init__(self) -> None:
        if self.format != FORMAT_VERSION:
            raise ManifestError(f"format is {self.format}, this version reads {FORMAT_VERSION}")
        _check_choice("kind", self.kind, KINDS)
        _check_choice("aggregation", self.aggregation, AGGREGATIONS)
        _check_choice("step_aggregation", self.step_aggregation, STEP_AGGREGATIONS)
        weights = {f"attributes.{name}": weight for name, weight in self.attributes.items()}
        for name, value in {"mean": self.mean, "std": self.std, **weights}.items():
            if value is not None and not math.isfinite(value):
                raise ManifestError(f"{name} is {value}, which is not a finite number")
        if (self.mean is None) != (self.std is None):
            raise ManifestError("mean and std come together or not at all")
        if self.std is not None and self.std <= 0:
            raise ManifestError(f"std is {self.std}, it must be positive")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ManifestError(f"max_tokens is {self.max_tokens}, it must be positive")
        if self.kind == "attributes" and not self.attributes:
            raise ManifestError("kind is attributes, but attributes is empty")
        if self.kind == "process" and not self.step_marker:
            raise ManifestError("kind is process, but step_marker is empty")
        if self.kind == "ensemble" and not self.members:
            raise ManifestError("kind is ensemble, but members is empty")
        self._check_implicit()
        self._check_verdict()

    def _check_implicit(self) -> None:
        if self.kind == "implicit":
            for name in ("policy", "reference"):
                if not getattr(self, name):
                    raise ManifestError(f"kind is implicit, but {name} is empty")
            if self.beta is None:
                raise ManifestError("kind is implicit, but beta is missing")
        if self.beta is not None and not (math.isfinite(self.beta) and self.beta > 0):
            raise ManifestError(f"beta is {self.beta}, it must be a finite number above 0")

    def _check_verdict(self) -> None:
        if self.kind == "verdict":
            for name in ("question", "yes_token"):
                if not getattr(self, name):
                    raise ManifestError(f"kind is verdict, but {name} is empty")
        if self.question:
            self._check_question()
        if self.probability and not self.no_token:
            raise ManifestError(
                "probability is true, but no_token is empty: one token's logit is no log-odds"
            )

    def _check_question(self) -> None:
        """The slots are those of `QUESTION_SLOTS`, once each, the prompt before the response."""
        if not all(self.question):
            raise ManifestError("question has an empty piece")
        found = [slot for piece in self.question for slot in re.findall(r"\{(\w*)\}", piece)]
        for slot in found:
            if slot not in QUESTION_SLOTS:
                raise ManifestError(
                    f"question holds {{{slot}}}, and only "
                    f"{', '.join(f'{{{name}}}' for name in QUESTION_SLOTS)} may stand in it"
                )
        for slot in ("prompt", "response"):
            if found.count(slot) != 1:
                raise ManifestError(
                    f"question holds {{{slot}}} {found.count(slot)} times, it must be once"
                )
        if found.index("prompt") > found.index("response"):
            raise ManifestError("question holds {response} before {prompt}")
        if found.count("instruction") > 1:
            raise ManifestError("question holds {instruction} twice")
        if ("instruction" in found) != bool(self.instruction):
            raise ManifestError(
                "instruction is given, but question holds no {instruction}"
                if self.instruction
                else "question holds {instruction}, but instruction is empty"
            )

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Manifest | None:
        """The manifest of a folder, or None when it has none.

        Raises:
            ManifestError: the file is not JSON, has unknown keys or wrong values.
        """
        path = Path(folder) / MANIFEST_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ManifestError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise ManifestError(f"{path} must hold one JSON object")
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Manifest:
        """A manifest from parsed JSON; the nearest known key is named for a wrong one."""
        try:
            return build(cls, data)
        except SettingsError as error:
            raise ManifestError(str(error)) from error

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write `guerdon.json`, whole or not at all."""
        path = Path(folder) / MANIFEST_NAME
        part = path.with_suffix(".json.part")
        text = json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"
        part.write_text(text, encoding="utf-8")
        part.replace(path)


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ManifestError(f"{name} is {value!r}, it must be one of {', '.join(known)}")
