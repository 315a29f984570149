"""What is said of completions and of held-out prompts, with the noise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes.support import make_group, settings_of
from tests.support.command import read_rows
from tests.support.metric_keys import describe

from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.common.measuring.measures import t_quantile
from guerdon.trainer.common.measuring.monitors import (
    distinct_n,
    ngrams,
    policy_mismatch,
    repetition,
    rounded_for_sampler,
    warn,
)
from guerdon.trainer.common.measuring.policy_evaluation import Evaluation, compare, evaluate
from guerdon.trainer.common.measuring.samples import SampleTable, before_and_after
from guerdon.trainer.common.measuring.statistics import estimate, paired
from guerdon.trainer.common.metrics_log import MetricsLog
from guerdon.trainer.common.services.utilisation import RolloutStats
from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.report.metrics import KEYS
from guerdon.trainer.rl.report.step_metrics import group_metrics, speed_metrics
from guerdon.trainer.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    OnlineRFTSettings,
    OnlineSettings,
)

# --- statistics ---

TABLE = {
    0.975: {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 7: 2.3646, 10: 2.2281,
            20: 2.0860, 63: 1.9983, 200: 1.9719},
    0.9995: {3: 12.9240, 4: 8.6103},
    0.995: {2: 9.9248, 3: 5.8409, 4: 4.6041, 5: 4.0321, 10: 3.1693, 30: 2.7500},
}  # fmt: skip
"""Of Student's distribution, as printed in any textbook."""


@pytest.mark.parametrize("p", TABLE)
def test_students_quantiles(p: float) -> None:
    for df, value in TABLE[p].items():
        assert t_quantile(p, df) == pytest.approx(value, abs=5e-5), df


@pytest.mark.parametrize("n", [4, 8, 64])
def test_intervals_hold_what_they_promise(n: int) -> None:
    """95 % of 4,000 intervals over n normal numbers hold the true mean."""
    rng = np.random.default_rng(n)
    hits = 0
    for row in rng.normal(1.0, 3.0, (4000, n)):
        found = estimate(row)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.0 <= found.high
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_rows_of_a_prompt_are_not_independent() -> None:
    """Each prompt's value five times says no more than once."""
    values = np.random.default_rng(0).normal(size=12)
    once = estimate(values)
    many = estimate(np.repeat(values, 5), prompts=np.repeat(np.arange(12), 5))
    assert many.as_dict() == pytest.approx(once.as_dict())


def test_one_prompt_has_no_noise() -> None:
    found = estimate([2.0])
    assert (found.mean, found.se, found.low, found.high, found.n) == (2.0, None, None, None, 1)
    assert not found.rose
    assert not found.fell


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError):
        estimate(values)


def test_pairing_takes_the_prompts_own_spread_out() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, 30)
    before = dict(enumerate(hard))
    after = {i: v + 0.5 + rng.normal(0, 0.3) for i, v in before.items()}
    assert paired(before, after).rose
    assert not estimate([v + 0.5 for v in hard]).rose  # the spread would hide it
    assert paired(after, before).fell
    assert paired(before, {**after, 99: 1e9}).n == 30  # only what both have


# --- monitors ---


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 5))
def test_ngrams(ids: list[int], n: int) -> None:
    assert ngrams(ids, n) == [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def test_distinct_and_repetition() -> None:
    assert distinct_n([[1, 2, 1], [1, 2]], 1) == 2 / 5
    assert distinct_n([[1, 2, 1], [1, 2]], 2) == 2 / 3
    assert distinct_n([[1]], 2) == 1.0
    assert repetition([1, 2, 3, 4, 5, 6, 7]) == 0.0
    assert repetition([5] * 14) == pytest.approx(10 / 11)  # eleven 4-grams, all the same
    assert repetition(np.array([1, 2, 3])) == 0.0


def made(
    step: int, reward: float, heldout: float | None = None, length: int = 8, noise: float = 0.1
) -> Evaluation:
    """An evaluation of 20 prompts about these means."""
    rng = np.random.default_rng(step)
    groups, other = [], []
    for i in range(20):
        ids = [list(rng.integers(0, 50, length + int(rng.integers(0, 3)))) for _ in range(2)]
        groups.append(make_group(i, list(reward + noise * rng.normal(size=2)), ids=ids))
        other.append([(heldout or 0.0) + noise * rng.normal() for _ in range(2)])
    return evaluate(step, groups, heldout=None if heldout is None else other)


def test_warns_where_proxy_and_held_out_part() -> None:
    history = [made(0, 0.0, 0.5), made(10, 0.5, 0.7), made(20, 1.0, 0.4)]
    [text] = warn(history)
    assert text.startswith("step 20: since step 0 the reward rose by 0.9")
    assert "held-out reward fell by 0.1" in text
    [text] = warn([made(0, 0.0, 0.0), made(10, 0.5, 0.7), made(20, 1.0, 0.4)])
    assert text.startswith("step 20: since step 10 ")  # still above the start, but past its best


@pytest.mark.parametrize(
    "history",
    [
        [made(0, 0.0, 0.5)],
        [made(0, 0.0, 0.5), made(10, 1.0, 0.7)],  # both rise
        [made(0, 1.0, 0.5), made(10, 0.0, 0.2)],  # both fall
        [made(0, 0.0, 0.5, noise=3), made(10, 1.0, 0.2, noise=3)],  # within the noise
        [made(0, 0.0), made(10, 1.0)],  # no held-out model
    ],
)
def test_says_nothing_without_reason(history: list[Evaluation]) -> None:
    assert warn(history) == []


def test_false_alarms_are_rare() -> None:
    """Six evaluations of a policy that does not change, 200 times."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(200):
        history = []
        for step in range(6):
            values = {i: float(rng.normal()) for i in range(16)}
            other = {i: float(rng.normal()) for i in range(16)}
            same = dict.fromkeys(values, 0.0)
            means = {"reward": values, "heldout_reward": other, "length": same, "repetition": same}
            history.append(Evaluation(step, 16, means, 1.0, 1.0))
        alarms += bool(warn(history))
    assert alarms <= 4


def test_warns_of_longer_and_duller_answers() -> None:
    assert "grew from 9 to 29 tokens" in warn([made(0, 0.0, length=8), made(5, 0.0, length=28)])[0]
    dull = [make_group(i, [0.0], ids=[[3] * 9]) for i in range(20)]
    found = warn([made(0, 0.0), evaluate(5, dull)])
    assert found == ["step 5: the share of repeated 4-grams rose by 0.83"]
    alike = [make_group(i, [0.0], ids=[[1, 2, 3, 4, 5, 6, 7, 8, 9]]) for i in range(20)]
    assert "distinct-2 fell from" in warn([made(0, 0.0), evaluate(5, alike)])[0]


# --- evaluations ---


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"staleness_max": 0, "mismatch_kl": 0.075}, True),
        ({"staleness_max": 0, "mismatch_kl": 0.0023}, False),
        ({"staleness_max": 1, "mismatch_kl": 0.075}, False),  # stale tokens are of another policy
        ({"staleness_max": 0}, False),
    ],
)
def test_warns_of_a_sampler_with_another_policy(row: dict[str, float], said: bool) -> None:
    assert bool(policy_mismatch(row)) == said


@pytest.mark.parametrize(
    ("learner", "sampler", "said"),
    [
        ("float32", "float32", False),
        ("float32", "bfloat16", True),
        ("float32", "float16", True),
        ("bfloat16", "float32", False),  # what is published is what the learner computes with
        ("bfloat16", "bfloat16", False),
    ],
)
def test_warns_of_a_sampler_with_coarser_weights(learner: str, sampler: str, said: bool) -> None:
    assert bool(rounded_for_sampler(learner, sampler)) == said


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        (OnlineDPOSettings, {"pairs": 0, "skipped_updates": 1}, "made no preference pair"),
        (OnlineDPOSettings, {"pairs": 1, "skipped_updates": 0}, ""),
        (OnlineRFTSettings, {"accepted": 0.0, "skipped_updates": 1}, "accepted no completion"),
        (OnlineRFTSettings, {"accepted": 0.5, "skipped_updates": 0}, ""),
        (GRPOSettings, {"skipped_updates": 1}, "left out an update"),
        (GRPOSettings, {"skipped_updates": 0}, ""),
    ],
)
def test_warns_of_a_step_that_taught_nothing(
    kind: type[OnlineSettings], row: dict[str, float], said: str
) -> None:
    warning = build(settings_of(kind)).warning(row)
    assert bool(warning) == bool(said)
    assert said in warning


def test_an_evaluation_counts_prompts_not_completions() -> None:
    groups = [make_group(9, [1.0, 3.0], index=1), make_group(8, [5.0, 5.0], index=0)]
    found = evaluate(3, groups, kl=[[0.5, 1.5], [2.0, 2.0]])
    assert found.prompts["reward"] == {0: 5.0, 1: 2.0}
    assert found.reward.mean == 3.5
    assert found.reward.n == 2
    assert found.reward.se == pytest.approx(1.5)
    assert found.prompts["kl"] == {0: 2.0, 1: 1.0}
    assert found.completions == 4
    assert found.metrics() | {"x": 0} == found.metrics() | {
        "x": 0, "step": 3, "eval/reward": 3.5, "eval/kl": 1.5, "eval/finished": 0.5,
        "eval/prompts": 2, "eval/completions": 4,
    }  # fmt: skip


def test_parts_are_reported_where_there_are_several() -> None:
    groups = [make_group(0, [1.0, 2.0], helpful=[0.5, 0.5], exact=[0.0, 1.0])]
    assert evaluate(0, groups).prompts["reward/exact"] == {0: 0.5}
    alone = [make_group(0, [1.0, 2.0], helpful=[0.5, 0.5])]
    assert "reward/helpful" not in evaluate(0, alone).prompts


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_an_evaluation_without_a_score_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="prompt 4 has the numbers"):
        evaluate(0, [make_group(4, [1.0, reward])])


def test_an_evaluation_lacks_no_number() -> None:
    with pytest.raises(ValueError):
        evaluate(0, [make_group(4, [1.0, 2.0])], kl=[[0.5]])


def test_evaluations_survive_a_checkpoint(tmp_path: Path) -> None:
    from guerdon.trainer.rl.state_files import read_tree, write_tree

    found = made(7, 0.3, 0.1)
    write_tree(tmp_path / "e", found.tree())
    assert Evaluation.from_tree(read_tree(tmp_path / "e")) == found


def test_before_and_after_are_paired() -> None:
    change = compare(made(0, 0.0, 0.5), made(20, 1.0, 0.5))
    assert change["reward"].rose
    assert change["reward"].mean == pytest.approx(1.0, abs=0.1)
    assert not change["heldout_reward"].rose
    assert not change["heldout_reward"].fell


# --- metrics.jsonl ---


def test_what_groups_say() -> None:
    groups = [
        make_group(0, [1.0, 3.0], a=[1.0, 2.0], b=[0.0, 1.0]),
        make_group(1, [5.0, 5.0], a=[1.0, 1.0], b=[1.0, 1.0]),
    ]
    groups[1].samples[0].versions_T[:] = 1
    found = group_metrics(groups, version=3)
    assert found["reward"] == 3.5
    assert found["reward_group_std"] == 0.5
    assert found["reward_se"] == pytest.approx(1.5)
    assert found["reward/a"] == 1.25
    assert (found["staleness"], found["staleness_max"]) == (1.25, 2)
    assert (found["completions"], found["tokens"], found["finished"]) == (4, 12, 0.5)
    assert all(describe(key) for key in found)
    assert "reward_se" not in group_metrics(groups[:1], version=2)  # one prompt has no spread


def test_where_the_time_went() -> None:
    stats = RolloutStats(seconds=10.0, sampling_seconds=4.0, waiting_seconds=5.0, tokens=99)
    found = speed_metrics(60, {"learn": 3.0}, 12.0, stats)
    assert found["tokens_per_second"] == 5.0
    assert (found["idle/sampler"], found["idle/learner"], found["idle/rewards"]) == (0.6, 0.5, 1.0)
    assert all(describe(key) for key in found)


def test_all_that_is_measured_is_explained() -> None:
    row = made(3, 0.0, 0.5).metrics() | evaluate(0, [make_group(0, [1.0], a=[1], b=[2])]).metrics()
    assert all(describe(key) for key in row), [key for key in row if not describe(key)]
    assert describe("reward/helpful") == KEYS["rewards"]["reward/NAME"]
    assert describe("reward/https://host/score") == KEYS["rewards"]["reward/NAME"]
    assert describe("seconds/learn")
    assert describe("eval/reward/helpful")
    assert describe("no_such") is None
    assert describe("no/such") is None


def test_the_log_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path, [])
    log.add({"step": 1, "reward": 0.5})
    again = MetricsLog(path, [{"step": 1, "reward": 0.5, "seconds": 100.0}])
    again.add({"step": 2, "reward": 0.6})
    rows = read_rows(path)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["seconds"] >= 100.0
    assert [row["step"] for row in again.rows] == [1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_ends_the_run(value: float, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl", [])
    with pytest.raises(DivergedError, match=r"kl is .* at step 4: try a smaller --lr"):
        log.add({"step": 4, "kl": value})
    assert not (tmp_path / "m.jsonl").exists()


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "m.jsonl", [], main=False).add({"step": 1})
    SampleTable(tmp_path / "s.jsonl", 8, main=False).add(1, [make_group(0, [1.0])])
    assert not list(tmp_path.iterdir())


# --- samples.jsonl ---


def test_samples_are_spread_over_prompts(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    groups = [make_group(i, [1.0, 2.0, 3.0], helpful=[1.0, 2.0, 3.0]) for i in range(3)]
    SampleTable(path, 4).add(5, groups)
    rows = read_rows(path)
    assert [(row["prompt_index"], row["sample"]) for row in rows] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (0, 1),
    ]
    assert rows[3] == {
        "step": 5,
        "kind": "train",
        "prompt_index": 0,
        "task": 0,
        "sample": 1,
        "prompt": [{"role": "user", "content": "question 0"}],
        "response": "a good answer 1",
        "reward": 2.0,
        "parts": {"helpful": 2.0},
        "tokens": 3,
        "finished": False,
        "versions": [2, 2],
        "answer": "0",
    }


def test_before_and_after_are_found(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    table = SampleTable(path, 1)
    odd = "a line\u2028of its own \x85 “quoted”\n"
    table.add(0, [make_group(i, [0.0, 0.0], text=odd) for i in (4, 2)], "before")
    table.add(1, [make_group(7, [0.0])])
    table.add(9, [make_group(i, [1.0, 1.0], index=i - 10) for i in (12, 14, 15)], "after")
    pairs = before_and_after(path)
    assert [before["prompt_index"] for before, _ in pairs] == [2, 4]
    assert pairs[0][0]["response"] == odd + " 0"
    assert pairs[0][1]["reward"] == 1.0
    assert before_and_after(tmp_path / "none") == []
