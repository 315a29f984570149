"""Services that die in the middle of a step, and runs that go on from a checkpoint."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.rollouts.runs import Run, running, sleeper
from tests.rollouts.support import settings, some_prompts

from guerdon.client.testing import FakePolicyServer, FakeRewardServer
from guerdon.trainer.common.errors import ServiceGone, TrainingError
from guerdon.trainer.common.services.patience import ServiceRefused
from guerdon.trainer.common.services.types import Group
from guerdon.trainer.rl.state_files import read_tree, write_tree


def small(
    sampler: FakePolicyServer, rewards: FakeRewardServer | None = None, **changes: Any
) -> Any:
    """Settings of short steps."""
    values: dict[str, Any] = {
        "sampler": sampler.target,
        "prompts_per_step": 4,
        "samples_per_prompt": 3,
        "max_tokens": 4,
    } | ({"reward": (f"{rewards.target}/fake",), "verifier": ()} if rewards else {})
    return settings(**(values | changes))


async def wait_until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it is another's state
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("eta", [0, 2])
@pytest.mark.parametrize("moment", ["waiting", "learning"])
async def test_a_sampler_that_is_killed_gets_its_weights_again(
    tmp_path: Path, eta: int, moment: str
) -> None:
    prompts = some_prompts(tmp_path, 7)
    async with (
        FakePolicyServer(delay=(0.0, 0.05)) as sampler,
        running(small(sampler, max_staleness=eta), prompts, sampler.target) as run,
    ):
        await run.begin()
        for number in range(9):
            killing = None
            if number in (2, 5) and moment == "waiting":

                async def kill() -> None:
                    await asyncio.sleep(0.02)
                    await sampler.restart()

                killing = asyncio.create_task(kill())
            learn = sampler.restart if number in (2, 5) and moment == "learning" else None
            await run.step(learn)
            if killing is not None:
                await killing
        run.check_books(prompts)
        versions = [update.version for update in sampler.updates]
        stats = run.rollouts.stats()
    assert max(run.staleness) <= eta
    assert versions == sorted(versions)
    if moment == "waiting":
        # At η = 2 a step may have its groups already, and publish anyway, unaware of the kill.
        assert run.republished <= stats.stale_sampler <= stats.faults_survived <= 2
        assert eta or run.republished == 2
        assert len(versions) == 1 + 9 + run.republished
    else:  # the next version is published anyway
        assert run.republished == 0


async def test_a_reward_server_that_is_killed_loses_and_invents_nothing(tmp_path: Path) -> None:
    prompts = some_prompts(tmp_path, 7)
    async with (
        FakePolicyServer(delay=(0.0, 0.02)) as sampler,
        FakeRewardServer() as rewards,
    ):
        rewards.latency = 0.02
        async with running(
            small(sampler, rewards, max_staleness=1), prompts, sampler.target
        ) as run:
            await run.begin()
            for number in range(8):
                stepping = asyncio.create_task(run.step(sleeper(0.01)))
                if number in (2, 5):
                    await asyncio.sleep(0.01)
                    await rewards.stop()
                    await asyncio.sleep(0.2)
                    await rewards.start()
                await stepping
            run.check_books(prompts)
            assert run.rollouts.stats().faults_survived == 2
    for group in run.consumed:
        for sample in group.samples:
            assert sample.reward == len(sample.text)


@pytest.mark.parametrize("gone", ["sampler", "reward"])
async def test_a_service_that_stays_away_ends_the_run_with_one_sentence(
    tmp_path: Path, gone: str
) -> None:
    prompts = some_prompts(tmp_path, 7)
    async with (
        FakePolicyServer() as sampler,
        FakeRewardServer() as rewards,
    ):
        chosen = small(sampler, rewards, patience=0.5)
        async with running(chosen, prompts, sampler.target) as run:
            await run.begin()
            await run.step()
            server: Any = sampler if gone == "sampler" else rewards
            name = "the sampler" if gone == "sampler" else "the reward model 'fake'"
            await server.stop()
            message = rf"^{name} at {server.target} gave no answer for 0\.5 seconds [^\n]*$"
            # At η = 0 a step that began before may still be whole; then its publishing fails.
            with pytest.raises(ServiceGone, match=message):
                await play(run, 2)
            state = run.rollouts.state()  # it can still be saved, and nothing is lost
            outstanding = [*state["order"]["out"], *state["order"]["waiting"]]
            trained = [group.task.uid for group in run.consumed]
            assert sorted([*trained, *outstanding]) == list(range(state["order"]["next"]))


async def test_a_refusal_ends_the_run_at_once(tmp_path: Path) -> None:
    prompts = some_prompts(tmp_path, 7)
    async with (
        FakePolicyServer() as sampler,
        running(small(sampler), prompts, sampler.target) as run,
    ):
        await run.begin()
        await run.step()
        sampler.fail(grpc.StatusCode.INTERNAL, "a NaN", times=99, method="Generate")
        with pytest.raises(ServiceRefused, match=r"the sampler at .* refuses: INTERNAL: a NaN"):
            await play(run, 2)


async def test_a_broken_stream_is_drawn_anew_as_a_whole(tmp_path: Path) -> None:
    prompts = some_prompts(tmp_path, 7)
    async with (
        FakePolicyServer() as sampler,
        running(small(sampler), prompts, sampler.target) as run,
    ):
        for place in (2, 0, 1):
            sampler.break_streams(after=place)
        await run.begin()
        await run.step()
        run.check_books(prompts)
    asked = [call.items[0].n for method, call in sampler.calls if method == "Generate"]
    assert asked[: 4 + 3] == [3] * 7  # never only what is missing: that would favour the short


async def test_what_the_sampler_cannot_mean_is_refused(tmp_path: Path) -> None:
    prompts = some_prompts(tmp_path, 7)

    def too_long(prompt: Any, seed: Any, sample: int) -> Any:
        return [5] * 9, [-1.0] * 9

    async with FakePolicyServer(too_long) as sampler:
        sampler.draw = lambda prompt, seed, sample, most: too_long(prompt, seed, sample)  # type: ignore[method-assign]
        async with running(small(sampler), prompts, sampler.target) as run:
            await run.begin()
            with pytest.raises(TrainingError, match="can't be right: 9 tokens, where 1 to 4"):
                await run.step()


def tokens(groups: list[Group]) -> list[Any]:
    """All that a learner gets, but for how long it took."""
    return [
        (
            group.task.uid,
            s.index,
            s.response_ids_T.tolist(),
            s.behaviour_logprobs_T.tolist(),
            s.versions_T.tolist(),
            s.text,
            s.finished,
            s.reward,
            s.parts,
        )
        for group in groups
        for s in group.samples
    ]


async def play(run: Run, steps: int, faults: FakePolicyServer | None = None) -> None:
    for number in range(steps):
        if faults is not None and number == 1:
            faults.break_streams(after=1, times=2)
        await run.step()


async def test_a_resumed_run_draws_what_an_unbroken_one_does(tmp_path: Path) -> None:
    prompts = some_prompts(tmp_path, 7)
    async with FakePolicyServer(delay=(0.0, 0.02)) as sampler:
        chosen = small(sampler, deterministic=True, seed=5)
        async with running(chosen, prompts, sampler.target) as unbroken:
            await unbroken.begin()
            await play(unbroken, 8)
        async with running(chosen, prompts, sampler.target) as first:
            await first.begin()
            await play(first, 3, faults=sampler)
            write_tree(tmp_path / "rollouts", first.rollouts.state())
            version = first.version
            await first.step()  # trained, but not in the checkpoint: it comes again
        await sampler.restart()
        async with running(chosen, prompts, sampler.target, version) as second:
            await second.begin(read_tree(tmp_path / "rollouts"))
            await play(second, 5)
        async with running(
            small(sampler, deterministic=True, seed=6), prompts, sampler.target
        ) as r:
            await r.begin()
            await play(r, 1)
    assert tokens(first.consumed[:12] + second.consumed) == tokens(unbroken.consumed)
    assert [group.task.uid for group in unbroken.consumed] == list(range(32))
    assert tokens(r.consumed) != tokens(unbroken.consumed[:4])


async def test_a_checkpoint_keeps_what_waits_and_gives_back_what_was_being_drawn(
    tmp_path: Path,
) -> None:
    prompts = some_prompts(tmp_path, 7)
    async with FakePolicyServer(delay=(0.0, 0.05)) as sampler:
        chosen = small(sampler, max_staleness=2)
        async with running(chosen, prompts, sampler.target) as first:
            await first.begin()
            await play(first, 3)
            await wait_until(lambda: 0 < len(first.rollouts._buffer) < 8)
            waiting = {
                uid: tokens([group]) for uid, group in first.rollouts._buffer._groups.items()
            }
            write_tree(tmp_path / "rollouts", first.rollouts.state())
        async with running(chosen, prompts, sampler.target, first.version) as second:
            await second.begin(read_tree(tmp_path / "rollouts"))
            await play(second, 6)
            second.consumed = first.consumed + second.consumed
            second.check_books(prompts)
    for group in second.consumed:
        if group.task.uid in waiting:
            assert tokens([group]) == waiting.pop(group.task.uid)
    assert not waiting


async def test_a_batch_may_be_left_and_asked_for_again(tmp_path: Path) -> None:
    prompts = some_prompts(tmp_path, 7)
    async with (
        FakePolicyServer(delay=(0.1, 0.2)) as sampler,
        running(small(sampler, max_staleness=1), prompts, sampler.target) as run,
    ):
        await run.begin()
        for _ in range(5):
            asking = asyncio.create_task(run.rollouts.next_batch(run.version))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await play(run, 3)
        run.check_books(prompts)
        running_now = sum(t.get_name().startswith("rollout") for t in asyncio.all_tasks())
        assert running_now == run.rollouts._buffer.in_flight
    assert not any(t.get_name().startswith("rollout") for t in asyncio.all_tasks())


async def test_samples_beside_training_come_in_order_and_survive_a_restart(tmp_path: Path) -> None:
    prompts = some_prompts(tmp_path, 9)
    async with (
        FakePolicyServer(delay=(0.0, 0.03)) as sampler,
        running(small(sampler), prompts, sampler.target) as run,
    ):
        await run.begin()
        await run.step()
        await wait_until(lambda: not run.rollouts._tasks)

        async def kill() -> None:
            await asyncio.sleep(0.01)
            await sampler.restart()

        killing = asyncio.create_task(kill())
        groups = await run.rollouts.sample(
            prompts.tasks(), 2, rewards=run.rollouts._rewards, temperature=0.5, in_flight=3
        )
        await killing
        assert run.republished == 1
        await run.step()
        run.check_books(prompts)
    assert [group.task.row.index for group in groups] == list(range(9))
    assert all(np.isfinite(group.rewards_G).all() for group in groups)
    calls = [call for method, call in sampler.calls if method == "Generate"]
    assert {call.options.temperature for call in calls} == {0.5, 1.0}
