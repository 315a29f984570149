"""The reward function of TRL: with the fake server, and in TRL's own trainers with a real one."""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.server import RunningServer, running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import (
    DeadlineExceeded,
    FormattedText,
    InvalidArgument,
    NotFound,
    Retry,
    RewardClient,
    Unavailable,
)
from guerdon.client.testing import FakeRewardServer
from guerdon.integrations.trl import RewardFunction
from guerdon.models import Manifest

NO_SYSTEM = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
QUESTIONS = ("What is rain?", "How do I boil an egg?")


@pytest.fixture
def fake() -> Iterator[FakeRewardServer]:
    with FakeRewardServer() as server:
        yield server


def turns(text: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def test_a_prompt_goes_once_and_scores_come_back_in_order(fake: FakeRewardServer) -> None:
    with RewardClient(fake.target) as rewards:
        function = RewardFunction(rewards, "fake@rev-1", normalize=True)
        prompts = [turns(q) for q in (QUESTIONS[0], QUESTIONS[1], QUESTIONS[0])]
        completions = [turns(text, "assistant") for text in ("aaa", "b", "cc")]
        found = function(prompts=prompts, completions=completions, completion_ids=[], answer=[1])
    assert (found, function.__name__) == ([3.0, 1.0, 2.0], "fake")
    (call,) = fake.calls
    assert [len(item.responses) for item in call.request.items] == [2, 1]
    options = call.request.options
    assert (options.priority, options.normalize) == (2, True)


def test_text_is_a_user_turn_unless_it_is_rendered(fake: FakeRewardServer) -> None:
    seen: list[Any] = []
    fake.add_revision("fake", "rev-2", lambda prompt, response: seen.append(prompt) or 0.5)  # type: ignore[func-returns-value]
    with RewardClient(fake.target) as rewards:
        assert RewardFunction(rewards, "fake")(["q"], ["a"]) == [0.5]
        assert RewardFunction(rewards, "fake", formatted_text=True)(["q"], ["a"]) == [0.5]
    assert seen == ["q", FormattedText("q")]


def test_a_copy_that_was_pickled_asks_too(fake: FakeRewardServer) -> None:
    with RewardClient(fake.target) as rewards:
        function = RewardFunction(rewards, "fake", name="length")
        assert function(["q"], ["aa"]) == [2.0]
        copy = pickle.loads(pickle.dumps(function))
    assert (copy.__name__, copy(["q"], ["aa"])) == ("length", [2.0])


def test_failures_are_raised_and_never_rewards(fake: FakeRewardServer) -> None:
    with RewardClient(fake.target) as rewards, pytest.raises(NotFound, match="other"):
        RewardFunction(rewards, "other")(["q"], ["a"])
    nobody = "127.0.0.1:1"
    down = pytest.raises((Unavailable, DeadlineExceeded), match=re.escape(nobody))
    for absent in (
        RewardClient(nobody, retry=Retry(attempts=1)),
        RewardClient(nobody, timeout=0.2),
    ):
        with absent, down:
            RewardFunction(absent, "fake")(["q"], ["a"])
    with RewardClient(fake.target) as rewards:
        function = RewardFunction(rewards, "fake")
        with pytest.raises(InvalidArgument, match=r"completions: are 1 for 2 prompts"):
            function(["q", "r"], ["a"])
        with pytest.raises(InvalidArgument, match=r"completions\[1\]\[0\].tool_calls"):
            function(["q", "r"], ["a", [turns("a", "assistant")[0] | {"tool_calls": ["f"]}]])
    assert not any(call.method == "Score" for call in fake.calls if call.request.model == "fake")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("models")
    models = {
        "helpful": tiny_checkpoint(folder / "helpful", "llama", seed=5),
        "short": tiny_checkpoint(folder / "short", "llama", seed=6, max_positions=48),
        "no-system": tiny_checkpoint(folder / "no-system", "llama", chat_template=NO_SYSTEM),
        "rated": tiny_checkpoint(folder / "rated", "llama", num_labels=2),
    }
    Manifest(kind="attributes", attributes={"tone": 0.5, "truth": 2.0}).write(models["rated"])
    with running_server(models, dtype="float32") as running:
        yield running


class Recording(RewardFunction):
    """Keeps what the trainer passed and was given back."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.calls: list[tuple[list[Any], list[Any], list[float | None]]] = []

    def __call__(self, prompts: Any, completions: Any, **more: Any) -> list[float | None]:
        found = super().__call__(prompts, completions, **more)
        assert {"completion_ids", "trainer_state", "log_extra", "log_metric"} <= more.keys()
        self.calls.append((prompts, completions, found))
        return found


def test_a_completion_that_the_server_refuses_is_named(server: RunningServer) -> None:
    with RewardClient(server.address) as rewards:
        function = RewardFunction(rewards, "short")
        with pytest.raises(InvalidArgument) as caught:
            function(["q", "r", "q"], ["a", "b", "too long " * 40])
    assert caught.value.__notes__ == ["items[0].responses[1] is completions[2]"]


def trl_classes(algorithm: str) -> tuple[Any, Any]:
    """A trainer of TRL and its settings; importing them warns of what else is installed."""
    with warnings.catch_warnings(action="ignore"):
        import trl

        return getattr(trl, f"{algorithm}Trainer"), getattr(trl, f"{algorithm}Config")


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "conversational"), [("GRPO", True), ("RLOO", False)])
def test_trl_trains_on_the_scores_of_a_real_server(
    server: RunningServer, tmp_path: Path, algorithm: str, conversational: bool
) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer_class, settings_class = trl_classes(algorithm)
    folder = tiny_checkpoint(tmp_path / "policy", "llama", causal_lm=True)
    rows = [{"prompt": turns(q) if conversational else q} for q in QUESTIONS]
    settings = settings_class(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    with RewardClient(server.address) as rewards:
        function = Recording(rewards, "helpful")
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(folder),
            reward_funcs=function,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        trainer.train()
        assert len(function.calls) == 2
        logged = [row for row in trainer.state.log_history if "rewards/helpful/mean" in row]
        for (prompts, completions, found), row in zip(function.calls, logged, strict=True):
            texts = [c[0]["content"] if conversational else c for c in completions]
            native = [
                rewards.score_one("helpful", prompt, [text]).values[0]
                for prompt, text in zip(prompts, texts, strict=True)
            ]
            assert found == pytest.approx(native, abs=1e-4)
            assert row["rewards/helpful/mean"] == pytest.approx(sum(native) / 4, abs=1e-4)


def test_text_that_the_template_drops_is_told_once(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, *turns("q")]
    with RewardClient(server.address) as rewards, caplog.at_level(logging.WARNING):
        function = RewardFunction(rewards, "no-system")
        for _ in range(2):
            function([prompt], ["a"])
    assert [r.getMessage() for r in caplog.records if "don't depend" in r.getMessage()] == [
        "the chat template of no-system leaves out system turn, so the rewards don't depend on that"
    ]


def test_means_of_attributes_are_logged(server: RunningServer) -> None:
    logged: dict[str, float] = {}
    with RewardClient(server.address) as rewards:
        RewardFunction(rewards, "rated")(["q", "r"], ["a", "b"], log_metric=logged.__setitem__)
        scores = [rewards.score_one("rated", p, [r]).scores[0] for p, r in (("q", "a"), ("r", "b"))]
    for name in ("tone", "truth"):
        mean = sum(score.attributes[name] for score in scores) / 2
        assert logged[f"rated/{name}"] == pytest.approx(mean, abs=1e-4)


def test_the_example_of_the_page_is_a_reward_function(fake: FakeRewardServer) -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrations" / "trl.md").read_text()
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    fake.add_revision("helpful", "rev-1")
    names: dict[str, Any] = {}
    exec(example.replace("localhost:50051", fake.target), names)
    assert names["helpful"](["q"], ["aaa"]) == [3.0]
