"""Items to tokens for a verdict: the question of `guerdon.json` with the item's texts in it.

    ["<s>", "A: {prompt}", "\\n", "B: {response}", "\\nIs B true of A?"]

Each piece is tokenised by itself and nothing is added, because published models put their
questions together from tokens (docs/models.md#verdicts). A text may spell special tokens, as in
any other kind, but braces in it are no slots.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from guerdon.data import Answer
from guerdon.models.manifest import QUESTION_SLOTS
from guerdon.reward.checkpoints.checkpoint import Checkpoint
from guerdon.reward.encoding.chat_template import CONVERSATION, check_turns
from guerdon.reward.encoding.encoder import Encoder
from guerdon.reward.encoding.sequences import TokenSequence, plain_turns, response_texts
from guerdon.reward.encoding.text_tokenizer import TokenizedText
from guerdon.reward.types import Conversation, ScoreItem, Truncation
from guerdon.serving.errors import CheckpointRefused, InvalidRequest

logger = logging.getLogger(__name__)

_SLOT = re.compile(rf"\{{({'|'.join(QUESTION_SLOTS)})\}}")


class VerdictEncoder(Encoder):
    """Makes tokens of items for a language model that is asked a question. Threads may share it.

    Args:
        checkpoint: of kind verdict, as it was inspected.

    Raises:
        CheckpointRefused: its tokenizer or question can't be used.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.takes_pairs = False
        self._instruction = checkpoint.manifest.instruction
        self._pieces = [_SLOT.split(piece) for piece in checkpoint.manifest.question]
        try:
            sample = self.encode(ScoreItem("a", ("b",)), Truncation.REJECT)
        except InvalidRequest as error:
            raise CheckpointRefused(
                f"the question of {checkpoint.folder}'s guerdon.json can't be asked: {error}"
            ) from error
        added = self._text.one("", special=True).ids
        if not np.array_equal(sample.suffixes[0][: len(added)], added):
            logger.warning(
                "the tokenizer of %s adds %r to a text, and the question does not begin with it",
                checkpoint.folder,
                self._tokenizer.decode(added),
            )

    def _from_plain(self, prompt: str, responses: list[str]) -> list[TokenSequence]:
        return self._asked({"prompt": prompt, "instruction": self._instruction}, responses)

    def _from_formatted(self, prompt: str, responses: list[str]) -> list[TokenSequence]:
        self._check_end("prompt.formatted_text", prompt, responses)
        return super()._from_formatted(prompt, responses)

    def _from_text_alone(self, prompt: str, responses: list[str]) -> list[TokenSequence]:
        self._check_end("prompt.text", prompt, responses)
        return super()._from_text_alone(prompt, responses)

    def _check_end(self, field: str, prompt: str, responses: Sequence[str]) -> None:
        """Refuse whole texts that do not end with the question, where the model is read."""
        end = self._pieces[-1][-1]
        if not all((prompt + response).endswith(end) for response in responses):
            raise InvalidRequest(
                field,
                f"must be all that the model reads, and end as its question does ({end!r}): send "
                "prompt and response as text to have the question asked",
            )

    def _from_conversation(
        self, conversation: Conversation, responses: list[Answer]
    ) -> list[TokenSequence]:
        check_turns(conversation)
        said = plain_turns(conversation, CONVERSATION)
        roles, texts = [role for role, _ in said], [text for _, text in said]
        answers = response_texts(responses)
        if roles == ["system", "user"] and self._instruction:
            return self._asked({"prompt": texts[1], "instruction": texts[0]}, answers)
        if roles == ["user"]:
            return self._from_plain(texts[0], answers)
        raise InvalidRequest(
            f"{CONVERSATION}.messages",
            "must be one user turn"
            + (", perhaps after a system turn with the instruction" if self._instruction else "")
            + ": the model is asked a question of its own about it",
        )

    def _asked(self, texts: Mapping[str, str], responses: list[str]) -> list[TokenSequence]:
        """The question about each response.

        Args:
            texts: what stands in each slot but the response's.
            responses: one for each sequence.
        """
        columns = [self._piece(parts, texts, responses) for parts in self._pieces]
        asked = next(n for n, parts in enumerate(self._pieces) if "prompt" in parts[1::2])
        parts = self._pieces[asked]
        begin = len(_fill(parts[: 1 + 2 * parts[1::2].index("prompt")], texts))
        end = begin + len(texts["prompt"])
        found = []
        for row in zip(*columns, strict=True):
            before = sum(len(piece.ids) for piece in row[:asked])
            found.append(
                TokenSequence(
                    np.concatenate([piece.ids for piece in row]),
                    prompt_start=partial(_first_from, row[asked], begin, before),
                    prompt_end=partial(_first_from, row[asked], end, before),
                )
            )
        return found

    def _piece(
        self, parts: Sequence[str], texts: Mapping[str, str], responses: Sequence[str]
    ) -> Sequence[TokenizedText]:
        """A piece's tokens for each response."""
        if "response" in parts[1::2]:
            return self._text.many([_fill(parts, {**texts, "response": r}) for r in responses])
        return [self._text.one(_fill(parts, texts))] * len(responses)


def _fill(parts: Sequence[str], texts: Mapping[str, str]) -> str:
    """The text of a piece: its own and the names of slots stand in it by turns."""
    return "".join(texts[part] if place % 2 else part for place, part in enumerate(parts))


def _first_from(piece: TokenizedText, character: int, before: int) -> int:
    """The token of a sequence in which a character of a piece is, with the tokens before it."""
    return before + piece.first_from(character)
