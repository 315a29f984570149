"""A prompt and its candidates to the sequences of a pairwise model.

    [CLS] <|source|> prompt [SEP]  [CLS] <|candidate1|> answer [SEP]  [CLS] <|candidate2|> …

as PairRM was trained (`CrossCompareCollator` and `cat_ids` in github.com/yuchenlin/LLM-Blender,
llm_blender/pair_ranker/). Each text is tokenised once; every ordered pair is put together from
its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guerdon.data import ControlTokens
from guerdon.reward.checkpoints.checkpoint import Checkpoint
from guerdon.reward.encoding.comparisons import MAX_CANDIDATES, ordered_pairs
from guerdon.reward.encoding.sequences import (
    check_control_tokens,
    check_unicode,
    plain_turns,
    response_texts,
)
from guerdon.reward.encoding.text_tokenizer import TextTokenizer
from guerdon.reward.types import (
    Conversation,
    EncodedItem,
    Prompt,
    ScoreItem,
    TokenArray,
    Truncation,
)
from guerdon.serving.errors import CheckpointRefused, InvalidRequest

_INSTRUCTION = (
    "Finish the following coversation in each i-th turn by filling in <Response i> with your "
    "response."
)
"""Before conversations of several turns, misspelt as the model was trained
(`get_pair_from_conv` of llm_blender/blender/blender_utils.py)."""
_PROBES = ("", " a", "What is 12 + 30?\n\nIt's 42. ", "Ünïcödé 東京 🙂")
_AT = 1
"""The place of a mark in its part: after the CLS token."""
_KEPT = 3
"""Tokens of the prompt's part that stay whatever is cut: CLS, mark, SEP."""
MOST_TOKENS = 2**22
"""Most tokens in all comparisons of one item. No queue of a sensible size would take more, and
they are put together before the queue is asked."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """The tokens of a prompt and of its candidates, each with its own CLS, mark and SEP."""

    source: TokenArray
    candidates: list[TokenArray]


class PairEncoder:
    """Makes comparisons of items for one pairwise checkpoint. Threads may share it.

    Args:
        checkpoint: as it was inspected.

    Raises:
        CheckpointRefused: its tokenizer does not know the marks.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        tokenizer = checkpoint.tokenizer
        self._text = TextTokenizer(tokenizer)
        self._control = ControlTokens(tokenizer)
        self._separator = str(tokenizer.sep_token or tokenizer.eos_token)
        assert checkpoint.adapter is not None, "only published models compare answers"
        self._marks = checkpoint.adapter.marks(checkpoint.config)
        self._source, self._first, self._second = self._marks
        self._vocab_size = int(checkpoint.config.vocab_size)
        self.max_tokens = checkpoint.max_tokens
        """The longest sequence."""
        self._check_marks(checkpoint)

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        """The comparisons of one item: a sequence for each ordered pair of responses.

        Raises:
            InvalidRequest: with the field's path below the item.
        """
        if not isinstance(item.prompt, str | Conversation):
            raise InvalidRequest(
                "prompt",
                "must be text or a conversation: the model puts marks of its own between prompt "
                "and answers",
            )
        if reject_control_tokens:
            check_control_tokens(item, self._control)
        answers = response_texts(item.responses)
        if len(answers) < 2:
            raise InvalidRequest(
                "responses", "must be two or more: the model compares them with each other"
            )
        if len(answers) > MAX_CANDIDATES:
            raise InvalidRequest(
                "responses",
                f"are {len(answers)}: the model compares each with each other one, and takes at "
                f"most {MAX_CANDIDATES}",
            )
        field, source, answers = _texts(item.prompt, answers)
        parts = _Parts(
            self._part(field, self._source, source),
            [self._part(f"responses[{i}].text", self._first, a) for i, a in enumerate(answers)],
        )
        excess = self._excess(parts, truncation)
        kept = np.delete(parts.source, slice(_AT + 1, _AT + 1 + excess))
        return self._compared(_Parts(kept, parts.candidates), excess)

    def _compared(self, parts: _Parts, cut: int) -> EncodedItem:
        """Every ordered pair as one sequence."""
        source, firsts = parts.source, parts.candidates
        pairs = ordered_pairs(len(firsts))
        total = len(pairs) * len(source) + 2 * (len(firsts) - 1) * sum(map(len, firsts))
        if total > MOST_TOKENS:
            raise InvalidRequest(
                "responses",
                f"make {len(pairs):,} comparisons of {total:,} tokens in all, and "
                f"{MOST_TOKENS:,} is the most: rank fewer or shorter ones",
            )
        seconds = [self._marked(part, self._second) for part in firsts]
        sizes = [len(part) for part in firsts]
        marks = [len(source) + _AT, len(source) + _AT]
        return EncodedItem(
            prefix=source[:0],  # the encoder sees all of a sequence at once: nothing is shared
            suffixes=tuple(np.concatenate([source, firsts[i], seconds[j]]) for i, j in pairs),
            truncated=(cut,) * len(pairs),
            readout=tuple(
                np.array([_AT, marks[0], marks[1] + sizes[i]], dtype=np.int64) for i, _ in pairs
            ),
            candidates=tuple(len(source) + size for size in sizes),
        )

    def _part(self, field: str, mark: str, text: str) -> TokenArray:
        """`[CLS] mark text [SEP]`."""
        ids = self._text.one(mark + text.replace(self._separator, " "), special=True).ids
        if int(ids.max()) >= self._vocab_size:
            raise InvalidRequest(
                field, f"holds the token {int(ids.max())}, for which the model has no embedding"
            )
        found = [name for name, token in self._marks.items() for _ in np.flatnonzero(ids == token)]
        if found != [mark] or ids[_AT] != self._marks[mark]:
            inside = next((name for name in self._marks if name in text), mark)
            raise InvalidRequest(
                field, f"holds {inside!r}, by which the model tells the prompt from the answers"
            )
        return ids

    def _marked(self, part: TokenArray, mark: str) -> TokenArray:
        """A text's tokens behind another mark."""
        changed = part.copy()
        changed[_AT] = self._marks[mark]
        return changed

    def _excess(self, parts: _Parts, truncation: Truncation) -> int:
        """Tokens to drop from the prompt's left, the same in all comparisons.

        Comparisons with different ends of the prompt could not be added up.
        """
        sizes = [len(part) for part in parts.candidates]
        longest, other = sorted(range(len(sizes)), key=lambda i: -sizes[i])[:2]
        length = len(parts.source) + sizes[longest] + sizes[other]
        excess = length - self.max_tokens
        if excess <= 0:
            return 0
        field = f"responses[{longest}]"
        if truncation is Truncation.REJECT:
            raise InvalidRequest(
                field,
                f"is too long: with its prompt and the answer {other} it is compared with it has "
                f"{length} tokens, and the model takes {self.max_tokens}",
            )
        if excess > len(parts.source) - _KEPT:
            raise InvalidRequest(
                field,
                f"is too long even without its prompt: with the answer {other} it is compared "
                f"with it has {length - len(parts.source) + _KEPT} tokens, and the model takes "
                f"{self.max_tokens}",
            )
        return excess

    def _check_marks(self, checkpoint: Checkpoint) -> None:
        """The tokenizer has the marks as tokens, and cuts alike behind each of them."""
        for probe in _PROBES:
            parts = [self._text.one(mark + probe, special=True).ids for mark in self._marks]
            for (mark, token), ids in zip(self._marks.items(), parts, strict=True):
                if len(ids) <= _AT or ids[_AT] != token:
                    raise CheckpointRefused(
                        f"{checkpoint.folder}: {mark} is not the token {token} of the tokenizer, "
                        "as config.json says: it is not the tokenizer that the model was trained "
                        "with"
                    )
            if any(not np.array_equal(self._marked(ids, self._source), parts[0]) for ids in parts):
                raise CheckpointRefused(
                    f"{checkpoint.folder}: the tokenizer reads a text otherwise behind "
                    f"{self._source} than behind another mark"
                )


def _texts(prompt: Prompt, answers: Sequence[str]) -> tuple[str, str, list[str]]:
    """The prompt's field, and what is written behind the marks."""
    if isinstance(prompt, str):
        check_unicode("prompt.text", prompt)
        return "prompt.text", prompt, list(answers)
    field = "prompt.conversation"
    assert isinstance(prompt, Conversation)
    turns = plain_turns(prompt, field)
    _check_roles(field, [role for role, _ in turns])
    texts = [text for _, text in turns]
    if len(texts) == 1:
        return field, texts[0], list(answers)
    users, earlier = texts[::2], texts[1::2]
    asked = (f"USER: {text}\nAssistant: <Response {place}>" for place, text in enumerate(users, 1))
    said = [f"<Response {place}>: {text}" for place, text in enumerate(earlier, 1)]
    return (
        field,
        _INSTRUCTION + "\n".join(asked),
        ["\n".join([*said, f"<Response {len(users)}>: {answer}"]) for answer in answers],
    )


def _check_roles(field: str, roles: Sequence[str]) -> None:
    """A user's and an assistant's by turns, the first and the last a user's."""
    for place, role in enumerate(roles):
        wanted = "assistant" if place % 2 else "user"
        if role != wanted:
            raise InvalidRequest(
                f"{field}.messages[{place}].role",
                f"is {role!r}, and must be {wanted!r}: the model was trained on turns of user "
                "and assistant by turns",
            )
    if len(roles) % 2 == 0:
        raise InvalidRequest(f"{field}.messages", "must end with a user's turn")
