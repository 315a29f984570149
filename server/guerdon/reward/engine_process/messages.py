"""What the server's process and the engine's tell each other, as bytes. Nothing of it is code.

A message is a head in JSON and an array of 32-bit integers: the length of the head in bytes (4,
little-endian), the head, the array. Errors travel by name, and only `ERRORS` keep their meaning.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from guerdon.reward.types import (
    BatchScores,
    BatchStats,
    DeviceLost,
    EncodedItem,
    EngineOutOfMemory,
    ModelInfo,
    ResponseScore,
    StepScore,
)
from guerdon.serving.errors import CheckpointRefused, Unsupported

Integers = npt.NDArray[np.int32]

_INFO: Final = TypeAdapter(ModelInfo)
ERRORS: Final = (CheckpointRefused, DeviceLost, EngineOutOfMemory, Unsupported)
"""Errors that keep their meaning."""
_BY_NAME: Final[dict[str, type[Exception]]] = {each.__name__: each for each in ERRORS}


class RemoteError(RuntimeError):
    """An error in the engine's process that has no meaning here; its log has the traceback."""


def pack(head: object, array: Integers | None = None) -> bytes:
    """A message of a head and perhaps an array."""
    text = json.dumps(head).encode()
    return len(text).to_bytes(4, "little") + text + (b"" if array is None else array.tobytes())


def unpack(message: bytes) -> tuple[Any, Integers]:
    """The head and the array of a message."""
    end = 4 + int.from_bytes(message[:4], "little")
    # A copy, since torch takes no array that cannot be written to.
    return json.loads(message[4:end]), np.frombuffer(message[end:], np.int32).copy()


def pack_items(items: Sequence[EncodedItem]) -> bytes:
    """What `RewardModel.score` reads of a batch."""
    arrays, heads = [np.zeros(0, np.int32)], []
    for item in items:
        arrays += [item.prefix, *item.suffixes, *item.token_types]
        arrays += [places.astype(np.int32) for places in item.readout]
        heads.append(
            {
                "prefix": len(item.prefix),
                "suffixes": [len(each) for each in item.suffixes],
                "token_types": [len(each) for each in item.token_types],
                "readout": [len(each) for each in item.readout],
                "truncated": item.truncated,
                "candidates": item.candidates,
            }
        )
    return pack(heads, np.concatenate(arrays, dtype=np.int32))


def unpack_items(message: bytes) -> list[EncodedItem]:
    """The batch that `pack_items` made a message of."""
    heads, array = unpack(message)
    place = 0

    def take(length: int) -> Integers:
        nonlocal place
        place += length
        return array[place - length : place]

    return [
        EncodedItem(
            prefix=take(head["prefix"]),
            suffixes=tuple(map(take, head["suffixes"])),
            token_types=tuple(map(take, head["token_types"])),
            readout=tuple(take(length).astype(np.int64) for length in head["readout"]),
            truncated=tuple(head["truncated"]),
            candidates=tuple(head["candidates"]),
        )
        for head in heads
    ]


def pack_scores(batch: BatchScores) -> bytes:
    """The scores of a batch. Infinities and not-a-number stay what they are."""
    items = [[_score_fields(score) for score in scores] for scores in batch.items]
    return pack({"items": items, "stats": dataclasses.asdict(batch.stats)})


def unpack_scores(message: bytes) -> BatchScores:
    """The scores that `pack_scores` made a message of.

    Raises:
        EngineOutOfMemory, DeviceLost, RemoteError: the engine's process answers with it.
    """
    head = _checked(message)
    items = [[_score(*fields) for fields in scores] for scores in head["items"]]
    return BatchScores(items=items, stats=BatchStats(**head["stats"]))


def pack_info(info: ModelInfo) -> bytes:
    """What is known of a model that was loaded."""
    return pack({"info": _INFO.dump_python(info, mode="json")})


def unpack_info(message: bytes) -> ModelInfo:
    """The description that `pack_info` made a message of.

    Raises:
        CheckpointRefused, Unsupported, DeviceLost, RemoteError: the load failed.
    """
    return _INFO.validate_python(_checked(message)["info"])


def pack_error(error: BaseException) -> bytes:
    """An error, for `unpack_scores` or `unpack_info` to raise."""
    return pack({"error": type(error).__name__, "text": str(error)})


def _checked(message: bytes) -> Any:
    head, _ = unpack(message)
    if "error" not in head:
        return head
    if (kind := _BY_NAME.get(head["error"])) is not None:
        raise kind(head["text"])
    raise RemoteError(f"{head['error']}: {head['text']}")


def _score_fields(score: ResponseScore) -> list[Any]:
    return [
        score.score,
        [[step.score, step.token_index] for step in score.steps],
        score.attributes,
        score.members,
        score.spread,
        score.token_count,
        score.reused_tokens,
        score.truncated_tokens,
    ]


def _score(
    score: float,
    steps: Sequence[tuple[float, int]],
    attributes: Sequence[float],
    members: Sequence[float],
    spread: float | None,
    token_count: int,
    reused_tokens: int,
    truncated_tokens: int,
) -> ResponseScore:
    return ResponseScore(
        score=score,
        steps=tuple(StepScore(*step) for step in steps),
        attributes=tuple(attributes),
        members=tuple(members),
        spread=spread,
        token_count=token_count,
        reused_tokens=reused_tokens,
        truncated_tokens=truncated_tokens,
    )
