"""What a run of DPO leaves for serving: the reward that its policy implies against the reference.

    guerdon serve reward --model mine=RUN/reward

The folder holds guerdon.json alone; it names `../final` and the policy that training began from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guerdon.models import EMBEDDED_MODELS, Manifest, template_hash, weights_hash
from guerdon.trainer.common.measuring.measures import Floats
from guerdon.trainer.common.policy_folder import PolicyFolder


def leave_reward(
    folder: PolicyFolder,
    *,
    policy: str,
    resolved: Path,
    template: str | None,
    beta: float,
    train_data: str,
    training: Mapping[str, Any],
    rewards: Floats | None = None,
) -> None:
    """Write `reward/guerdon.json` into a run's folder, beside its `final/`.

    Args:
        folder: of the run, with its policy in it.
        policy: what training began from, as the settings name it: the reference.
        resolved: its folder.
        template: the tokenizer's chat template.
        beta: of the loss.
        train_data: for the manifest.
        training: notes for the manifest.
        rewards: β·(log π − log π_ref) of held-out answers, for mean and std; None knows none.
    """
    folder.reward.mkdir(exist_ok=True)
    mean, std = (None, 0.0) if rewards is None else (float(rewards.mean()), float(rewards.std()))
    # All rewards are the same where nothing was learned: then nothing can be normalised.
    Manifest(
        kind="implicit",
        policy=os.path.relpath(folder.final, folder.reward),
        reference=_reference(policy, resolved, folder.reward),
        reference_hash="" if policy in EMBEDDED_MODELS else weights_hash(resolved),
        beta=beta,
        mean=mean if std > 0 else None,
        std=std if std > 0 else None,
        template_hash=template_hash(template),
        base_model=policy,
        train_data=train_data,
        training=dict(training),
    ).write(folder.reward)


def _reference(name: str, resolved: Path, folder: Path) -> str:
    """A folder relative to the manifest's, so that both can move together; or the model's name."""
    if Path(name).expanduser().is_dir():
        return os.path.relpath(resolved, folder.resolve())
    return name
