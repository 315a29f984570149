"""Items to tokens for the policy of an implicit reward: as its preference training made them.

A prompt is rendered ready for an answer and tokenised by itself; the response is the rest of the
rendered conversation up to its end token, tokenised by itself. That is what `guerdon train dpo`
does, and what a policy draws: its end token is a part of the response, and the white space that a
template writes after it is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from guerdon.data import Answer, Message
from guerdon.reward.checkpoints.checkpoint import Checkpoint
from guerdon.reward.encoding.chat_template import CONVERSATION, ChatTemplate
from guerdon.reward.encoding.encoder import Encoder
from guerdon.reward.encoding.sequences import TokenSequence
from guerdon.reward.types import Conversation, Dropped, ScoreItem, TokenArray
from guerdon.serving.errors import CheckpointRefused, InvalidRequest


class PolicyEncoder(Encoder):
    """Makes tokens of items for a policy and its reference. Threads may share it.

    Args:
        checkpoint: of an implicit reward, as it was inspected.

    Raises:
        CheckpointRefused: its tokenizer or template can't be used.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        eos = checkpoint.tokenizer.eos_token_id
        if checkpoint.chat_template_hash and eos is None:
            raise CheckpointRefused(
                f"the tokenizer of {checkpoint.folder}'s policy has no end token, so no response "
                "could end: name it in tokenizer_config.json (eos_token)"
            )
        self._eos = eos
        super().__init__(checkpoint)
        self.takes_pairs = False

    def _native(self, item: ScoreItem) -> ScoreItem:
        native = super()._native(item)
        if native is not item and not isinstance(native.prompt, str):
            raise InvalidRequest(
                "prompt",
                "is rendered already, and does not tell exactly which tokens are the answer's, "
                "whose likelihood the reward is: send the question as text or messages",
            )
        return native

    def _from_conversation(
        self, conversation: Conversation, responses: list[Answer]
    ) -> list[TokenSequence]:
        if conversation.messages and self._template is None:
            raise _no_template(CONVERSATION)
        return super()._from_conversation(conversation, responses)

    def _from_plain(self, prompt: str, responses: list[str]) -> list[TokenSequence]:
        raise _no_template("prompt.text")

    def _from_formatted(self, prompt: str, responses: list[str]) -> list[TokenSequence]:
        start = self._text.one(prompt).ids
        return [_joined(start, self._text.one(response).ids) for response in responses]

    def _from_turns(
        self,
        template: ChatTemplate,
        field: str,
        conversation: Conversation,
        responses: list[Answer],
    ) -> list[TokenSequence]:
        before = template.render_prompt(field, conversation)
        start = self._text.one(before).ids
        found = []
        for place, response in enumerate(responses):
            whole = template.render(field, conversation, response)
            dropped = template.dropped(field, conversation, place, response, whole)
            if not whole.startswith(before):
                raise InvalidRequest(
                    field,
                    "is rendered in another way by the chat template once there is an answer, so "
                    "it can't be told where the answer begins",
                )
            ids = self._ended(self._text.one(whole[len(before) :]).ids)
            found.append(_joined(start, ids, dropped))
        return found

    def _ended(self, ids: TokenArray) -> TokenArray:
        """Up to the last end token, which is added where there is none."""
        ends = np.flatnonzero(ids == self._eos)
        if len(ends):
            return ids[: ends[-1] + 1]
        return np.append(ids, np.int32(self._eos))

    def _readout(
        self, field: str, item: ScoreItem, sequences: Sequence[TokenSequence]
    ) -> tuple[npt.NDArray[np.int64], ...]:
        """The places of the response's tokens."""
        found = []
        for place, sequence in enumerate(sequences):
            end = sequence.prompt_end()
            if end == 0 and sequence.truncated:
                raise InvalidRequest(
                    f"responses[{place}]",
                    "leaves no room for a token of its prompt, on which its likelihood depends",
                )
            if end == 0:
                raise InvalidRequest(
                    "prompt", "makes no token at all: a response is likely or not after something"
                )
            if end == len(sequence.ids):
                raise InvalidRequest(f"responses[{place}]", "makes no token at all")
            found.append(np.arange(end, len(sequence.ids)))
        return tuple(found)

    def _check_template(self, template: ChatTemplate) -> None:
        super()._check_template(template)
        turns = Conversation((Message(role="user", content="a"),))
        try:
            before = template.render_prompt(CONVERSATION, turns)
            whole = template.render(CONVERSATION, turns, "b")
        except InvalidRequest:
            return  # it may want a system turn, for example: requests will show
        if not whole.startswith(before):
            raise CheckpointRefused(
                "the chat template renders a prompt in another way once there is an answer, so no "
                "policy was trained on such answers by `guerdon train dpo`"
            )


def _joined(
    prompt: TokenArray, response: TokenArray, dropped: tuple[Dropped, ...] = ()
) -> TokenSequence:
    end = len(prompt)
    return TokenSequence(np.concatenate([prompt, response]), lambda: end, dropped=dropped)


def _no_template(field: str) -> InvalidRequest:
    return InvalidRequest(
        field,
        "can't be rendered: the policy has no chat template; send formatted_text or token_ids",
    )
