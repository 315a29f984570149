"""Sequences of tokens: what the encoders have in common, and the places that heads read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guerdon.data import (
    Answer,
    ControlTokens,
    all_texts,
    is_plain,
    json_texts,
    message_text,
    texts_in,
)
from guerdon.reward.checkpoints.checkpoint import Checkpoint
from guerdon.reward.types import (
    Conversation,
    Dropped,
    ForeignText,
    FormattedText,
    Message,
    PlainText,
    Response,
    ScoreItem,
    TokenArray,
)
from guerdon.serving.errors import CheckpointRefused, InvalidRequest


@dataclass(slots=True)
class TokenSequence:
    """Prompt and one response as tokens."""

    ids: TokenArray
    prompt_end: Callable[[], int]
    """The first token that is not the prompt's any more; computed only where it matters."""
    types: TokenArray | None = None
    truncated: int = 0
    prompt_start: Callable[[], int] | None = None
    """The first token of the prompt, where a question stands before it."""
    dropped: tuple[Dropped, ...] = ()
    """What the chat template left out."""


def check_control_tokens(item: ScoreItem, tokens: ControlTokens) -> None:
    """Refuse texts that spell a control token; formatted text is meant to.

    Raises:
        InvalidRequest: with the field's path below the item.
    """
    prompt, fields = item.prompt, list[tuple[str, str]]()
    if isinstance(prompt, str):
        fields.append(("prompt.text", prompt))
    elif isinstance(prompt, Conversation):
        for place, turn in enumerate(prompt.messages):
            fields += _fields(f"prompt.conversation.messages[{place}]", turn)
        given = {f"tools[{place}]": tool for place, tool in enumerate(prompt.tools)}
        for name, value in (given | {"chat_template_kwargs": prompt.chat_template_kwargs}).items():
            fields += [(f"prompt.conversation.{name}", text) for text in json_texts(value)]
    for place, response in enumerate(item.responses):
        if isinstance(response, str):
            fields.append((f"responses[{place}].text", response))
        elif isinstance(response, dict):
            fields += _fields(f"responses[{place}].message", response)
    for field, text in fields:
        found = tokens.first_in(text)
        if found is not None:
            raise InvalidRequest(field, f"spells {found!r}, a control token of the model")


def _fields(path: str, turn: Message) -> list[tuple[str, str]]:
    """Every text of a turn with its field's path."""
    return [(f"{path}.{key}", text) for key, text in texts_in(turn)]


def hash_sequences(sequences: Sequence[TokenSequence]) -> tuple[str, ...]:
    """A hash of what the model sees of each sequence."""
    found = []
    for sequence in sequences:
        digest = hashlib.blake2b(sequence.ids.astype(np.int32, copy=False).tobytes(), digest_size=8)
        if sequence.types is not None:
            digest.update(sequence.types.tobytes())
        found.append(digest.hexdigest())
    return tuple(found)


def response_answers(responses: Sequence[Response]) -> list[Answer]:
    """Responses that are texts or messages.

    Raises:
        InvalidRequest: one is token ids, or no Unicode.
    """
    found = list[Answer]()
    for place, response in enumerate(responses):
        path = f"responses[{place}]"
        if isinstance(response, str):
            check_unicode(f"{path}.text", response)
        elif isinstance(response, dict):
            check_message(f"{path}.message", response)
        else:
            raise InvalidRequest(f"{path}.token_ids", "is allowed only after a prompt of token ids")
        found.append(response)
    return found


def response_texts(responses: Sequence[Response]) -> list[str]:
    """Responses that are texts, for what reads nothing else.

    Raises:
        InvalidRequest: one is a message or token ids, or no Unicode.
    """
    found = []
    for place, answer in enumerate(response_answers(responses)):
        if not isinstance(answer, str):
            raise InvalidRequest(
                f"responses[{place}].message",
                "must be a text: only a chat template renders a message, and none renders this "
                "prompt",
            )
        found.append(answer)
    return found


def plain_turns(conversation: Conversation, field: str) -> list[tuple[str, str]]:
    """Role and text of each turn, for what reads nothing else.

    Args:
        conversation: of a prompt.
        field: of the prompt.

    Raises:
        InvalidRequest: it says more than that, or a text is no Unicode.
    """
    if conversation.inputs:
        part = "tools" if conversation.tools else "chat_template_kwargs"
        raise InvalidRequest(f"{field}.{part}", "are not read by a model without chat template")
    for place, turn in enumerate(conversation.messages):
        check_message(f"{field}.messages[{place}]", turn)
        if not is_plain(turn):
            raise InvalidRequest(
                f"{field}.messages[{place}]", "must be a role and a text: the model reads no more"
            )
    return [(turn["role"], message_text(turn)) for turn in conversation.messages]


def check_message(field: str, turn: Message) -> None:
    """Refuse half surrogate pairs in a turn."""
    check_unicode(f"{field}.role", turn["role"])
    for path, text in _fields(field, turn):
        check_unicode(path, text)


def longest_field(item: ScoreItem) -> str:
    """The path of the longest text of an item: its prompt, or one of its responses."""
    prompt = item.prompt
    if isinstance(prompt, Conversation):
        size = sum(map(len, all_texts(prompt)))
    else:
        wrapped = FormattedText | PlainText | ForeignText
        size = len(prompt.text) if isinstance(prompt, wrapped) else len(prompt)
    sizes = [
        sum(map(len, all_texts(Conversation((r,))))) if isinstance(r, dict) else len(r)
        for r in item.responses
    ]
    longest = max(sizes)
    return f"responses[{sizes.index(longest)}]" if longest > size else "prompt"


def check_unicode(field: str, text: str) -> None:
    """Refuse half surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            field, f"is not valid Unicode: half a surrogate pair at character {error.start}"
        ) from None


def leading(ids: TokenArray, tokens: Collection[int | None]) -> int:
    """How many of the first three tokens, from the start on, are among these."""
    count = 0
    for token in ids[:3].tolist():
        if token not in tokens:
            break
        count += 1
    return count


def last_run(ids: TokenArray, run: npt.NDArray[np.int64]) -> int | None:
    """The place at which the last occurrence of a run of tokens begins."""
    if len(ids) < len(run):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(run))
    found = np.flatnonzero((windows == run).all(axis=1))
    return int(found[-1]) if len(found) else None


def common_prefix(sequences: Sequence[TokenArray]) -> int:
    """Tokens that all sequences begin with, short of the shortest one's last; 0 for one alone."""
    if len(sequences) == 1:
        return 0
    first, shared = sequences[0], min(len(ids) for ids in sequences) - 1
    for ids in sequences[1:]:
        parted = np.flatnonzero(ids[:shared] != first[:shared])
        if len(parted):
            shared = int(parted[0])
    return shared


class ReadoutPlaces:
    """Finds the places that a model's head reads. Threads may share it.

    Args:
        checkpoint: as it was inspected.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._marker = checkpoint.manifest.step_marker
        self._marker_id = checkpoint.step_marker_id
        self._gate_ids = np.array(checkpoint.gate_ids, dtype=np.int64)
        self._gate_text = checkpoint.tokenizer.decode(self._gate_ids)

    def check_template(self, ids: TokenArray) -> None:
        """Refuse a chat template that does not write what the gate reads.

        Args:
            ids: of a rendered conversation.
        """
        if len(self._gate_ids) and last_run(ids, self._gate_ids) is None:
            raise CheckpointRefused(
                f"the chat template does not write {self._gate_text!r} before an answer, where the "
                "model reads how to weigh its attributes: restore the published template"
            )

    def find(
        self,
        field: str,
        responses: Sequence[Response],
        sequences: Sequence[TokenSequence],
        *,
        renders: bool,
    ) -> tuple[npt.NDArray[np.int64], ...]:
        """The places of each sequence; empty where the head knows them itself.

        Args:
            field: of the prompt.
            responses: one for each sequence.
            sequences: of one item.
            renders: whether a chat template made them, which may add step markers.

        Raises:
            InvalidRequest: a sequence has no such place, or a step marker that is no token.
        """
        if len(self._gate_ids):
            return tuple(self._gate(field, sequence) for sequence in sequences)
        if self._marker_id is None:
            return ()
        return tuple(
            self._markers(f"responses[{place}]", sequence, response, renders=renders)
            for place, (sequence, response) in enumerate(zip(sequences, responses, strict=True))
        )

    def _gate(self, field: str, sequence: TokenSequence) -> npt.NDArray[np.int64]:
        """The place that the gate reads, [1]: the first token of its pattern's last occurrence."""
        found = last_run(sequence.ids, self._gate_ids)
        if found is None:
            raise InvalidRequest(
                field,
                f"has no end of a user's turn in its tokens ({self._gate_text!r}), where the model "
                "reads how to weigh its attributes: send a conversation",
            )
        return np.array([found])

    def _markers(
        self, field: str, sequence: TokenSequence, response: Response, *, renders: bool
    ) -> npt.NDArray[np.int64]:
        """Places of the response's step markers.

        A template may add markers to a response that has none of its own. Elsewhere one more than
        is written is the prompt's, as when its last token eats the response's first white space.
        """
        end = sequence.prompt_end()
        found = np.flatnonzero(sequence.ids[end:] == self._marker_id) + end
        if isinstance(response, dict):
            raise InvalidRequest(f"{field}.message", "must be a text, in which steps are marked")
        if isinstance(response, str):
            written = response.count(self._marker)
            if written != len(found) and (written or not renders):
                raise InvalidRequest(
                    f"{field}.text",
                    f"has {written} step markers {self._marker!r}, but {len(found)} of them are "
                    "tokens of their own: set them apart",
                )
        if len(found) == 0:
            raise InvalidRequest(
                field, f"has no step marker {self._marker!r}: there is no step to score"
            )
        return found.astype(np.int64, copy=False)
