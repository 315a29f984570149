"""What a reward model is asked to tell apart: answers to a prompt that are better, and worse.

A row is a preference pair as for training, or has lists of texts in `chosen` and `rejected`
(RewardBench 2). Its `subset`, or another field, says to which part it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guerdon.client import Item
from guerdon.data import (
    NO_INPUTS,
    Message,
    Question,
    RowError,
    TemplateInputs,
    as_answer,
    check_turns,
    parse_pair,
    parse_prompt,
    read_template_inputs,
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Answers to one prompt; each is the turns after the prompt, the last one the assistant's."""

    prompt: list[Message]
    chosen: tuple[list[Message], ...]
    rejected: tuple[list[Message], ...]
    subset: str
    id: str = ""
    """The row's own, empty where it has none: RewardBench 2's Ties tells its rows apart by it."""
    inputs: TemplateInputs = NO_INPUTS

    @property
    def is_pair(self) -> bool:
        """Whether there is one of each."""
        return len(self.chosen) == len(self.rejected) == 1

    @property
    def answers(self) -> tuple[list[Message], ...]:
        """The chosen ones, then the rejected ones."""
        return self.chosen + self.rejected

    def items(self) -> list[Item]:
        """What the server is asked: one item, unless answers have turns before their last."""
        last = [as_answer(turns[-1]) for turns in self.answers]
        if all(len(turns) == 1 for turns in self.answers):
            questions = [Question(self.prompt, last, self.inputs)]
        else:
            questions = [
                Question(self.prompt + turns[:-1], [answer], self.inputs)
                for turns, answer in zip(self.answers, last, strict=True)
            ]
        return [Item(each.asked, each.responses) for each in questions]


def parser(subset_field: str) -> Callable[[Mapping[str, Any]], Comparison]:
    """Makes of a row what it compares.

    Args:
        subset_field: key of the row that names its part; a row without it is of the part "".
    """

    def parse(row: Mapping[str, Any]) -> Comparison:
        subset = row.get(subset_field, "")
        if not isinstance(subset, str | int | bool):
            raise RowError(subset_field, "must be text")
        if _texts(row.get("chosen")) or _texts(row.get("rejected")):
            return _several(row, str(subset))
        pair = parse_pair(row)
        answers = (pair.chosen,), (pair.rejected,)
        return Comparison(pair.prompt, *answers, str(subset), _id(row), pair.inputs)

    return parse


def _texts(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(entry, str) for entry in value)
    )


def _several(row: Mapping[str, Any], subset: str) -> Comparison:
    """A row with lists of texts.

    Raises:
        RowError: a list is missing, empty, or the same answer is on both sides.
    """
    if row.get("prompt") is None:
        raise RowError("prompt", "is missing")
    lists = []
    for field in ("chosen", "rejected"):
        value = row.get(field)
        if not _texts(value) or not value:
            raise RowError(field, "must be a non-empty list of texts, as its other side is")
        lists.append(tuple([Message(role="assistant", content=text)] for text in value))
    chosen, rejected = lists
    if any(answer in chosen for answer in rejected):
        raise RowError("rejected", "has an answer that chosen has too")
    prompt = parse_prompt(row["prompt"])
    check_turns("prompt", prompt)
    for field, answers in (("chosen", chosen), ("rejected", rejected)):
        for turns in answers:
            check_turns(field, turns)
    inputs = read_template_inputs(row, RowError)
    return Comparison(prompt, chosen, rejected, subset, _id(row), inputs)


def _id(row: Mapping[str, Any]) -> str:
    return str(row.get("id", ""))
