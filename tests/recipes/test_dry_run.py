"""`--dry-run`: everything that can be checked without the services is."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from tests.recipes.support import KINDS, settings_of, write_prompts
from tests.support.command import GUERDON, environment
from tests.support.tiny import tiny_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from guerdon.cli.main import main
from guerdon.settings import build, to_toml
from guerdon.trainer.rl.inputs import memory_estimate
from guerdon.trainer.rl.settings import GRPOSettings, PPOSettings, RunSettings


def arguments(algorithm: str, policy: Path, prompts: Path, held_out: Path, run: Path) -> list[str]:
    return [
        "train",
        algorithm,
        "--policy",
        str(policy),
        "--sampler",
        "localhost:1",
        "--prompts",
        str(prompts),
        "--eval-prompts",
        str(held_out),
        "--output",
        str(run),
        "--reward",
        "0.5*localhost:2/helpful",
        "--verifier",
        "exact",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_it_shows_the_whole_run_and_writes_nothing(
    kind: type[RunSettings],
    policy: Path,
    prompts: Path,
    held_out: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    line = arguments(kind.algorithm, policy, prompts, held_out, run)
    assert main([*line, "--dry-run", "--steps", "7"]) == 0
    out, err = capfd.readouterr()
    settings = build(kind, tomllib.loads(out))  # standard output is a config file
    assert settings.steps == 7
    assert to_toml(settings).strip() == out.strip()
    assert "prompts: 4 of" in err
    assert "memory of one process" in err
    assert not run.exists()


@pytest.mark.slow
def test_what_a_process_prints_is_its_configuration(
    policy: Path,
    prompts: Path,
    held_out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    line = arguments("ppo", policy, prompts, held_out, tmp_path / "run")
    first = subprocess.run(
        [*GUERDON, *line, "--dry-run", "--lr", "0.001"],
        check=True,
        capture_output=True,
        env=environment(),
        timeout=120,
    )
    (tmp_path / "c.toml").write_bytes(first.stdout)
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "ppo", "--config", str(tmp_path / "c.toml"), "--dry-run"]) == 0
    assert capfdbinary.readouterr().out == first.stdout
    monkeypatch.setenv("RANK", "1")
    assert main([*line, "--dry-run"]) == 0
    assert capfdbinary.readouterr() == (b"", b"")  # one process of a launcher's speaks


def test_odd_prompts_are_named(
    policy: Path, prompts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_prompts(prompts, [{"prompt": "Twice?", "answer": "1"}] * 2)
    assert main([*arguments("ppo", policy, prompts, prompts, tmp_path / "r"), "--dry-run"]) == 0
    printed = " ".join(capfd.readouterr().err.split())
    assert "1 prompts occur more than once" in printed
    assert "2 held-out prompts are trained on" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompts", "none.jsonl"], "can't read none.jsonl: No such file"),
        (["--prompts", "bad.jsonl"], "bad.jsonl, line 2: prompt: is missing"),
        (["--max-prompt-tokens", "9"], "over the limit of 9 (--max-prompt-tokens)"),
        (["--policy", "./nowhere"], "there is no folder './nowhere'"),
        (["--reward", "localhost:2"], "'localhost:2' is not HOST:PORT/MODEL"),
        (["--heldout-reward", "x"], "heldout_reward: 'x' is not HOST:PORT/MODEL"),
        (["--sampler", "somewhere"], "sampler: 'somewhere'"),
        (["--verifier", "nonsense"], "nonsense"),
        (["--eval-prompts", "unanswered.jsonl"], "answer"),
        (["--max-tokens", "300"], "but the policy has 256 positions"),
    ],
)
def test_what_can_not_be_is_found_before_a_service_is_asked(
    more: list[str],
    message: str,
    policy: Path,
    prompts: Path,
    held_out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "bad.jsonl", [{"prompt": "x", "answer": "1"}, {"text": "y"}])
    write_prompts(tmp_path / "unanswered.jsonl", [{"prompt": "x"}])
    line = arguments("ppo", policy, prompts, held_out, tmp_path / "run")
    assert main([*line, "--dry-run", *more]) in (1, 2)
    out, err = capfd.readouterr()
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not out
    assert not (tmp_path / "run").exists()


# --- memory ---


def kept_for_backward(config: LlamaConfig, tokens: int, amp: bool) -> int:
    """Bytes that a real forward pass keeps, weights and their casts left out."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    weights = {w.untyped_storage().data_ptr() for w in model.parameters()}

    def run(length: int) -> int:
        sizes, alive = {}, []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            alive.append(storage)
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=amp),
        ):
            model.model(input_ids=torch.zeros((1, length), dtype=torch.long), use_cache=False)
        return sum(sizes.values())

    return run(2 * tokens) - run(tokens)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activations_are_those_of_a_real_pass(dtype: str) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    found = memory_estimate(settings_of(dtype=dtype, micro_batch_tokens=512), config)
    real = kept_for_backward(config, 512, dtype == "bfloat16")
    assert found.parts["activations of a micro-batch"] == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gpt2"])
def test_weights_are_counted_exactly(architecture: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", architecture, causal_lm=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = memory_estimate(settings_of(), AutoConfig.from_pretrained(folder))
    assert found.parameters == found.trainable == sum(w.numel() for w in model.parameters())
    assert found.parts["weights, float32"] == 4 * found.parameters
    assert found.parts["AdamW's two moments, float32"] == 8 * found.parameters
    assert found.total == sum(found.parts.values())


def test_what_saves_memory_shows(policy: Path) -> None:
    config = AutoConfig.from_pretrained(policy)

    def total(kind: type[RunSettings] = PPOSettings, **more: object) -> int:
        return memory_estimate(settings_of(kind, **more), config).total

    assert total(gradient_checkpointing=True) < total()
    assert total(lora_r=4) < total()
    assert total(GRPOSettings) == total() < total(value="own")
    assert total(micro_batch_tokens=4096) > total()


def test_lora_is_counted_as_peft_makes_it(policy: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(policy)
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear"))
    count = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    found = memory_estimate(settings_of(lora_r=3), AutoConfig.from_pretrained(policy))
    assert found.trainable == count
