"""What the parts of a run hand to each other. No torch: arrays are NumPy's.

PromptRow  a row of the prompts file
Task       a row that is to be sampled, once
Sample     one completion of a task, with what drew it and what it earned
Group      all completions of one task: the unit of the buffer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.data import NO_INPUTS, Message, TemplateInputs

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row of the prompts file."""

    index: int
    """The row's place in the file, from 0."""
    turns: tuple[Message, ...]
    """The conversation up to the answer; a plain text is one user turn."""
    answer: str | None = None
    """The right answer, for verifiers."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The row's columns but for the prompt, as they stand there; the answer's is among them."""
    text: str | None = None
    """The prompt, where it is text in the file and no messages."""
    inputs: TemplateInputs = NO_INPUTS
    """What the policy's chat template is given beside the conversation."""

    @property
    def prompt(self) -> Any:
        """The prompt for rewards of the user's own: text, or messages."""
        return [dict(turn) for turn in self.turns] if self.text is None else self.text

    def answered(self, response: str) -> Any:
        """A response for rewards of the user's own, in the form of the prompt."""
        turn = {"role": "assistant", "content": response}
        return [turn] if self.text is None else response


@dataclass(frozen=True, slots=True)
class Task:
    """A row that is to be sampled, once."""

    uid: int
    """Counts tasks in the order in which the run takes them: never used twice in a run."""
    row: PromptRow
    prompt_ids_P: Ints
    """The rendered prompt, as the sampler gets it: never tokenised again."""
    opening: str = ""
    """What the prompt's end writes of the answer itself, such as `<think>`: the text of every
    completion begins with it."""


@dataclass(slots=True)
class Sample:
    """One completion of a task."""

    task_uid: int
    index: int
    """Which of the task's completions, from 0."""
    prompt_ids_P: Ints
    response_ids_T: Ints
    """What was drawn, the ending token included where there is one."""
    behaviour_logprobs_T: Floats
    """log π_μ of each token, under the distribution it was really drawn from."""
    versions_T: Ints
    """The weight version that drew each token."""
    finished: bool
    """Whether it ended by itself (the sampler's finish reason), not at the length limit."""
    text: str
    """The response as rewards see it: special tokens included, but for the one that ended it."""
    reward: float = float("nan")
    """The weighted sum of `parts`, before shaping. NaN until it is scored; never trained on so."""
    parts: dict[str, float] = field(default_factory=dict)
    """Each reward's own raw score, by its name."""
    refused: bool = False
    """Whether a reward model refused it, so that a part is the penalty of the settings."""

    @property
    def tokens(self) -> int:
        """Tokens of the response."""
        return len(self.response_ids_T)

    @property
    def completion(self) -> tuple[list[int], list[int]]:
        """Token ids of the prompt and of the response."""
        return self.prompt_ids_P.tolist(), self.response_ids_T.tolist()

    @property
    def oldest_version(self) -> int:
        """The oldest weights that drew any of its tokens."""
        return int(self.versions_T.min())


@dataclass(slots=True)
class Group:
    """All completions of one task."""

    task: Task
    samples: list[Sample]

    @property
    def oldest_version(self) -> int:
        """The oldest weights in it."""
        return min(sample.oldest_version for sample in self.samples)

    @property
    def rewards_G(self) -> npt.NDArray[np.float64]:
        """The rewards of its samples."""
        return np.array([sample.reward for sample in self.samples], dtype=np.float64)
