"""What a chat template shows the model of a conversation: roles and texts, checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from guerdon.data import Message as Turn
from guerdon.data import dropped_by, missing_text, unknown_role
from guerdon.reward.types import Dropped, Message
from guerdon.serving.errors import InvalidRequest

logger = logging.getLogger(__name__)

CONVERSATION = "prompt.conversation"
"""The field of a prompt that is a conversation."""


def conversation_of(turns: tuple[Message, ...], response: str) -> list[Turn]:
    """A prompt and a response as chat templates take them."""
    said = [Turn(role=turn.role, content=turn.content) for turn in turns]
    return [*said, Turn(role="assistant", content=response)]


def check_roles(turns: tuple[Message, ...], known: Collection[str]) -> None:
    """Refuse roles that no model knows: many templates print any role.

    Args:
        turns: of a conversation.
        known: roles that the model's template names, besides the usual ones.

    Raises:
        InvalidRequest: naming the turn.
    """
    for place, turn in enumerate(turns):
        wrong = unknown_role(turn.role, known)
        if wrong:
            raise InvalidRequest(f"{CONVERSATION}.messages[{place}].role", wrong)


def dropped_text(
    field: str, turns: tuple[Message, ...], place: int, response: str, rendered: str
) -> tuple[Dropped, ...]:
    """What the template left out of a conversation on purpose.

    Args:
        field: of the prompt.
        turns: of the prompt.
        place: of the response in the item.
        response: its text.
        rendered: what the template made of both.

    Raises:
        InvalidRequest: it left out something else, so that the score would be of another text.
    """
    missing = missing_text(rendered, conversation_of(turns, response))
    for one in missing:
        if one.part is None:
            at = f"{field}.messages[{one.place}].content" if field == CONVERSATION else field
            at = at if one.place < len(turns) else f"responses[{place}].text"
            raise InvalidRequest(at, one.reason)
    return tuple(one.part for one in missing if one.part is not None)


def learn_drops(render: Callable[[list[Turn]], str], model: str) -> tuple[Dropped, ...]:
    """Find by samples what a template leaves out, and say so once.

    Args:
        render: the template.
        model: for the log.
    """
    found = dropped_by(render)
    if found:
        logger.warning(
            "the chat template of %s leaves out text of these kinds, so scores do not depend on "
            "it: %s",
            model,
            ", ".join(found),
        )
    return found
