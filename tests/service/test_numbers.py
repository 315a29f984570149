"""Numbers that cross the wire: finite and in range, or refused with their field."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.in_process import details, field_at_fault
from tests.support.sampler_service import start_sampler

from guerdon.reward.config import load_config
from guerdon.reward.scoring.scorer import transform
from guerdon.reward.types import ScoreOptions
from guerdon.sampler.config import load_config as load_sampler_config
from guerdon.settings import SettingsError
from guerdon.v1 import reward_pb2

from .conftest import Harness, start_server
from .fake import FakeLoader
from .messages import item, score_request

YEAR = 365 * 86_400
SCORE = {"model": "m", "items": [{"prompt": "a", "responses": ["b"]}]}
JSON = {"content-type": "application/json"}

numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(10**400), 10**400),
    st.sampled_from([0, -1, 1e308, 5e-324, 2**31, 2**32, 2**63, 2**64, float(YEAR)]),
)
fuzz = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def score_with(seconds: str) -> str:
    return json.dumps(SCORE)[:-1] + f', "timeout": {seconds}}}'


@pytest.mark.parametrize(
    "seconds",
    ["1e999", "Infinity", "-Infinity", "NaN", "1e308", "1e20", "-1", "0", f"{YEAR + 1}", "9" * 400],
)
async def test_a_timeout_that_cannot_be_is_refused(served: Harness, seconds: str) -> None:
    await served.still_serves()  # from now on the engine's pace is known
    reply = await served.http.post("/v1/score", content=score_with(seconds), headers=JSON)
    assert reply.status_code == 400
    assert reply.json()["error"]["field"] == "timeout"
    await served.still_serves()


async def test_the_longest_timeout_is_taken(served: Harness) -> None:
    for _ in range(3):
        reply = await served.http.post("/v1/score", content=score_with(f"{YEAR}"), headers=JSON)
        assert reply.status_code == 200


@pytest.mark.parametrize("seconds", [YEAR + 1, 315_576_000_000, 2**63 - 1])
async def test_a_stream_items_timeout_has_the_same_bound(served: Harness, seconds: int) -> None:
    asked = [
        reward_pb2.ScoreStreamRequest(
            request_id=name, model="m", item=item(), timeout=Duration(seconds=value)
        )
        for name, value in (("longest", YEAR), ("longer", seconds))
    ]
    replies = {r.request_id: r async for r in served.rewards.ScoreStream(iter(asked), timeout=30)}
    assert replies["longest"].HasField("scores")
    assert "timeout: is" in replies["longer"].error.message
    await served.still_serves()


async def test_a_deadline_of_grpc_beyond_it_is_cut(served: Harness) -> None:
    for _ in range(3):
        await served.rewards.Score(score_request(), timeout=100.0 * YEAR)
        await served.still_serves()


def bodies(number: Any) -> list[tuple[str, dict[str, Any]]]:
    """A body for each place of the reward service's JSON where a number may stand."""
    tokens = {"prompt": {"token_ids": [number]}, "responses": [{"token_ids": [1, number]}]}
    rank = {"model": "m", "prompt": "a", "candidates": ["b"]}
    return [
        ("/v1/score", {**SCORE, "timeout": number}),
        ("/v1/score", {**SCORE, "items": [tokens]}),
        ("/v1/rank", {**rank, "timeout": number}),
        ("/v1/rank", {**rank, "top_n": number}),
        ("/v1/rank", {**rank, "options": {"normalize": number}}),
    ]


def sampler_bodies(number: Any) -> list[tuple[str, dict[str, Any]]]:
    """The same for the sampler's."""
    found: list[dict[str, Any]] = [{"timeout": number}, {"min_version": number}]
    found += [{"items": [{"prompt": {"token_ids": [1]}, key: number}]} for key in ("n", "seed")]
    found.append({"items": [{"prompt": {"token_ids": [number]}}]})
    for key in ("max_tokens", "temperature", "top_p", "top_k"):
        found.append({"options": {"max_tokens": 2, key: number}})
    found.append({"options": {"max_tokens": 2, "stop_token_ids": [number]}})
    whole = {"items": [{"prompt": {"token_ids": [1]}}], "options": {"max_tokens": 2}}
    return [("/v1/generate", {**whole, **changes}) for changes in found]


async def drawn_bodies(make: Any) -> list[tuple[str, str]]:
    cases: list[tuple[str, str]] = []

    @fuzz
    @given(numbers)
    def draw(number: float) -> None:
        cases.extend((path, json.dumps(body)) for path, body in make(number))

    await asyncio.to_thread(draw)
    return cases


async def test_any_number_in_a_body_is_taken_or_refused_by_name(served: Harness) -> None:
    for path, body in await drawn_bodies(bodies):
        reply = await served.http.post(path, content=body, headers=JSON)
        # 504: taken, and over at once
        assert reply.status_code in (200, 400, 504), (body, reply.text)
        assert reply.status_code != 400 or reply.json()["error"]["field"], body
    await served.still_serves()


async def test_any_number_in_the_samplers_body_is_taken_or_refused_by_name() -> None:
    async with start_sampler() as served:
        for path, body in await drawn_bodies(sampler_bodies):
            reply = await served.http.post(path, content=body, headers=JSON)
            assert reply.status_code in (200, 400, 504), (body, reply.text)
            # Weights that are newer than what serves may be asked for.
            outdated = "FAILED_PRECONDITION" in reply.text and "min_version" in body
            assert reply.status_code != 400 or outdated or reply.json()["error"]["field"], body
        await served.still_serves()


@pytest.mark.parametrize("temperature", [1e-300, 0.009, 100.5, 1e308, math.nan, math.inf, -0.1])
async def test_a_temperature_that_would_be_changed_is_refused(temperature: float) -> None:
    async with start_sampler() as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.generate(temperature=temperature)
        assert field_at_fault(details(caught.value)) == "options.temperature"
        await served.still_serves()


async def test_a_score_that_overflows_when_it_is_normalised_is_not_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert transform(1e300, _tiny_std(), ScoreOptions(normalize=True)) == math.inf
    loader = FakeLoader()
    async with start_server(loader, models={"m": "normalised"}) as served:
        revision = served.server.registry.resolve("m")
        with revision.lease() as model:
            monkeypatch.setattr(model, "_info", _tiny_std())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.rewards.Score(score_request(normalize=True), timeout=30)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "not a finite number" in (caught.value.details() or "")


def _tiny_std() -> Any:
    from dataclasses import replace

    from .fake import Behaviour, FakeModel

    info = FakeModel("m", "normalised", Behaviour()).info
    return replace(info, mean=0.0, std=5e-324)


@pytest.mark.parametrize(
    "text",
    [
        "drain_grace = nan",
        "drain_grace = inf",
        "drain_grace = -1",
        "port = 1.5",
        "max_body_bytes = 9" + "0" * 400,
        "max_message_bytes = -5",
        "[batching]\npatience = inf",
        "[batching]\nmax_batch_seconds = nan",
        "[batching]\nbatch_share = nan",
        "[queue]\nbytes_per_token = nan",
        "[queue]\nmax_queued_tokens = 1" + "0" * 400,
        "[queue]\nbatch_fraction = inf",
    ],
)
def test_a_setting_that_is_no_usable_number_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    name = text.rpartition("\n")[2].partition(" ")[0]
    with pytest.raises(SettingsError, match=name):
        load_config(file, {})


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_flag_that_is_no_usable_number_is_refused_by_name(value: float) -> None:
    with pytest.raises(SettingsError, match="drain_grace"):
        load_config(None, {"drain_grace": value})
    with pytest.raises(SettingsError, match="update_idle_seconds"):
        load_sampler_config(None, {"model": "x", "update_idle_seconds": value})


async def test_a_queue_of_odd_settings_still_admits() -> None:
    """A quotient that overflows is cut, not an error for everybody."""
    async with start_server(queue={"bytes_per_token": 5e-324}) as served:
        await served.still_serves()
