"""`guerdon data …`: training data from the services. Nothing heavy is imported before needed."""

from __future__ import annotations

import sys

import typer

from guerdon.trainer.common.services.settings import SERVICES
from guerdon.trainer.common.settings_options import Overwrite, Resume, recipe_command
from guerdon.trainer.preference_data.settings import PairsSettings

PANELS: dict[str, tuple[str, ...]] = {
    "The run": ("policy", "sampler", "prompts", "output", "limit", "seed"),
    "Rewards": (
        "reward", "reward_normalize", "verifier", "reward_too_long", "reward_refused",
        "refused_reward",
    ),
    "Prompts": (
        "prompts_split", "prompt_key", "answer_key", "max_prompt_tokens", "control_tokens",
    ),
    "Sampling": ("samples_per_prompt", "max_tokens", "temperature"),
    "Pairs": ("pick", "min_margin", "max_per_prompt", "unfinished"),
    "Services": ("in_flight", *SERVICES),
}  # fmt: skip
"""Headings of `guerdon data pairs --help`."""

app = typer.Typer(help="Make training data from the services.", no_args_is_help=True)


@app.callback()
def _several() -> None:
    """Keeps `pairs` a command of its own."""


@app.command("pairs")
@recipe_command(PairsSettings, PANELS)
def pairs(
    settings: PairsSettings,
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Preference pairs of a policy's own answers: sample, score, best against worst.

    The pairs are rows for `guerdon train dpo|orpo|reward`. What is sampled is on the disk as it
    comes: --resume goes on, and may pick otherwise of what is there.
    """
    from rich.console import Console

    from guerdon.trainer.common.report import say
    from guerdon.trainer.preference_data.run import PAIRS, PairsFolder, collect

    console = Console(stderr=not sys.stdout.isatty())
    folder = PairsFolder(settings, resume=resume, overwrite=overwrite)
    found = collect(settings, folder, console)
    say(
        console,
        f"{found['pairs']} pairs of {found['completions']} answers to {found['prompts']} prompts; "
        f"margin {found['margin']['p50']:.3g} at the median; the chosen answer is the longer in "
        f"{found['chosen_is_longer']:.0%}",
    )
    left = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in found["left_out"].items() if n)
    if left:
        say(console, f"left out: {left}", "yellow")
    say(console, f"pairs: {folder.path / PAIRS}")
