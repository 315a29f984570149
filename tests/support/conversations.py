"""Conversations for tests."""

from __future__ import annotations

from guerdon.data import Conversation, Message


def turn(role: str, content: str) -> Message:
    """A turn that is a role and a text."""
    return Message(role=role, content=content)


def conversation(*turns: tuple[str, str]) -> Conversation:
    """A conversation of roles and texts."""
    return Conversation(tuple(turn(role, content) for role, content in turns))
