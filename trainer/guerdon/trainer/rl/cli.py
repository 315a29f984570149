"""The commands of `guerdon train` for recipes of reinforcement learning.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer

from guerdon.settings import to_toml
from guerdon.trainer.common.processes import is_main
from guerdon.trainer.common.settings_options import Overwrite, Resume, recipe_command
from guerdon.trainer.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    OnlineRFTSettings,
    PPOSettings,
    RFTSettings,
    RLOOSettings,
    RunSettings,
)

PANELS: dict[str, tuple[str, ...]] = {
    "The run": ("policy", "sampler", "prompts", "eval_prompts", "output", "steps", "seed"),
    "Prompts": (
        "prompts_split", "eval_prompts_split", "prompts_limit", "prompt_key", "answer_key",
        "max_prompt_tokens", "control_tokens",
    ),
    "Rewards": (
        "reward", "reward_normalize", "verifier", "heldout_reward", "reward_scale", "reward_clip",
        "missing_eos_penalty", "reward_too_long", "reward_refused", "refused_reward",
    ),
    "Sampling": (
        "prompts_per_step", "samples_per_prompt", "max_tokens", "temperature", "max_staleness",
        "deterministic",
    ),
    "What is trained on": (
        "keep", "threshold", "top", "deduplicate", "keep_cut", "pick", "min_margin",
        "unfinished", "max_per_prompt",
    ),
    "Preference loss": ("loss", "beta"),
    "Policy loss": (
        "clip", "clip_high", "dual_clip", "behaviour_cap", "behaviour_mode", "entropy_coef",
        "aggregation",
    ),
    "KL to the reference": ("kl_coef", "kl_in", "kl_target", "kl_horizon"),
    "Advantages": ("scale_by_std", "gamma", "lam", "whiten"),
    "Value model": (
        "value", "value_lr", "value_max_grad_norm", "value_coef", "value_warmup", "clip_value",
    ),
    "Optimiser": (
        "lr", "lr_schedule", "warmup_steps", "weight_decay", "max_grad_norm", "epochs",
        "minibatches", "batch_size", "lora_r", "lora_alpha",
    ),
    "Memory and speed": ("micro_batch_tokens", "dtype", "gradient_checkpointing"),
    "Weights to the sampler": (
        "publish", "publish_dtype", "shared_dir", "canaries", "canary_tolerance",
    ),
    "Access to the services": (
        "token_file", "admin_token_file", "verifier_token_file", "tls", "tls_ca",
    ),
    "Faults": ("patience", "request_timeout", "checkpoint_every", "keep_checkpoints"),
    "Measuring": (
        "eval_every", "eval_samples", "eval_limit", "sample_rows", "tracker", "plots",
    ),
}  # fmt: skip
"""Headings of `--help`, in this order; every field of every settings class is under one."""

RECIPES: dict[type[RunSettings], str] = {
    PPOSettings: "Train a policy by decoupled PPO, with a value model.",
    GRPOSettings: "Train a policy by GRPO: completions compete with others to the same prompt.",
    RLOOSettings: "Train a policy by RLOO: the baseline is a prompt's other completions.",
    RFTSettings: "Train a policy by RFT: sample once, keep the good ones, fine-tune on them.",
    OnlineRFTSettings: "Train a policy by Online RFT: the same at every step, as it trains.",
    OnlineDPOSettings: "Train a policy by Online DPO: pairs of its own completions at every step.",
}
"""Each command's settings, and the first line of its help."""

_DETAILS = """

Every option is also a key of the TOML file that --config names, with _ for -; the command line
wins. The sampler (guerdon serve sampler) must serve the same policy."""


def register(app: typer.Typer) -> None:
    """Add the commands to `guerdon train`."""
    for kind, summary in RECIPES.items():
        app.command(kind.algorithm, help=summary + _DETAILS)(_command(kind))


def _command(kind: type[RunSettings]) -> Any:
    @recipe_command(kind, PANELS)
    def command(
        settings: RunSettings,
        *,
        resume: Resume = False,
        overwrite: Overwrite = False,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run", help="Check the files, show settings and memory, and train nothing."
            ),
        ] = False,
    ) -> None:
        _run(settings, resume=resume, overwrite=overwrite, dry_run=dry_run)

    return command


def _run(settings: RunSettings, *, resume: bool, overwrite: bool, dry_run: bool) -> None:
    from rich.console import Console

    from guerdon.trainer.common.trackers import check_trackers
    from guerdon.trainer.rl.folder import RLFolder
    from guerdon.trainer.rl.report.summary import show_summary

    main = is_main()
    console = Console(stderr=not sys.stdout.isatty(), quiet=not main)
    check_trackers(settings.tracker)
    if dry_run:
        if main:
            _dry_run(settings, console)
        return
    folder = RLFolder(settings, resume=resume, overwrite=overwrite, main=main)
    if folder.finished:
        console.print("this run ended already: more --steps would go on with it")
        show_summary(folder.summary(), folder, console)
        return
    summary = _train(settings, folder, console, resume=resume)
    if main:
        show_summary(summary, folder, console)


def _train(
    settings: RunSettings, folder: Any, console: Any, *, resume: bool
) -> dict[str, Any]:  # pragma: no cover - by tests of whole runs, in processes of their own
    module: Any = importlib.import_module(settings.run_module)
    found: dict[str, Any] = module.train(settings, folder, console, resume=resume)
    return found


def _dry_run(settings: RunSettings, console: Any) -> None:
    from guerdon.trainer.common.models.memory import show_memory
    from guerdon.trainer.rl.inputs import memory_estimate, read_inputs, show_inputs

    inputs = read_inputs(settings)
    show_inputs(inputs, console)
    typer.echo(to_toml(settings))  # alone on standard output: it can be a file
    show_memory(memory_estimate(settings, inputs.config), console)
