"""A served reward model as a reward function of TRL's `GRPOTrainer` and `RLOOTrainer`.

    helpful = RewardFunction(RewardClient("localhost:50051", timeout=600), "helpful")
    trainer = GRPOTrainer(model=…, reward_funcs=helpful, train_dataset=…)

Nothing of TRL is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Unpack

from guerdon.client import FormattedText, InvalidArgument, RewardClient, Score
from guerdon.client.config import ScoringOptions
from guerdon.client.errors import invalid
from guerdon.integrations.conversation import exchange, grouped, note_exchange, ungrouped
from guerdon.integrations.scores import DroppedText, other_numbers


class RewardFunction:
    """Called by the trainer with a batch, it returns the score of each completion.

    It can be pickled, with its client, and each process has a connection of its own. An error of
    the client goes through to the trainer, whose run it ends: no failure becomes a reward.

    Args:
        rewards: where to ask. Its timeout is how long an outage may last before the run ends.
        model: a name, an alias, or `name@revision`, which stays the same over a promotion.
        name: of the reward in TRL's metrics; the model's when not given.
        formatted_text: whether prompts that are text are rendered already, so that nothing is
            added to them; else a text is one user turn.
        ignored_keys: keys of messages that are knowingly left out, such as `reasoning_content`.
        options: see `ScoringOptions`; the priority is `batch` unless it is given.
    """

    def __init__(
        self,
        rewards: RewardClient,
        model: str,
        *,
        name: str = "",
        formatted_text: bool = False,
        ignored_keys: Collection[str] = (),
        **options: Unpack[ScoringOptions],
    ) -> None:
        self.__name__ = name or model.partition("@")[0]
        self._rewards = rewards
        self._model = model
        self._formatted_text = formatted_text
        self._ignored_keys = frozenset(ignored_keys)
        self._options: ScoringOptions = {"priority": "batch", **options}
        self._dropped_text = DroppedText(model)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        tools: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The scores, in the order of the completions.

        Args:
            prompts: one for each completion, text or messages.
            completions: text, or messages that end with the assistant's.
            log_metric: takes the means of a model's attributes, and of an ensemble's spread.
            tools: those of each row, where the data set has such a column.
            columns: what else TRL passes; not read.

        Raises:
            GuerdonError: a completion can't be scored, or there was no answer in time.
        """
        if len(prompts) != len(completions):
            raise invalid("completions", f"are {len(completions)} for {len(prompts)} prompts")
        exchanges = [
            exchange(
                FormattedText(p) if self._formatted_text and isinstance(p, str) else p,
                c,
                tools=tools[i] if tools is not None else None,
                ignored_keys=self._ignored_keys,
                where=(f"prompts[{i}]", f"completions[{i}]"),
            )
            for i, (p, c) in enumerate(zip(prompts, completions, strict=True))
        ]
        items, places = grouped(exchanges)
        try:
            result = self._rewards.score(self._model, items, **self._options)
        except InvalidArgument as error:
            note_exchange(error, places, "completions")
            raise
        scores = ungrouped(result, places)
        self._dropped_text.note(scores)
        if log_metric is not None:
            for key, mean in _means(scores).items():
                log_metric(f"{self.__name__}/{key}", mean)
        return [score.score for score in scores]


def _means(scores: Sequence[Score]) -> Mapping[str, float]:
    """Means of what else a model says, over the batch."""
    found: dict[str, list[float]] = {}
    for score in scores:
        for key, value in other_numbers(score).items():
            found.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}
