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
        whole_is_response: whether the model reads marks in a response, so that a text whose
            answer is not told apart is all response; else it is all prompt.
    """

    def __init__(
        self,
        template: ChatTemplate | None,
        text: TextTokenizer,
        name: str,
        *,
        whole_is_response: bool,
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
        self._whole_is_response = whole_is_response
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
        responses = response_texts(item.responses)
        texts = [foreign.text + response for response in responses]
        marks = self._marks
        if marks is None or not all(marks.before_answer.rstrip() in text for text in texts):
            return self._read_unrendered(item, foreign.text, foreign.otherwise)
        prompt = foreign.text
        if foreign.complete:
            start = "" if prompt.startswith(marks.start) else marks.start
            self._tell("before", start)
            endings = [self._missing(marks.after_answer, text) for text in texts]
            prompt = start + prompt
            if responses == [""]:
                prompt += endings[0]
            else:
                responses = [r + ending for r, ending in zip(responses, endings, strict=True)]
        return self._whole(replace(item, prompt=FormattedText(prompt), responses=tuple(responses)))

    def _read_unrendered(self, item: ScoreItem, text: str, otherwise: Unrendered) -> ScoreItem:
        if otherwise is Unrendered.USER:
            return replace(item, prompt=text)
        kind = FormattedText if otherwise is Unrendered.FORMATTED else PlainText
        return self._whole(replace(item, prompt=kind(text)))

    def _whole(self, item: ScoreItem) -> ScoreItem:
        """Where no answer is told apart: all of it the response, if the model reads marks in it."""
        if not self._whole_is_response or item.responses != ("",):
            return item
        assert isinstance(item.prompt, FormattedText | PlainText)
        return replace(item, prompt=type(item.prompt)(""), responses=(item.prompt.text,))

    def _read_ids(self, item: ScoreItem, ids: TokenArray) -> ScoreItem:
        if len(ids) < 2:
            raise InvalidRequest("prompt", "must have at least two token ids")
        cut = 1 if self._whole_is_response else len(ids) - 1
        return replace(item, prompt=ids[:cut], responses=(ids[cut:],))

    def _missing(self, after: str, text: str) -> str:
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
