"""Texts of other systems' clients, read as what the model's own template would have written.

A conversation that a client rendered may lack what the template writes after an answer, or before
the first turn, and then gets another score: an answer of one chat model got 2.06 whole, 2.39
without its last line break and 0.09 without its end token.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from guerdon.reward.encoding.chat_template import ChatTemplate
from guerdon.reward.encoding.sequences import response_texts
from guerdon.reward.encoding.text_tokenizer import TextTokenizer
from guerdon.reward.types import (
    ForeignText,
    FormattedText,
    PlainText,
    ScoreItem,
    TokenArray,
    Unrendered,
)
from guerdon.serving.errors import InvalidRequest

logger = logging.getLogger(__name__)


class ForeignTexts:
    """Reads foreign texts for one model. Threads may share it.

    Args:
        template: of the model, if it has one.
        text: the model's tokenizer.
        name: of the model's folder, for the log.
        reads_marks: whether the model reads marks in a response, so that it must be told apart.
        double_bos: whether the model was trained on sequences that begin with two BOS tokens.
    """

    def __init__(
        self,
        template: ChatTemplate | None,
        text: TextTokenizer,
        name: str,
        *,
        reads_marks: bool,
        double_bos: bool,
    ) -> None:
        self._marks = template.marks() if template is not None else None
        self._endings: list[str] = []
        """What a text may lack after its answer: whole last tokens, the fewest first."""
        if self._marks is not None:
            after = self._marks.after_answer
            starts = {
                start for encoding, _ in text.one(after).parts for start, _ in encoding.offsets
            }
            self._endings = [after[start:] for start in sorted({0, *starts, len(after)})[::-1]]
        self._name = name
        self._reads_marks = reads_marks
        self._starts = 2 if double_bos else 1
        self._told: set[str] = set()
        """What was said to be added."""

    def read(self, item: ScoreItem) -> ScoreItem:
        """An item whose prompt is a `ForeignText`, with a prompt of a form of ours.

        Raises:
            InvalidRequest: it holds too few token ids.
        """
        foreign = item.prompt
        assert isinstance(foreign, ForeignText)
        if not isinstance(foreign.text, str):
            return self._read_ids(item, foreign.text)
        marks, prompt, responses = self._marks, foreign.text, response_texts(item.responses)
        # Not in a response: what a policy wrote must not decide how its prompt is read.
        if marks is None or marks.before_answer.rstrip() not in prompt:
            return self._read_unrendered(item, foreign)
        told_apart = responses != [""]
        if not told_apart and self._reads_marks:
            last = prompt.rindex(marks.before_answer.rstrip()) + len(marks.before_answer.rstrip())
            prompt, responses, told_apart = prompt[:last], [prompt[last:]], True
        if foreign.complete:
            prompt = self._missing_start(marks.start, prompt) + prompt
            endings = [self._missing_end(marks.after_answer, prompt + r) for r in responses]
            if told_apart:
                responses = [r + ending for r, ending in zip(responses, endings, strict=True)]
            else:
                prompt += endings[0]
        return replace(item, prompt=FormattedText(prompt), responses=tuple(responses))

    def _read_unrendered(self, item: ScoreItem, foreign: ForeignText) -> ScoreItem:
        text = foreign.text
        assert isinstance(text, str)
        if foreign.otherwise is Unrendered.USER:
            return replace(item, prompt=text)
        kind = FormattedText if foreign.otherwise is Unrendered.FORMATTED else PlainText
        if self._reads_marks and item.responses == ("",):
            return replace(item, prompt=kind(""), responses=(text,))
        return replace(item, prompt=kind(text))

    def _read_ids(self, item: ScoreItem, ids: TokenArray) -> ScoreItem:
        if len(ids) < 2:
            raise InvalidRequest("prompt", "must have at least two token ids")
        cut = 1 if self._reads_marks else len(ids) - 1
        return replace(item, prompt=ids[:cut], responses=(ids[cut:],))

    def _missing_start(self, start: str, text: str) -> str:
        """What the model reads before a conversation and this text's beginning lacks."""
        if not start:
            return ""
        given = next(n for n in range(self._starts, -1, -1) if text.startswith(start * n))
        missing = start * (self._starts - given)
        self._tell("before", missing)
        return missing

    def _missing_end(self, after: str, text: str) -> str:
        """What the template writes after an answer and this text's end lacks."""
        missing = next(m for m in self._endings if text.endswith(after.removesuffix(m)))
        self._tell("after", missing)
        return missing

    def _tell(self, side: str, added: str) -> None:
        if added and added not in self._told:
            self._told.add(added)
            logger.info(
                "%s: a client's rendered conversation lacks %r %s it, which the chat template "
                "writes: it is added from now on (formats.tail)",
                self._name,
                added,
                side,
            )
