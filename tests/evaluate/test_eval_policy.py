"""`guerdon eval policy` against the shipped fakes, with a real tiny model behind the sampler."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from tests.learner.support import settings as run_settings
from tests.rft.living import LivingPolicy
from tests.support.command import read_rows
from tests.support.tiny import tiny_checkpoint
from tests.trainer.toy import write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from guerdon.cli.main import main
from guerdon.client.testing import FakeRewardServer
from guerdon.trainer.common.measuring.measures import t_quantile
from guerdon.trainer.common.measuring.statistics import share
from guerdon.trainer.common.services.prompts import load_prompts
from guerdon.trainer.common.services.scored_store import ScoredGroups
from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.learner.learner import Learner

MOST, SAMPLES, PROMPTS = 5, 3, 6
HARMFUL = 1.0

Row = dict[str, Any]


def vowels(text: Any) -> float:
    return float(sum(letter in "aeiou" for letter in str(text)))


class World:
    """Both services, over real sockets; the sampler draws by the weights that it was given."""

    def __init__(self, first: Path, folder: Path) -> None:
        self.first, self.folder = first, folder
        self.sampler = LivingPolicy(first, MOST).server
        self.rewards = FakeRewardServer(models=("long", "vowels", "judge", "rude"))
        self.rewards.add_revision("vowels", "rev-1", lambda prompt, text: vowels(text))
        self.rewards.add_revision("judge", "rev-1", lambda prompt, text: -len(str(text)) / 7)
        self.rewards.add_revision("rude", "rev-1", lambda prompt, text: vowels(text))
        rows = [
            {"prompt": f"question {i}", "kind": "ab"[i % 2], "id": i, "title": f"title {i}"}
            for i in range(PROMPTS)
        ]
        self.prompts = write_rows(folder / "prompts.jsonl", rows)

    def __enter__(self) -> World:
        self.sampler.__enter__()
        self.rewards.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.rewards.__exit__()
        self.sampler.__exit__()

    def run(self, policy: Path, output: str, *more: str) -> int:
        """The command's exit code."""
        at = self.rewards.target
        return main(
            [
                "eval",
                "policy",
                "--policy",
                str(policy),
                "--reference",
                str(self.first),
                "--sampler",
                self.sampler.target,
                "--reward",
                f"{at}/long",
                "--reward",
                f"0.5*{at}/vowels",
                "--heldout-reward",
                f"{at}/judge",
                "--harm",
                f"{at}/rude",
                "--harm-threshold",
                str(HARMFUL),
                "--prompts",
                str(self.prompts),
                "--output",
                str(self.folder / output),
                "--max-tokens",
                str(MOST),
                "--samples-per-prompt",
                str(SAMPLES),
                "--dtype",
                "float32",
                "--patience",
                "5",
                "--by",
                "kind",
                *more,
            ]
        )

    def found(self, output: str) -> Row:
        found: Row = json.loads((self.folder / output / "evaluation.json").read_text("utf-8"))
        return found

    def rows(self, output: str) -> list[Row]:
        return read_rows(self.folder / output / "samples.jsonl")

    def calls(self, method: str) -> int:
        return sum(name == method for name, _ in self.sampler.calls)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("first") / "m", "llama", causal_lm=True)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tuned") / "m", "llama", causal_lm=True, seed=1)


@pytest.fixture(scope="module")
def world(first: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Evaluations of two policies by one sampler: `before`, and `after` with it for a baseline."""
    world = World(first, tmp_path_factory.mktemp("world"))
    with world:
        assert world.run(first, "before", "--no-plots") == 0
        assert world.run(tuned, "after", "--baseline", str(world.folder / "before")) == 0
        yield world


def by_prompt(rows: Sequence[Row], key: str) -> list[list[float]]:
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row["prompt_index"], []).append(float(row[key]))
    return [found[index] for index in sorted(found)]


def check(found: Row, values: Sequence[float], tolerance: float = 1e-9) -> None:
    """An estimate is Student's, by hand."""
    assert found["n"] == len(values)
    assert found["mean"] == pytest.approx(mean(values), abs=tolerance)
    se = stdev(values) / len(values) ** 0.5
    assert found["se"] == pytest.approx(se, abs=tolerance)
    half = t_quantile(0.975, len(values) - 1) * se
    assert found["low"] == pytest.approx(mean(values) - half, abs=tolerance)
    assert found["high"] == pytest.approx(mean(values) + half, abs=tolerance)


def test_every_completion_is_written_down_with_all_that_is_known_of_it(world: World) -> None:
    rows = world.rows("after")
    places = [(row["prompt_index"], row["sample"]) for row in rows]
    assert places == list(product(range(PROMPTS), range(SAMPLES)))
    for row in rows:
        text = row["response"]
        assert row["prompt"] == [{"role": "user", "content": f"question {row['prompt_index']}"}]
        assert row["parts"] == {"long": len(text), "vowels": vowels(text)}
        assert row["reward"] == len(text) + 0.5 * vowels(text)
        assert row["heldout_reward"] == pytest.approx(-len(text) / 7)
        assert row["harm"] == vowels(text)
        assert row["harmful"] == (vowels(text) > HARMFUL)
        assert row["refusal"] is False
        assert (row["kind"], row["id"]) == ("ab"[row["prompt_index"] % 2], row["prompt_index"])
    assert 0 < sum(row["harmful"] for row in rows) < len(rows)


def test_figures_are_means_over_prompts(world: World) -> None:
    found, rows = world.found("after"), world.rows("after")
    measures = found["measures"]
    for name, key in (("reward", "reward"), ("heldout_reward", "heldout_reward"), ("kl", "kl")):
        check(measures[name], [mean(values) for values in by_prompt(rows, key)])
    harmful = [mean(values) for values in by_prompt(rows, "harmful")]
    assert measures["harmful"]["mean"] == pytest.approx(mean(harmful))
    for row in rows:
        row["long"] = row["parts"]["long"]
    check(measures["reward/long"], [mean(values) for values in by_prompt(rows, "long")])
    assert found["completions"] == PROMPTS * SAMPLES
    assert found["prompts"]["count"] == PROMPTS
    assert found["rewards"] == ["long", "0.5*vowels"]
    assert found["harm"] == {"model": "rude", "threshold": HARMFUL}
    assert set(found["subgroups"]["kind"]) == {"a", "b"}
    for place, value in enumerate("ab"):
        part = [row for row in rows if row["prompt_index"] % 2 == place]
        check(
            found["subgroups"]["kind"][value]["reward"],
            [mean(values) for values in by_prompt(part, "reward")],
        )


def test_no_refusal_of_few_prompts_is_no_proof_of_none(world: World) -> None:
    found = world.found("after")["measures"]["refusal"]
    t2 = t_quantile(0.975, PROMPTS - 1) ** 2
    assert (found["mean"], found["low"]) == (0.0, 0.0)
    assert found["high"] == pytest.approx(t2 / (PROMPTS + t2), rel=1e-9)


def test_a_win_is_of_all_pairs_of_a_prompt_and_a_tie_is_half_of_one(world: World) -> None:
    ours, theirs = world.rows("after"), world.rows("before")
    for row in [*ours, *theirs]:
        row |= {f"reward/{name}": value for name, value in row["parts"].items()}
    rates = world.found("after")["win_rate"]
    assert rates.pop("against") == str(world.first)
    assert set(rates) == {"reward", "reward/long", "reward/vowels", "heldout_reward"}
    ties = 0
    for name, rate in rates.items():
        wins = []
        pairs = zip(by_prompt(ours, name), by_prompt(theirs, name), strict=True)
        for mine, other in pairs:
            outcome = Counter((a > b) - (a < b) for a, b in product(mine, other))
            wins.append((outcome[1] + 0.5 * outcome[0]) / SAMPLES**2)
            ties += outcome[0]
        assert rate == pytest.approx(share(wins, per_prompt=SAMPLES).as_dict())
        assert (rate["n"], rate["mean"]) == (PROMPTS, pytest.approx(mean(wins)))
        assert 0 <= rate["low"] < rate["mean"] < rate["high"] <= 1
        if name == "reward":
            for place, value in enumerate("ab"):
                part = world.found("after")["subgroups"]["kind"][value]["win_rate"]
                assert part["mean"] == pytest.approx(mean(wins[place::2]))
    assert ties


def test_differences_and_reward_per_nat_are_against_the_baseline(world: World) -> None:
    found, before = world.found("after"), world.found("before")
    ours, theirs = (by_prompt(world.rows(name), "reward") for name in ("after", "before"))
    change = [mean(a) - mean(b) for a, b in zip(ours, theirs, strict=True)]
    check(found["difference"]["reward"], change)
    gain = found["measures"]["reward"]["mean"] - before["measures"]["reward"]["mean"]
    assert found["reward_per_kl"] == pytest.approx(gain / found["measures"]["kl"]["mean"])
    assert before["win_rate"] is before["difference"] is before["reward_per_kl"] is None
    assert before["reward_per_kl_reason"] == "no baseline is given"
    assert before["measures"]["kl"]["mean"] == 0.0


@torch.no_grad()
def test_kl_is_that_of_plain_transformers_and_of_the_recipes(
    world: World, first: Path, tuned: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    prompts = load_prompts(str(world.prompts), tokenizer, max_prompt_tokens=99)
    groups = ScoredGroups(world.folder / "after" / "scored.jsonl", prompts, SAMPLES).groups
    models = [AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32) for m in (tuned, first)]
    expected = []
    for group in groups:
        for sample in group.samples:
            prompt, response = sample.completion
            ids = torch.tensor([prompt + response])
            begin = len(prompt)
            sums = [
                model(input_ids=ids)
                .logits[0, :-1]
                .log_softmax(-1)
                .gather(1, ids[0, 1:, None])[begin - 1 :]
                .sum()
                .item()
                for model in models
            ]
            expected.append(sums[0] - sums[1])
    written = [row["kl"] for row in world.rows("after")]
    assert written == pytest.approx(expected, abs=1e-4)
    assert min(map(abs, expected)) > 0.1

    run = run_settings(temperature=1.0)
    learner = Learner(run, build(run), first)
    learner.module.lm.load_state_dict(models[0].state_dict())
    recipes = list(chain.from_iterable(learner.divergence(groups)))
    assert written == pytest.approx(recipes, abs=1e-4)
    # And the sampler drew from the very policy that this computes.
    assert abs(world.found("after")["mismatch_kl"]) < 1e-6


def test_the_sampler_gets_the_weights_of_each_policy(world: World, tuned: Path) -> None:
    first, second = world.sampler.updates[:2]
    assert first.version != second.version
    with torch.no_grad():
        name = "model.layers.0.mlp.up_proj.weight"
        weight = AutoModelForCausalLM.from_pretrained(tuned).state_dict()[name]
    assert bytes(second.tensors[name]) == weight.numpy().tobytes()
    assert bytes(first.tensors[name]) != weight.numpy().tobytes()


def test_what_was_sampled_is_asked_other_things_without_services(
    world: World, tuned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also after a kill while KL was computed: a row that is half there is computed again."""
    before = world.found("after")
    folder, drawn = world.folder / "after", world.calls("Generate")
    measured = folder / "measured.jsonl"
    text = measured.read_text("utf-8")
    measured.write_text(text[: -len(text) // 5], "utf-8")
    baseline = ("--baseline", str(world.folder / "before"))
    more = ("--resume", "--harm-threshold", "0", "--by", "id", "--json", "--no-plots")
    assert world.run(tuned, "after", *baseline, *more) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed == world.found("after")
    assert printed["measures"]["harmful"]["mean"] > before["measures"]["harmful"]["mean"]
    assert printed["subgroups"].keys() == {"kind", "id"}
    assert printed["subgroups"]["id"]["3"]["reward"]["n"] == 1
    for key in ("kl", "reward", "heldout_reward"):
        assert printed["measures"][key] == before["measures"][key]
    assert printed["win_rate"] == before["win_rate"]
    assert world.calls("Generate") == drawn
    assert world.run(tuned, "after", *baseline, "--resume", "--no-plots") == 0  # as it was
    assert world.found("after")["measures"] == before["measures"]


def test_a_run_that_was_broken_goes_on(
    world: World, first: Path, tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = World(first, tmp_path)
    with broken:
        code, place = broken.rewards, ("--in-flight", "1", "--no-plots")
        taken = 0

        def failing(prompt: Any, text: Any) -> float:
            nonlocal taken
            taken += 1
            if taken > 2 * SAMPLES:
                raise RuntimeError("the model broke")
            return -len(str(text)) / 7

        code.add_revision("judge", "rev-1", failing)
        assert broken.run(tuned, "after", *place) == 1
        assert "the fake has no score" in capfd.readouterr().err
        assert not (tmp_path / "after" / "evaluation.json").exists()
        code.add_revision("judge", "rev-1", lambda prompt, text: -len(str(text)) / 7)
        assert broken.run(first, "after", *place, "--resume") == 2
        assert "was begun with policy" in capfd.readouterr().err
        assert broken.run(tuned, "after", *place, "--resume") == 0
        assert "resuming with 2 prompts sampled and scored" in capfd.readouterr().err
        assert broken.calls("Generate") <= PROMPTS + 2  # but for the one that broke, and the next
        assert broken.rows("after") == world.rows("after")
        code.add_revision("long", "rev-2", lambda prompt, text: 1.0)
        assert broken.found("after")["revisions"]["rewards"] == {"long": "rev-1", "vowels": "rev-1"}


def test_what_a_kill_leaves_is_gone_on_from(world: World, tuned: Path) -> None:
    """Files to which lines are added and brought to the disk, the last one half there."""
    folder, drawn = world.folder / "killed", world.calls("Generate")
    folder.mkdir()
    for name, part in (("scored.jsonl", 0.6), ("measured.jsonl", 0.3)):
        text = (world.folder / "after" / name).read_bytes()
        (folder / name).write_bytes(text[: int(len(text) * part)])
    for name in ("config.toml", "state.json"):
        shutil.copy(world.folder / "after" / name, folder)
    left = len(read_rows((folder / "scored.jsonl").read_bytes().rpartition(b"\n")[0])) - 1
    assert 0 < left < PROMPTS
    assert world.run(tuned, "killed", "--resume", "--no-plots") == 0
    assert world.calls("Generate") == drawn + PROMPTS - left
    assert world.rows("killed") == world.rows("after")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--temperature", "0.5"], "was made with temperature = 1.0, not 0.5"),
        (["--max-tokens", "4"], "was made with max_tokens = 5, not 4"),
        (["--limit", "4"], "is of other prompts: 6 of "),
        (["--prompt-key", "title"], "prompts.jsonl, title/answer ("),
        (["--answer-key", "kind"], "prompts.jsonl, prompt/kind ("),
        (["--verifier", "length:3"], 'rewards = ["long", "0.5*vowels"], not ["long", "0.5*vowels"'),
        (["--baseline", "nowhere"], "nowhere holds no evaluation.json"),
        (["--by", "colour"], "has the field 'colour'; their fields are id, kind, title"),
        (["--harm-threshold", "nan"], "harm_threshold is nan"),
        (["--samples-per-prompt", "0"], "samples_per_prompt is 0"),
        (["--max-tokens", "500"], "but the policy has 256 positions"),
    ],
)
def test_what_cannot_be_is_refused_before_the_sampler_is_touched(
    world: World,
    tuned: Path,
    tmp_path: Path,
    more: list[str],
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    updates = len(world.sampler.updates)
    arguments = ["--baseline", str(world.folder / "before"), "--output", str(tmp_path / "no")]
    assert world.run(tuned, "no", *arguments, *more) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert reason in said
    assert len(world.sampler.updates) == updates
    assert not (tmp_path / "no").exists()


def test_scores_of_two_revisions_are_not_compared(
    world: World, tuned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    updates = len(world.sampler.updates)
    world.rewards.add_revision("vowels", "rev-2", lambda prompt, text: vowels(text))
    try:
        baseline = ("--baseline", str(world.folder / "before"))
        assert world.run(tuned, "newer", *baseline) == 2
        said = capfd.readouterr().err
        assert "was scored by revision rev-1 of 'vowels', and rev-2 is served now" in said
        assert len(world.sampler.updates) == updates
    finally:
        world.rewards.remove_revision("vowels", "rev-2")
        world.rewards.add_revision("vowels", "rev-1", lambda prompt, text: vowels(text))


def test_other_weights_in_the_sampler_end_it(
    world: World, tuned: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else publishes to the same sampler: what it draws then is not the policy's."""
    from guerdon.trainer.evaluate.policy import run

    checked = run.check_version
    monkeypatch.setattr(
        run, "check_version", lambda group, version, at: checked(group, version - 1, at)
    )
    assert world.run(tuned, "shared") == 1
    assert "a sampler serves one run at a time" in capfd.readouterr().err


def test_a_sampler_that_stays_away_ends_it(
    world: World, tuned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    away = ("--sampler", "127.0.0.1:1", "--patience", "0.3")
    assert world.run(tuned, "away", *away) == 3
    assert "the sampler at 127.0.0.1:1 gave no answer for 0.3 seconds" in capfd.readouterr().err
    # The folder goes on with a sampler that is there.
    assert world.run(tuned, "away", "--resume", "--no-plots") == 0
    assert world.rows("away") == world.rows("after")


def test_pictures(world: World) -> None:
    names = {path.name for path in (world.folder / "after" / "plots").iterdir()}
    assert names == {"length.png", "reward_by_kind.png"}
