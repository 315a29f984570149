"""This server's engine alone: packed batches of texts that are tokenised already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tests.bench.peers.calls import Call
from tests.bench.peers.programs.program import Batch, arguments, work

from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import Conversation, ScoreItem, Truncation


def main() -> None:
    """Take calls for ever."""
    args = arguments()
    model = load_model(Path(args.folder), name="engine", settings=EngineSettings(dtype=args.dtype))

    def prepare(calls: Sequence[Call]) -> Batch:
        items = [model.encode(as_item(call), Truncation.REJECT) for call in calls]
        return lambda: [[r.score for r in item] for item in model.score(items).items]

    work(args.port, prepare)


def as_item(call: Call) -> ScoreItem:
    """The call, as the engine takes it."""
    if call.tokens:
        responses = tuple(np.asarray(ids, np.int32) for ids in call.responses)
        return ScoreItem(np.asarray(call.prompt, np.int32), responses)
    return ScoreItem(Conversation(tuple(call.prompt)), tuple(call.responses))


if __name__ == "__main__":
    main()
