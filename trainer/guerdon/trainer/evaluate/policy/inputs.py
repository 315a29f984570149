"""What an evaluation starts from, checked before anything is asked of a service."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon.models import file_hash
from guerdon.trainer.common.data.tokens import load_tokenizer
from guerdon.trainer.common.errors import DataError, SettingsError, TrainingError
from guerdon.trainer.common.models.language_model import find_policy
from guerdon.trainer.common.services.inputs import (
    RunInputs,
    check_positions,
    check_services,
    check_verifiers,
    read_prompts,
)
from guerdon.trainer.common.services.prompts import Prompts
from guerdon.trainer.common.services.reward_specs import parse_reward
from guerdon.trainer.evaluate.policy.settings import EvalSettings


@dataclass(frozen=True, slots=True)
class EvalInputs:
    """Both policies' folders, and the prompts."""

    run: RunInputs
    """The inputs as the connections of a run want them."""
    reference: Path
    policy_sha256: str
    """SHA-256 of the weights' files."""
    reference_sha256: str
    subgroups: dict[str, dict[str, list[int]]]
    """The indices of the prompts, by field and value."""

    @property
    def prompts(self) -> Prompts:
        """The prompts."""
        return self.run.prompts

    @property
    def is_reference(self) -> bool:
        """Whether the policy is the reference itself, so that KL is 0."""
        return self.policy_sha256 == self.reference_sha256


def read_inputs(settings: EvalSettings) -> EvalInputs:
    """Load and check all that can be wrong before a service is asked.

    Raises:
        TrainingError: something is; says what.
    """
    check_services(settings)
    if settings.harm and parse_reward(settings.harm, "harm").weight != 1.0:
        raise SettingsError(f"harm: {settings.harm!r} has a weight, and it takes none")
    policy, config = _policy(settings.policy)
    reference, reference_config = _policy(settings.reference)
    tokenizer = load_tokenizer(policy)
    prompts = read_prompts(settings, tokenizer, config, limit=settings.limit)
    check_verifiers(settings, prompts)
    for of in (config, reference_config):
        check_positions(of, settings.max_tokens, prompts.longest)
    shas = fingerprint(policy), fingerprint(reference)
    if shas[0] != shas[1] and load_tokenizer(reference).get_vocab() != tokenizer.get_vocab():
        raise SettingsError(
            f"reference: {settings.reference} has another vocabulary than {settings.policy}, so "
            "there is no KL between them, token by token"
        )
    run = RunInputs(policy, config, tokenizer, prompts, prompts)
    groups = {field: subgroup(prompts, field) for field in settings.by}
    return EvalInputs(run, reference, *shas, groups)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and the bytes of a policy's safetensors files.

    Raises:
        TrainingError: there are none.
    """
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise TrainingError(f"{folder} holds no safetensors: it is no policy that can be loaded")
    for file in files:
        digest.update(f"{file.name}\n".encode() + bytes.fromhex(file_hash(file)))
    return digest.hexdigest()


def subgroup(prompts: Prompts, field: str) -> dict[str, list[int]]:
    """The prompts' indices by the value of a field; the prompts that lack it are under "".

    Raises:
        SettingsError: none has it.
        DataError: a value is neither text, a number nor true or false.
    """
    found: dict[str, list[int]] = {}
    for line, row in zip(prompts.lines, prompts.rows, strict=True):
        value = row.extra.get(field)
        if not isinstance(value, str | int | float | None):
            raise DataError(f"{prompts.source}, line {line}: {field} (--by) must be text")
        found.setdefault("" if value is None else str(value), []).append(row.index)
    if set(found) == {""}:
        have = sorted({name for row in prompts.rows for name in row.extra})
        raise SettingsError(
            f"by: no prompt of {prompts.source} has the field {field!r}; their fields are "
            f"{', '.join(have) or 'none'}"
        )
    return dict(sorted(found.items()))


def _policy(name: str) -> tuple[Path, Any]:
    """The folder and the config of a language model.

    Raises:
        TrainingError: it can't be had, or is a model that scores.
    """
    folder, config = find_policy(name)
    for architecture in config.architectures or ():
        if architecture.endswith(("ForSequenceClassification", "ForTokenClassification")):
            raise SettingsError(f"{name} is a {architecture}: it scores, and is no policy")
    return folder, config
