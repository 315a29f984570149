"""Which completions are kept."""

from __future__ import annotations

import math
import tomllib
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rft.support import group_of, settings_of

from guerdon.settings import build, to_toml
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.services.types import Group, Sample
from guerdon.trainer.rl.learner.rejection import earned, keep
from guerdon.trainer.rl.settings import OnlineRFTSettings


def names(samples: list[Sample]) -> list[tuple[int, int]]:
    return [(sample.task_uid, sample.index) for sample in samples]


def kept(groups: list[Group], **more: object) -> list[tuple[int, int]]:
    return names(keep(groups, settings_of(**more), np.random.default_rng(0)))


GROUP = group_of(3, [1, 2], [([5], 1.0), ([6], 0.2), ([5], 1.0), ([7, 8], 1.0), ([9], 0.9)])


def test_threshold_keeps_what_reaches_it() -> None:
    assert kept([GROUP], deduplicate=False) == [(3, 0), (3, 2), (3, 3)]
    assert kept([GROUP], deduplicate=False, threshold=0.9) == [(3, 0), (3, 2), (3, 3), (3, 4)]
    assert kept([GROUP], threshold=1.01) == []


def test_copies_are_kept_once() -> None:
    assert kept([GROUP]) == [(3, 0), (3, 3)]


def test_copies_are_per_prompt_and_over_tasks_of_it() -> None:
    again = group_of(4, [1, 2], [([5], 1.0)])
    elsewhere = group_of(5, [2, 1], [([5], 1.0)])
    assert kept([GROUP, again, elsewhere]) == [(3, 0), (3, 3), (5, 0)]


def test_top_takes_the_best_in_the_order_they_came() -> None:
    assert kept([GROUP], keep="top", top=3) == [(3, 0), (3, 3), (3, 4)]
    assert kept([GROUP], keep="top", top=3, deduplicate=False) == [(3, 0), (3, 2), (3, 3)]
    assert kept([GROUP], keep="top", top=99) == [(3, 0), (3, 1), (3, 3), (3, 4)]


def test_a_cut_completion_pays_before_it_is_judged() -> None:
    cut = group_of(1, [1], [([5], 1.0), ([6], 2.0)], finished=False)
    assert kept([cut], keep_cut=True, missing_eos_penalty=0.5) == [(1, 1)]
    assert earned(cut.samples[0], settings_of(missing_eos_penalty=0.5)) == 0.5
    assert earned(GROUP.samples[0], settings_of(missing_eos_penalty=0.5)) == 1.0


@pytest.mark.parametrize("rule", [{"keep": "threshold"}, {"keep": "top", "top": 2}])
def test_a_cut_completion_is_not_kept(rule: dict[str, Any]) -> None:
    cut = group_of(1, [1], [([5], 1.0), ([6], 2.0)], finished=False)
    ended = group_of(2, [1], [([5], 1.0)])
    assert kept([cut], **rule) == []
    assert kept([cut, ended], **rule) == [(2, 0)]
    assert kept([cut], **rule, keep_cut=True) == [(1, 0), (1, 1)]


@pytest.mark.parametrize("more", [{"reward_clip": 1.0}, {"reward_scale": "running"}])
def test_settings_that_would_do_nothing_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="does nothing"):
        build(OnlineRFTSettings, tomllib.loads(to_toml(settings_of())) | more)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ["threshold", "top"])
def test_a_sample_without_a_reward_is_an_error(reward: float, rule: str) -> None:
    with pytest.raises(ValueError, match="reward of task 7"):
        kept([group_of(7, [1], [([5], 1.0), ([6], reward)])], keep=rule)


def test_chance_thins_out_evenly() -> None:
    group = group_of(1, [1], [([i], 1.0) for i in range(4)])
    rng, settings = np.random.default_rng(5), settings_of(max_per_prompt=2)
    drawn = Counter(sample.index for _ in range(2000) for sample in keep([group], settings, rng))
    assert sum(drawn.values()) == 4000
    for index in range(4):  # 1000 each, standard deviation 22
        assert abs(drawn[index] - 1000) < 120


REWARDS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.5])
ANSWERS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=2), REWARDS), max_size=6
)
PROMPTS = st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=2), ANSWERS))
SHARED = {"max_per_prompt": st.integers(0, 3), "deduplicate": st.booleans()}
RULES = st.one_of(
    st.builds(settings_of, keep=st.just("threshold"), threshold=REWARDS, **SHARED),
    st.builds(settings_of, keep=st.just("top"), top=st.integers(1, 4), **SHARED),
)


@given(PROMPTS, RULES, st.integers(0, 99))
def test_the_rules_hold_whatever_comes(
    prompts: list[tuple[list[int], list[tuple[list[int], float]]]],
    rule: OnlineRFTSettings,
    seed: int,
) -> None:
    groups = [group_of(uid, *entry) for uid, entry in enumerate(prompts)]
    samples = keep(groups, rule, np.random.default_rng(seed))
    everything = [sample for group in groups for sample in group.samples]

    # Given ones, each at most once, in order.
    places = [next(i for i, s in enumerate(everything) if s is sample) for sample in samples]
    assert places == sorted(set(places))
    # The same again from the same seed.
    assert names(samples) == names(keep(groups, rule, np.random.default_rng(seed)))

    mine: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
    theirs: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
    for chosen, where in ((samples, mine), (everything, theirs)):
        for sample in chosen:
            where[tuple(sample.prompt_ids_P)].append(sample)
    for prompt, all_of in theirs.items():
        check_one_prompt(mine[prompt], all_of, rule)


def check_one_prompt(mine: list[Sample], all_of: list[Sample], rule: OnlineRFTSettings) -> None:
    different: dict[tuple[int, ...], float] = {}
    for sample in all_of:
        different.setdefault(tuple(sample.response_ids_T), sample.reward)
    rewards = list(different.values()) if rule.deduplicate else [s.reward for s in all_of]
    if rule.deduplicate:
        tokens = [tuple(sample.response_ids_T) for sample in mine]
        assert len(tokens) == len(set(tokens))
    if rule.keep == "threshold":
        accepted = sorted(reward for reward in rewards if reward >= rule.threshold)
    else:
        accepted = sorted(rewards)[-rule.top :]
    if rule.max_per_prompt and len(accepted) > rule.max_per_prompt:
        assert len(mine) == rule.max_per_prompt
        assert all(sample.reward in accepted for sample in mine)
    else:
        assert sorted(sample.reward for sample in mine) == accepted
