"""What happens beside the training steps: metrics, the progress bar, evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from guerdon.trainer.common.metrics_log import MetricsLog
from guerdon.trainer.common.progress import Bar
from guerdon.trainer.common.report import say

_KEYS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "margin": "margin",
    "mean_reward": "mean_reward",
    "min_reward": "min_reward",
    "max_reward": "max_reward",
    "grad_norm": "grad_norm",
    "learning_rate": "lr",
    "num_tokens": "tokens",
    "epoch": "epoch",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "logps/chosen": "chosen_logprob",
    "logps/rejected": "rejected_logprob",
    "nll_loss": "nll",
    "log_odds_ratio": "odds_ratio_loss",
    "log_odds_chosen": "log_odds",
}
"""Our names (documented in docs/training-on-files.md) for what TRL logs."""


def renamed(logs: Mapping[str, Any]) -> dict[str, float]:
    """What TRL logged, by our names."""
    return {ours: float(logs[name]) for name, ours in _KEYS.items() if name in logs}


class LoggedMetrics(MetricsLog, TrainerCallback):  # type: ignore[misc]
    """Writes what the trainer logs to metrics.jsonl, and sends it to the run's trackers.

    Args:
        path: the file.
        rows: what an earlier part of the run logged.
        main: whether this is the process that writes.
        send: told of every line.
    """

    def __init__(
        self,
        path: Path,
        rows: list[dict[str, Any]],
        *,
        main: bool = True,
        send: Callable[[Mapping[str, float]], None] = lambda row: None,
    ) -> None:
        super().__init__(path, rows, main=main)
        self._send = send
        self._tokens = max((row.get("tokens", 0.0) for row in rows), default=0.0)

    def add(self, row: dict[str, Any]) -> None:
        """See `MetricsLog`."""
        super().add(row)
        self._send(self.rows[-1])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Has the last step logged, and those of checkpoints: a resumed run then logs the means of
        the same steps."""
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Called by the trainer; its closing line of totals is left out."""
        if not logs or "loss" not in logs:
            return
        row = renamed(logs)
        if "tokens" in row:  # TRL counts from the last start on
            row["tokens"] += self._tokens
        self.add({"step": state.global_step} | row)


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """A bar on a terminal; a line for each logged step elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""
        self._bar: Bar | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Shows the bar."""
        self._bar = Bar(self._console, "training", state.max_steps, state.global_step)
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves the bar."""
        if self._bar:
            self._bar.move(state.global_step, self._last)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Says how training goes."""
        if not logs or "loss" not in logs:
            return
        row = renamed(logs)
        shown = [f"loss {row['loss']:.3f}"]
        shown += [f"{key} {row[key]:.2f}" for key in ("accuracy", "margin") if key in row]
        self._last = ", ".join(shown)
        if self._bar and self._bar.disable:
            say(self._console, f"step {state.global_step}/{state.max_steps}: {self._last}")

    def stop(self) -> None:
        """Takes the bar away, also after an error."""
        if self._bar:
            self._bar.stop()


class Evaluations(TrainerCallback):  # type: ignore[misc]
    """Evaluates every so many steps and logs it.

    Args:
        every: steps; 0 for never.
        measure: gives the numbers to log.
    """

    def __init__(
        self, every: int, measure: Callable[[], dict[str, float]], log: MetricsLog
    ) -> None:
        self._every, self._measure, self._log = every, measure, log

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer."""
        if self._every and state.global_step % self._every == 0:
            self._log.add({"step": state.global_step} | self._measure())
