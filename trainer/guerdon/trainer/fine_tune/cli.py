"""`guerdon train sft|dpo|orpo`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guerdon.trainer.common.trl.command import FineTuneCommand
from guerdon.trainer.fine_tune.settings import (
    DPOSettings,
    ORPOSettings,
    PolicySettings,
    SFTSettings,
)

if TYPE_CHECKING:
    from rich.console import Console

    from guerdon.trainer.common.trl.folder import FineTuneFolder
    from guerdon.trainer.fine_tune.task import PolicyTask

PANELS: dict[str, tuple[str, ...]] = {
    "The run": ("policy", "train", "eval", "output", "seed"),
    "Data": (
        "train_split", "eval_split", "chat_template", "limit", "eval_limit", "max_length",
        "too_long", "bad_rows",
    ),
    "The loss": ("beta", "loss", "label_smoothing", "odds_weight", "precompute_reference"),
    "Optimiser": (
        "epochs", "batch_size", "accumulate", "lr", "warmup", "weight_decay", "max_grad_norm",
        "lora_r", "lora_alpha", "lora_dropout",
    ),
    "Memory and speed": ("dtype", "save_dtype", "gradient_checkpointing", "packing"),
    "Measuring": (
        "log_every", "eval_every", "by", "checkpoint_every", "keep_checkpoints",
        "sample_prompts", "sample_tokens", "tracker", "plots",
    ),
}  # fmt: skip
"""Headings of `--help`, in this order; every field of every settings class is under one."""

_DETAILS = """

Every option is also a key of the TOML file that --config names, with _ for -; the command line
wins. No service is needed."""


class PolicyCommand(FineTuneCommand):
    """`guerdon train sft`, `dpo` or `orpo`.

    Args:
        options: the settings.
        summary: the first line of its help.
    """

    panels = PANELS
    dry_run_help = "Check the data, show settings and memory, and train nothing."

    def __init__(self, options: type[PolicySettings], summary: str) -> None:
        self.options, self.help = options, summary + _DETAILS

    def folder(self, settings: PolicySettings) -> type[FineTuneFolder]:
        """The kind of folder that has a policy in the end."""
        from guerdon.trainer.common.trl.folder import TunedPolicyFolder

        return TunedPolicyFolder

    def read_task(self, settings: PolicySettings) -> PolicyTask[Any]:
        """Load and check the data and the tokenizer."""
        from guerdon.trainer.fine_tune.read_task import read_task

        return read_task(settings)

    def show_summary(self, summary: dict[str, Any], folder: Any, console: Console) -> None:
        """Show the measures before and after as a table, and where the policy is."""
        from guerdon.trainer.fine_tune.report import show_summary

        show_summary(summary, folder, console)


COMMANDS = (
    PolicyCommand(
        SFTSettings, "Fine-tune a policy on answers: instruction tuning, prompts without loss."
    ),
    PolicyCommand(
        DPOSettings, "Train a policy on preference pairs by DPO, against a frozen reference."
    ),
    PolicyCommand(
        ORPOSettings,
        "Train a policy on preference pairs by ORPO: likelihood and odds, no reference.",
    ),
)
