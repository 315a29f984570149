"""What the server's process and the engine's tell each other survives the way."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.data import Dropped
from guerdon.reward.engine_process import messages
from guerdon.reward.types import (
    Attribute,
    BatchScores,
    BatchStats,
    ComputeMode,
    DeviceLost,
    EncodedItem,
    EngineOutOfMemory,
    ModelInfo,
    ModelKind,
    ResponseScore,
    StepScore,
)
from guerdon.serving.errors import CheckpointRefused, Unsupported

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=9).map(lambda x: np.array(x, np.int32))
PLACES = st.lists(st.integers(0, 2**20), max_size=4).map(lambda x: np.array(x, np.int64))
STATS = BatchStats(
    computed_tokens=9, padding_tokens=1, reused_tokens=2, sequences=3, cached_tokens=4
)
INFO = ModelInfo(
    name="m",
    revision="0123456789ab",
    kind=ModelKind.ATTRIBUTES,
    architecture="LlamaForSequenceClassification",
    max_tokens=4096,
    dtype="bfloat16",
    device="cuda:1",
    compute_mode=ComputeMode.PADDED,
    compute_mode_reason="no packed attention",
    probe_max_difference=1.25e-7,
    prefix_cache_tokens=4096,
    mean=-0.1,
    std=None,
    attributes=(Attribute("helpful", 1.0), Attribute("brief", -0.5)),
    members=("a", "b"),
    parameters=2**40,
    template_drops=(Dropped.SYSTEM_TURN,),
)


@st.composite
def items(draw: Any) -> EncodedItem:
    suffixes = draw(st.lists(TOKENS, min_size=1, max_size=3))
    count = len(suffixes)

    def some(values: Any) -> tuple[Any, ...]:
        exact = st.lists(values, min_size=count, max_size=count)
        return tuple(draw(st.one_of(st.just([]), exact)))

    return EncodedItem(
        prefix=draw(TOKENS),
        suffixes=tuple(suffixes),
        truncated=tuple(draw(st.lists(st.integers(0, 99), min_size=count, max_size=count))),
        readout=some(PLACES),
        token_types=some(TOKENS),
        candidates=some(st.integers(1, 99)),
    )


@given(st.lists(items(), max_size=4))
def test_items(batch: list[EncodedItem]) -> None:
    found = messages.unpack_items(messages.pack_items(batch))
    assert len(found) == len(batch)
    for item, copy in zip(batch, found, strict=True):
        for field in ("prefix", "suffixes", "readout", "token_types"):
            wanted, got = getattr(item, field), getattr(copy, field)
            assert len(wanted) == len(got)
            for one, other in zip(wanted, got, strict=True):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
        assert (copy.truncated, copy.candidates) == (item.truncated, item.candidates)
        assert copy.prefix.flags.writeable


SCORES = st.builds(
    ResponseScore,
    score=NUMBERS,
    steps=st.lists(st.builds(StepScore, NUMBERS, st.integers(0, 9999)), max_size=3).map(tuple),
    attributes=st.lists(NUMBERS, max_size=3).map(tuple),
    members=st.lists(NUMBERS, max_size=3).map(tuple),
    spread=st.none() | NUMBERS,
    token_count=st.integers(0, 2**31),
    reused_tokens=st.integers(0, 2**31),
    truncated_tokens=st.integers(0, 2**31),
)


@given(st.lists(st.lists(SCORES, max_size=3), max_size=3))
def test_scores_to_the_last_bit(batch: list[list[ResponseScore]]) -> None:
    found = messages.unpack_scores(messages.pack_scores(BatchScores(items=batch, stats=STATS)))
    assert found.stats == STATS
    assert repr(found.items) == repr(batch)  # a NaN is not equal to itself


def test_every_field_of_a_score_is_sent_but_what_only_the_server_knows() -> None:
    score = ResponseScore(
        score=math.pi,
        steps=(StepScore(1.0, 2),),
        attributes=(3.0,),
        members=(4.0,),
        spread=5.0,
        token_count=6,
        reused_tokens=7,
        truncated_tokens=8,
    )
    defaults = {field.name: field.default for field in dataclasses.fields(ResponseScore)}
    left = {name for name, default in defaults.items() if getattr(score, name) == default}
    assert left == {"dropped", "tokens_hash"}, "a new field is to be sent as well"


def test_what_is_known_of_a_model() -> None:
    assert messages.unpack_info(messages.pack_info(INFO)) == INFO


@pytest.mark.parametrize(
    "error",
    [
        EngineOutOfMemory("a batch of 9"),
        DeviceLost("cuda:0 failed"),
        CheckpointRefused("m lacks the tensor score.weight"),
        Unsupported("no GPU"),
    ],
)
def test_errors_keep_their_meaning(error: Exception) -> None:
    message = messages.pack_error(error)
    for unpack in (messages.unpack_scores, messages.unpack_info):
        with pytest.raises(type(error)) as caught:
            unpack(message)
        assert str(caught.value) == str(error)


def test_other_errors_are_told_by_name() -> None:
    with pytest.raises(messages.RemoteError, match="IndexError: list index out of range"):
        messages.unpack_scores(messages.pack_error(IndexError("list index out of range")))
