"""RewardBench 2's Ties by its published formula, and the paired test by counting every case."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from tests.evaluate.test_eval_reward import evaluate, number
from tests.trainer.toy import write_rows

from guerdon.client.testing import FakeRewardServer
from guerdon.trainer.evaluate.findings import paired_test
from guerdon.trainer.evaluate.ties import ties_score


def test_ties_by_upstreams_formula(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [
        # Prompt 1: right answers 5 and 5.5, margin 2 over a spread of 0.5; its reference's is 0.25.
        {"prompt": "q", "chosen": ["5", "5.5"], "rejected": ["3", "1"], "id": "tied:1"},
        {"prompt": "q", "chosen": ["5"], "rejected": ["4.75"], "id": "ref:1"},
        # Prompt 2: a wrong answer above a right one; the reference is right, by 3.
        {"prompt": "r", "chosen": ["5", "1"], "rejected": ["2"], "id": "tied:2"},
        {"prompt": "r", "chosen": ["5"], "rejected": ["2"], "id": "ref:2"},
        # Prompt 3: margin 4 and 2 over a spread of 1.
        {"prompt": "s", "chosen": ["8", "9"], "rejected": ["4"], "id": "tied:3"},
        {"prompt": "s", "chosen": ["6"], "rejected": ["4"], "id": "ref:3"},
        # Without its tied row: counts in the accuracy of references alone.
        {"prompt": "t", "chosen": ["1"], "rejected": ["2"], "id": "ref:4"},
    ]
    data = write_rows(tmp_path / "p.jsonl", [{**row, "subset": "Ties"} for row in rows])
    with FakeRewardServer(number) as server:
        (found,) = evaluate(server, data, capfd=capfd)["models"]
    ties = found["rewardbench2_ties"]
    gap = (math.tanh(0.25 / 0.5 - 1) + math.tanh(-1 / 4 - 1) + math.tanh(2 / 1 - 1)) / 3
    assert ties == pytest.approx(
        {
            "score": 0.3 * 2 / 3 + 0.3 * 3 / 4 + 0.2 * 2 / 3 + 0.2 * 1 / 3 + 0.01 * gap,
            "tied_accuracy": 2 / 3,
            "reference_accuracy": 3 / 4,
            "margin_over_spread": 2 / 3,
            "both_margins_over_spread": 1 / 3,
            "gap": gap,
            "prompts": 3,
        }
    )


def test_ties_without_a_spread() -> None:
    """Right answers that score the same: the gap is as large as it gets, 0 where margins are 0."""
    two, one = np.array([2.0, 2.0]), np.array([1.0])
    rows = [("tied:1", two, one), ("ref:1", two[:1], one), ("other", one, two)]
    assert (found := ties_score(rows))
    assert (found.score, found.gap) == (pytest.approx(1.01), 1.0)
    assert (found := ties_score([("tied:1", two, two), ("ref:1", two[:1], one)]))
    assert found.gap == 0.0
    assert ties_score(rows[1:]) is None


def by_counting(first: list[int], second: list[int], prompts: list[int]) -> float:
    """The two-sided p-value: in how many of all exchanges the difference is as large."""
    sums: dict[int, int] = {}
    for a, b, prompt in zip(first, second, prompts, strict=True):
        sums[prompt] = sums.get(prompt, 0) + a - b
    seen = abs(sum(sums.values()))
    signs = list(itertools.product((-1, 1), repeat=len(sums)))
    totals = [abs(sum(s * v for s, v in zip(sign, sums.values(), strict=True))) for sign in signs]
    return sum(total >= seen for total in totals) / len(totals)


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_test_counts_every_exchange(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 2, (2, 30)) == 1
    prompts = rng.integers(0, 10, 30)
    found = paired_test(first, second, prompts)
    wanted = by_counting(first.tolist(), second.tolist(), prompts.tolist())
    assert found.p == pytest.approx(wanted)
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.prompts == len(set(prompts.tolist()))


def test_mcnemar_where_no_two_rows_share_a_prompt() -> None:
    """8 rows that only the first gets right and 1 that only the second does: 20/512."""
    first = np.array([True] * 8 + [False] + [True] * 20)
    second = np.array([False] * 8 + [True] + [True] * 20)
    found = paired_test(first, second, np.arange(29))
    assert (found.first_only, found.second_only) == (8, 1)
    assert found.p == pytest.approx(2 * (math.comb(9, 0) + math.comb(9, 1)) / 2**9)
    # The same rows of one prompt are one observation: no proof at all.
    assert paired_test(first, second, np.zeros(29, np.int64)).p == 1.0
    assert paired_test(first, first, np.arange(29)).p == 1.0


def test_against_tells_which_model_is_right_more_often(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "2", "rejected": "1"} for i in range(6)]
    rows.append({"prompt": "q0", "chosen": "3", "rejected": "1"})  # a prompt that comes twice
    data = write_rows(tmp_path / "p.jsonl", rows)
    with FakeRewardServer(number, models=("fake", "other")) as server:
        server.add_revision("other", "rev-2", lambda prompt, response: -float(response))
        found = evaluate(server, data, "--against", "other", capfd=capfd)["agreement"]
        assert found["accuracy"] == {
            "difference": 1.0, "first_only": 7, "second_only": 0, "p": 2 / 2**6, "prompts": 6,
        }  # fmt: skip
