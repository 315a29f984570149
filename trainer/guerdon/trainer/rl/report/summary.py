"""What a run says at its end: summary.json, and the same for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from guerdon.trainer.common.measuring.policy_evaluation import Evaluation, compare
from guerdon.trainer.common.measuring.samples import before_and_after
from guerdon.trainer.common.report import say, show_policy, spent, with_error, with_interval
from guerdon.trainer.common.run_state import package_versions, rounded
from guerdon.trainer.rl.folder import RLFolder
from guerdon.trainer.rl.settings import RunSettings

_SHOWN, _WIDTH = 4, 300
"""Prompts of which completions are shown, and the characters of a text."""
KEYS = {
    "algorithm": "the command's name, as in `guerdon train ppo`",
    "policy": "what training began from",
    "steps": "published updates of the policy; for rft, steps of fine-tuning",
    "seed": "of the settings",
    "before": "the policy on held-out prompts before training: `step`, `prompts`, `completions`, "
    "`distinct_1`, `distinct_2`, and means with `se`, `low`, `high`, `n` for `reward`, "
    "`reward/NAME`, `heldout_reward`, `kl`, `length`, `finished`, `repetition`",
    "after": "the same after training",
    "difference": "after − before, paired over prompts, with its 95 % interval",
    "reward_rose": "whether the interval of the reward's difference lies above 0",
    "kl": "KL(π_θ ‖ π_ref) after training, in nats per completion, on held-out prompts",
    "evaluations": "the lines of all evaluations, as in metrics.jsonl",
    "tokens": "response tokens trained on (rft: sampled)",
    "completions": "completions trained on (rft: sampled)",
    "staleness_max": "weight versions that the oldest token trained on was behind",
    "seconds": "of the whole run by phase, earlier parts of a resumed run included",
    "faults": "survived: `services`, how often the sampler or a reward model was away and came "
    "back; `sampler_restarts`, how often the sampler was found without its weights",
    "warnings": "of the monitors",
    "versions": "of the packages",
    "kept": "completions that were fine-tuned on (rft)",
    "kept_prompts": "prompts that they answer (rft)",
}
"""What each key of summary.json is."""


def make_summary(
    settings: RunSettings,
    *,
    rows: Sequence[Mapping[str, float]],
    evaluations: Sequence[Evaluation],
    seconds: Mapping[str, float],
    faults: Mapping[str, int],
    warnings: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What goes into summary.json; docs/rl-reference.md says what each key is.

    Args:
        settings: of the run.
        rows: of metrics.jsonl.
        evaluations: of the same held-out prompts: the first is before training, the last after.
        seconds: of the whole run by phase, earlier parts included.
        faults: survived, by kind.
        warnings: of the monitors.
        more: what only this algorithm has.

    Raises:
        ValueError: there are no evaluations.
    """
    if not evaluations:
        raise ValueError("a run is measured before and after")
    before, after = evaluations[0], evaluations[-1]
    difference = {name: found.as_dict() for name, found in compare(before, after).items()}
    steps = [row for row in rows if "reward" in row]
    return {
        "algorithm": settings.algorithm,
        "policy": settings.policy,
        "steps": after.step,
        "seed": settings.seed,
        "before": before.summary(),
        "after": after.summary(),
        "difference": difference,
        "reward_rose": compare(before, after)["reward"].rose,
        "kl": after.summary().get("kl"),
        "evaluations": [found.metrics() for found in evaluations],
        "tokens": int(sum(row.get("tokens", 0) for row in steps)),
        "completions": int(sum(row.get("completions", 0) for row in steps)),
        "staleness_max": max((row.get("staleness_max", 0) for row in steps), default=0),
        "seconds": rounded(seconds),
        "faults": dict(faults),
        "warnings": list(warnings),
        "versions": package_versions("torch", "transformers", "accelerate", "numpy"),
        **(more or {}),
    }


def show_summary(summary: dict[str, Any], folder: RLFolder, console: Console) -> None:
    """The result as a short table, samples before and after, and what to do with the policy."""
    before, after, change = summary["before"], summary["after"], summary["difference"]
    table = Table("held out", "before ± s.e.", "after ± s.e.", "difference (95 %)")
    for key, name in (
        ("reward", "reward"),
        ("heldout_reward", "reward not trained on"),
        ("kl", "KL, nats per completion"),
        ("length", "length, tokens"),
        ("finished", "share finished"),
        ("repetition", "repeated 4-grams"),
    ):
        if key in before and key in after:
            both = (with_error(found[key], "{:.3f}".format) for found in (before, after))
            table.add_row(name, *both, with_interval(change[key], "{:+.3f}".format))
    for key, name in (("distinct_1", "distinct-1"), ("distinct_2", "distinct-2")):
        table.add_row(name, f"{before[key]:.3f}", f"{after[key]:.3f}", "")
    console.print(table)
    if folder.samples.exists():
        show_samples(folder, console)
    say(
        console,
        f"{summary['steps']} steps, {summary['completions']} completions, "
        f"{summary['tokens']} tokens; seconds: {spent(summary['seconds'])}",
    )
    survived = {name: count for name, count in summary["faults"].items() if count}
    if survived:
        text = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in survived.items())
        say(console, f"faults survived: {text}")
    if not summary["reward_rose"]:
        say(console, "The held-out reward did not rise beyond its noise.", "yellow")
    for text in summary["warnings"]:
        say(console, text, "yellow")
    show_policy(folder, console)


def show_samples(
    folder: RLFolder,
    console: Console,
) -> None:
    """Completions to the same held-out prompts before and after, side by side.

    Args:
        folder: of the run.
        console: where.
    """
    pairs = before_and_after(folder.samples)[:_SHOWN]
    if not pairs:
        return
    table = Table(show_lines=True, expand=True)
    for name, ratio in (("prompt", 1), ("before", 2), ("after", 2)):
        table.add_column(name, ratio=ratio)
    for before, after in pairs:
        prompt = before["prompt"][-1]["content"]
        table.add_row(_cut(prompt), _cell(before), _cell(after))
    console.print(table)


def _cell(row: Mapping[str, Any]) -> Text:
    return Text.assemble((f"{row['reward']:+.3f}  ", "bold"), _cut(row["response"]))


def _cut(text: str) -> Text:
    """The text on one line, never read as markup."""
    line = " ".join(text.split())
    return Text(line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…")
