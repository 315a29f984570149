"""Scores as the reward server gives them to a folder that training left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import Conversation, ResponseScore, ScoreItem, Truncation


def served(folder: Path, answers: Sequence[tuple[Any, str]]) -> list[ResponseScore]:
    """The scores of answers to prompts, by the server's own loader, encoder and engine.

    Args:
        folder: of the run.
        answers: each the prompt's messages, and the response.
    """
    model = load_model(folder, name="m", settings=EngineSettings(dtype="float32"))
    try:
        items = [
            ScoreItem(Conversation(tuple(prompt)), (response,)) for prompt, response in answers
        ]
        encoded = [model.encode(item, Truncation.REJECT) for item in items]
        return [row[0] for row in model.score(encoded).items]
    finally:
        model.close()
