"""`guerdon eval policy`. Nothing heavy is imported before the settings are known to be good."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from guerdon.trainer.common.services.settings import SERVICES
from guerdon.trainer.common.settings_options import Overwrite, Resume, recipe_command
from guerdon.trainer.evaluate.policy.settings import EvalSettings

PANELS: dict[str, tuple[str, ...]] = {
    "The evaluation": (
        "policy", "reference", "sampler", "prompts", "output", "limit", "seed", "by", "plots",
    ),
    "What is measured": (
        "reward", "reward_normalize", "verifier", "heldout_reward", "harm", "harm_threshold",
        "baseline", "reward_too_long", "reward_refused", "refused_reward",
    ),
    "Prompts": (
        "prompts_split", "prompt_key", "answer_key", "max_prompt_tokens", "control_tokens",
    ),
    "Sampling": ("samples_per_prompt", "max_tokens", "temperature", "dtype"),
    "Weights to the sampler": ("publish", "shared_dir", "canaries", "canary_tolerance"),
    "Services": ("in_flight", *SERVICES, "admin_token_file"),
}  # fmt: skip
"""Headings of `guerdon eval policy --help`."""


@recipe_command(EvalSettings, PANELS)
def policy(
    settings: EvalSettings,
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print evaluation.json on standard output.")
    ] = False,
) -> None:
    """Reward, win rate, KL, length, repetition, refusals and harm of a policy's own answers.

    The policy's weights are published to the sampler, which keeps them: one sampler serves
    evaluation after evaluation of policies of one architecture, one at a time. To compare two,
    evaluate the first (say, what training began from), then the second with the first's folder as
    --baseline. What is sampled and scored is on the disk as it comes: --resume goes on, and may
    ask for another --baseline, --by or --harm-threshold of what is there.
    """
    from rich.console import Console

    from guerdon.trainer.evaluate.policy.folder import EvalFolder
    from guerdon.trainer.evaluate.policy.report import show
    from guerdon.trainer.evaluate.policy.run import evaluate_policy

    console = Console(stderr=json_ or not sys.stdout.isatty())
    folder = EvalFolder(settings, resume=resume, overwrite=overwrite)
    found = evaluate_policy(settings, folder, console)
    show(found, folder.path, console)
    if json_:
        typer.echo(json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False))
