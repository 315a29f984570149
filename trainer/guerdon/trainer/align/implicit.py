"""What a DPO run leaves for serving: the reward that its policy implies against the reference.

    guerdon serve reward --model mine=RUN/reward

The folder holds guerdon.json alone; it names `../final` and the policy that training began from.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from guerdon.models import EMBEDDED_MODELS, Manifest, template_hash, weights_hash
from guerdon.trainer.align.folder import AlignFolder
from guerdon.trainer.align.inputs import AlignInputs
from guerdon.trainer.align.settings import DPOSettings
from guerdon.trainer.measures import Floats


def leave_reward(
    folder: AlignFolder, inputs: AlignInputs, rewards: tuple[Floats, Floats], steps: int
) -> None:
    """Write `reward/guerdon.json` into a run's folder, beside its `final/`.

    Args:
        folder: of the run, with its policy in it.
        inputs: of the run, whose settings are DPO's.
        rewards: β·(log π − log π_ref) of the chosen and the rejected held-out answers, [N].
        steps: that were trained.
    """
    settings = inputs.settings
    assert isinstance(settings, DPOSettings)
    folder.reward.mkdir(exist_ok=True)
    both = np.concatenate(rewards)
    mean, std = float(both.mean()), float(both.std())
    notes = asdict(settings) | {"lr": settings.learning_rate}
    Manifest(
        kind="implicit",
        policy=os.path.relpath(folder.final, folder.reward),
        reference=_reference(settings.policy, inputs.policy, folder.reward),
        reference_hash="" if settings.policy in EMBEDDED_MODELS else weights_hash(inputs.policy),
        beta=settings.beta,
        # All rewards are the same where nothing was learned: then nothing can be normalised.
        mean=mean if std > 0 else None,
        std=std if std > 0 else None,
        template_hash=template_hash(inputs.tokenizer.chat_template),
        base_model=settings.policy,
        train_data=f"{inputs.train.source} (sha256 {inputs.train.sha256})",
        training={
            "settings": {k: v for k, v in notes.items() if k not in ("output", "policy", "train")},
            "pairs": len(inputs.train.rows),
            "steps": steps,
            "statistics_over_held_out_answers": len(both),
        },
    ).write(folder.reward)


def _reference(name: str, resolved: Path, folder: Path) -> str:
    """A folder relative to the manifest's, so that both can move together; or the model's name."""
    if Path(name).expanduser().is_dir():
        return os.path.relpath(resolved, folder.resolve())
    return name
