"""How judges wait: deadlines, callers who leave, bounds, budgets, and an engine left alone."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import grpc
import pytest
from prometheus_client import CollectorRegistry
from tests.service.messages import item, score_request
from tests.support.in_process import details, field_at_fault, retry_seconds, until

from guerdon.reward.counting import ScoringCall
from guerdon.reward.judge.budget import Asker, Slots
from guerdon.reward.judge.judge import Judge
from guerdon.reward.metrics import RewardMetrics
from guerdon.reward.scoring.judging import Judging
from guerdon.reward.types import PriorityClass, ResponseScore
from guerdon.serving.access.identity import Caller
from guerdon.serving.errors import Unavailable

from .conftest import StartJudge
from .endpoint import NEVER, Answer, ScriptedEndpoint, completion, replies
from .test_judge import failed, requests_line


async def acquired(semaphore: threading.Semaphore) -> None:
    """Wait for what the endpoint's threads tell."""
    assert await asyncio.to_thread(semaphore.acquire, timeout=60)


async def test_a_deadline_ends_the_request_to_the_endpoint(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = replies(NEVER)
    async with judged() as run:
        error = await failed(run.rewards.Score(score_request(model="j"), timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        body = {"model": "j", "items": [{"prompt": "q", "responses": ["a"]}], "timeout": 0.2}
        spoken = await run.http.post("/v1/score", json=body)
        assert spoken.json()["error"]["code"] == "DEADLINE_EXCEEDED"
        for _ in endpoint.bodies:
            await acquired(endpoint.left)


async def test_a_caller_who_leaves_ends_what_nobody_else_wants(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = replies(NEVER)
    async with judged() as run:
        request = score_request(item("q", "a"), model="j")
        first, second = run.rewards.Score(request), run.rewards.Score(request)
        gauge = 'guerdon_requests_in_flight{method="Score"}'
        await run.until_metric(gauge, lambda value: value == 2)
        await acquired(endpoint.asked)
        first.cancel()
        await run.until_metric(gauge, lambda value: value == 1)
        assert not endpoint.left.acquire(blocking=False)
        second.cancel()
        await acquired(endpoint.left)
        assert len(endpoint.bodies) == 1
        revision = run.server.registry.resolve("j").info.revision
        await run.until_metric(requests_line(revision, "cancelled"), lambda value: value == 1)


async def test_engine_and_judge_do_not_wait_for_each_other(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    async with judged() as run:
        run.behaviour.gate.clear()  # the engine hangs
        computed = asyncio.ensure_future(run.rewards.Score(score_request(model="m")))
        await until(lambda: run.behaviour.batches == 1)
        assert (await run.rewards.Score(score_request(model="j"))).items[0].scores[0].score == 7.0
        run.behaviour.gate.set()
        await computed
        endpoint.script = replies(NEVER)
        waiting = run.rewards.Score(score_request(item("other"), model="j"))
        for _ in range(2):
            await acquired(endpoint.asked)
        await run.still_serves()
        assert await run.metric('guerdon_queue_items{class="online"}') == 0
        waiting.cancel()
        await acquired(endpoint.left)


async def test_so_many_requests_at_once(judged: StartJudge, endpoint: ScriptedEndpoint) -> None:
    lock, together = threading.Lock(), threading.Barrier(3)
    under_way, most = 0, 0

    def script(body: Any) -> str:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait(60)
        with lock:
            under_way -= 1
        together.wait(60)
        return "Score: 1"

    endpoint.script = script
    async with judged("[limits]\nat_once = 3\n") as run:
        request = score_request(item("q", *"abcdef"), model="j")
        assert len((await run.rewards.Score(request)).items[0].scores) == 6
    assert most == 3


async def test_online_calls_go_first_bulk_ones_get_a_share_and_callers_take_turns() -> None:
    slots, order = Slots(1), list[str]()
    left = asyncio.Event()

    async def ask(name: str, priority: PriorityClass) -> None:
        async with slots.one(Asker(Caller(key=name), priority)):
            order.append(name)
            await left.wait()

    asked = [
        *(("a", PriorityClass.BATCH) for _ in range(5)),
        *(("b", PriorityClass.ONLINE) for _ in range(6)),
        *(("c", PriorityClass.ONLINE) for _ in range(4)),
    ]
    tasks = [asyncio.create_task(ask(*each)) for each in asked]
    gone = asyncio.create_task(ask("gone", PriorityClass.ONLINE))
    await until(lambda: order == ["a"])
    gone.cancel()
    left.set()
    await asyncio.gather(*tasks)
    assert "".join(order) == "a" + "bcba" + "cbca" + "bcba" + "ba"


async def test_those_who_leave_as_slots_come_free_make_no_more_of_them() -> None:
    slots, asker = Slots(2), Asker(Caller(key="a"), PriorityClass.ONLINE)
    left, holding, most = asyncio.Event(), 0, 0

    async def hold() -> None:
        nonlocal holding, most
        async with slots.one(asker):
            holding += 1
            most = max(most, holding)
            await left.wait()
            await asyncio.sleep(0)
            holding -= 1

    holders = [asyncio.create_task(hold()) for _ in range(2)]
    await until(lambda: holding == 2)
    waiters = [asyncio.create_task(hold()) for _ in range(3)]
    await asyncio.sleep(0)  # now they wait
    for holder in holders:
        holder.cancel()  # they give back before the waiters know that they are cancelled
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*holders, *waiters, return_exceptions=True)
    assert all(waiter.cancelled() for waiter in waiters)
    holding = 0
    left.set()
    await asyncio.gather(*(hold() for _ in range(5)))
    assert most == 2


async def test_more_than_may_wait_is_shed_or_refused(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = replies(NEVER)
    async with judged("[limits]\nmax_waiting = 2\n") as run:
        error = await failed(run.rewards.Score(score_request(item("q", *"abc"), model="j")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field_at_fault(details(error)) == "items"
        body = {"model": "j", "prompt": "q", "candidates": ["a", "b", "c"]}
        refused = (await run.http.post("/v1/rank", json=body)).json()["error"]
        assert (refused["code"], refused["field"]) == ("INVALID_ARGUMENT", "candidates")
        waiting = run.rewards.Score(score_request(item("q", "a", "b"), model="j"))
        for _ in range(2):
            await acquired(endpoint.asked)
        error = await failed(run.rewards.Score(score_request(item("q", "c"), model="j")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert retry_seconds(details(error)) > 0
        waiting.cancel()


@pytest.mark.parametrize(
    ("budget", "what"), [("budget_requests = 2", "requests"), ("budget_tokens = 150", "tokens")]
)
async def test_a_spent_budget_says_when_it_begins_anew(
    judged: StartJudge, endpoint: ScriptedEndpoint, budget: str, what: str
) -> None:
    async with judged(f"[limits]\n{budget}\nbudget_seconds = 3600\n") as run:
        for answer in ("a", "b", "a"):  # what is known costs nothing
            await run.rewards.Score(score_request(item("q", answer), model="j"))
        error = await failed(run.rewards.Score(score_request(item("q", "c"), model="j")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == f"the judge's budget of {what} is spent"
        assert 3000 < retry_seconds(details(error)) <= 3600
        assert len(endpoint.bodies) == 2


@pytest.mark.parametrize(
    "reply", [completion("Score: 7", finish_reason="length"), completion(None)]
)
async def test_replies_that_cannot_be_read_cost_tokens_too(
    judged: StartJudge, endpoint: ScriptedEndpoint, reply: Answer
) -> None:
    endpoint.script = replies(reply)
    async with judged("[limits]\ntries = 1\nbudget_tokens = 100\n") as run:
        codes = [
            (await failed(run.rewards.Score(score_request(model="j")))).code() for _ in range(2)
        ]
        assert codes == [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
        series = f'{{model="j",revision="{run.server.registry.resolve("j").info.revision[:12]}"}}'
        assert await run.metric(f"guerdon_judge_tokens_total{series}") == 100
    assert len(endpoint.bodies) == 1


async def test_a_budget_begins_anew() -> None:
    from guerdon.reward.judge.budget import Budget
    from guerdon.reward.judge.settings import JudgeLimits
    from guerdon.serving.errors import Overloaded

    now = 0.0
    budget = Budget(JudgeLimits(budget_requests=1, budget_seconds=10.0), clock=lambda: now)
    budget.take()
    now = 4.0
    with pytest.raises(Overloaded) as error:
        budget.take()
    assert error.value.retry_after == 6.0
    now = 10.0
    budget.take()


async def test_tokens_that_are_not_counted_hold_no_budget(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    endpoint.script = replies(completion("Score: 7", usage=None))
    async with judged("[limits]\nbudget_tokens = 1000\n") as run:
        error = await failed(run.rewards.Score(score_request(model="j")))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "counts no tokens" in str(error.details())
    async with judged() as run:
        assert await run.rewards.Score(score_request(model="j"))


async def test_a_server_that_stops_says_so(judged: StartJudge, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = replies(NEVER)
    async with judged(server={"drain_grace": 0.1}) as run:
        call = asyncio.ensure_future(failed(run.rewards.Score(score_request(model="j"))))
        await acquired(endpoint.asked)
        run.server.lifecycle.start_draining()
        run.server.lifecycle.start_leaving()
        error = await call
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "the server stopped before the request was done"
        await acquired(endpoint.left)


async def test_a_server_can_stop_while_a_deadline_passes() -> None:
    judging = Judging(RewardMetrics(CollectorRegistry()))

    class StopsWhenCancelled:
        async def judge(self, *_: object) -> list[list[ResponseScore]]:
            try:
                await asyncio.Event().wait()
            finally:
                judging.stop()  # the deadline has passed, and its call has not ended yet
            return []

    call = ScoringCall("Score", asyncio.get_running_loop().time())
    with pytest.raises(Unavailable, match="the server stopped"):
        await judging.judge(call, cast(Judge, StopsWhenCancelled()), [])


async def test_a_stream_fails_the_item_alone(
    judged: StartJudge, endpoint: ScriptedEndpoint
) -> None:
    from guerdon.client import AsyncRewardClient, Internal, Item

    endpoint.script = lambda body: "Score: 5" if "apple" in str(body) else Answer(b"", 400)
    async with (
        judged() as run,
        AsyncRewardClient(f"127.0.0.1:{run.ports.port}") as client,
    ):
        items = [Item("q", ["apple"]), Item("q", ["pear"]), Item("q", ["apples"])]
        results = {r.index: r async for r in client.score_stream("j", items)}
        assert [type(results[n].error) for n in range(3)] == [type(None), Internal, type(None)]
