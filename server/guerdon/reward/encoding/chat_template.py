"""Chat templates: what they make of a conversation, and what they leave out of it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from guerdon.data import (
    NO_INPUTS,
    Answer,
    Conversation,
    Message,
    TemplateInputs,
    answer_turn,
    dropped_by,
    roles_named_in,
)
from guerdon.models.chat_template import left_out, render_chat
from guerdon.models.template_sandbox import BROKEN
from guerdon.reward.encoding.sequences import check_message
from guerdon.reward.encoding.text_tokenizer import common_length
from guerdon.reward.types import Dropped
from guerdon.serving.errors import CheckpointRefused, InvalidRequest
from guerdon.serving.prompts import check_roles, template_refusals

logger = logging.getLogger(__name__)

CONVERSATION = "prompt.conversation"
"""The field of a prompt that is a conversation."""


@dataclass(frozen=True, slots=True)
class ConversationMarks:
    """What a template writes around a conversation of one question and its answer."""

    start: str
    """The BOS token's text where the template writes it first, else empty."""
    before_answer: str
    """What stands between question and answer."""
    after_answer: str
    """What stands after the answer."""


class ChatTemplate:
    """A checkpoint's chat template. Threads may share it.

    Args:
        tokenizer: that has one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.roles = roles_named_in(tokenizer.get_chat_template())
        """Roles that it names, besides the usual ones."""

    def render(self, field: str, prompt: Conversation, response: Answer) -> str:
        """The text of a prompt and its response.

        Raises:
            InvalidRequest: of the field, if the template refuses them.
        """
        return self._apply(field, [*prompt.messages, answer_turn(response)], prompt.inputs)

    def render_prompt(self, field: str, prompt: Conversation) -> str:
        """The text of a prompt, ready for a response; see `render`."""
        return self._apply(field, prompt.messages, prompt.inputs, add_generation_prompt=True)

    def _apply(
        self,
        field: str,
        turns: Sequence[Message],
        inputs: TemplateInputs = NO_INPUTS,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        with template_refusals(field):
            return render_chat(
                self._tokenizer, turns, inputs, add_generation_prompt=add_generation_prompt
            )

    def dropped(
        self, field: str, prompt: Conversation, place: int, response: Answer, rendered: str
    ) -> tuple[Dropped, ...]:
        """What the template left out of a conversation on purpose.

        Args:
            field: of the prompt.
            prompt: what is answered.
            place: of the response in the item.
            response: the answer.
            rendered: what the template made of both.

        Raises:
            InvalidRequest: it left out something else, so that the score would be of another
                text, or does not read a variable.
        """
        turns = [*prompt.messages, answer_turn(response)]
        with template_refusals(field):
            found = left_out(self._tokenizer, turns, prompt.inputs, rendered)
        for one in found:
            if one.part is None:
                at = f"{field}.{one.path}" if field == CONVERSATION else field
                if one.place == len(prompt.messages):
                    form = "text" if isinstance(response, str) else f"message.{one.field}"
                    at = f"responses[{place}].{form}"
                raise InvalidRequest(at, one.reason)
        return tuple(dict.fromkeys(one.part for one in found if one.part is not None))

    def sample(self) -> str | None:
        """A short conversation's text, or None if the template wants other turns than a user's.

        Raises:
            CheckpointRefused: the template does not compile, or does not show the response.
        """
        asked = Conversation((Message(role="user", content="a"),))
        try:
            rendered = [self.render(CONVERSATION, asked, text) for text in ("b", "c")]
        except InvalidRequest as error:
            if isinstance(error.__cause__, BROKEN):
                raise CheckpointRefused(f"the chat template is broken: {error.reason}") from error
            return None
        if "strftime_now" in self._tokenizer.get_chat_template():
            logger.warning(
                "the chat template of %s prints today's date: the same answer may get another "
                "score tomorrow; fix the date in the template",
                self._tokenizer.name_or_path,
            )
        if rendered[0] == rendered[1]:
            raise CheckpointRefused("the chat template leaves the assistant's last turn out")
        return rendered[0]

    def marks(self) -> ConversationMarks | None:
        """What the template writes around a conversation; None if a sample does not show that."""
        question, answer = "What is rain?", "Water that falls."
        prompt = Conversation((Message(role="user", content=question),))
        try:
            whole = self.render(CONVERSATION, prompt, answer)
            asked = self.render_prompt(CONVERSATION, prompt)
        except InvalidRequest:
            return None
        begin, found, rest = whole.partition(question)
        before, also_found, after = rest.partition(answer)
        # A rendered prompt may end with more than precedes a given answer: `<think>`, for example.
        before = before[: common_length([before, asked.partition(question)[2]])]
        if not found or not also_found or not before.strip():
            return None
        bos = self._tokenizer.bos_token or ""
        return ConversationMarks(bos if bos and begin.startswith(bos) else "", before, after)

    def learn_drops(self) -> tuple[Dropped, ...]:
        """Find by samples what the template leaves out, and say so once."""
        found = dropped_by(lambda turns: self._apply(CONVERSATION, turns))
        if found:
            logger.warning(
                "the chat template of %s leaves out text of these kinds, so scores do not depend "
                "on it: %s",
                self._tokenizer.name_or_path,
                ", ".join(found),
            )
        return found


def check_turns(conversation: Conversation, known: Collection[str] = ()) -> None:
    """Refuse half surrogate pairs, and roles that no model knows: many templates print any role.

    Args:
        conversation: of a prompt.
        known: roles that the model's template names, besides the usual ones.

    Raises:
        InvalidRequest: naming the turn; or there is none.
    """
    turns = conversation.messages
    if not turns:
        raise InvalidRequest(f"{CONVERSATION}.messages", "must have at least one message")
    for place, turn in enumerate(turns):
        check_message(f"{CONVERSATION}.messages[{place}]", turn)
    check_roles(CONVERSATION, conversation, known)
