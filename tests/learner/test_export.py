"""What is published and saved is the policy that was trained, under a checkpoint's own names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.learner.support import (
    all_samples,
    make_learner,
    plain_logprobs,
    settings,
    weights,
    wild_groups,
)
from torch import Tensor
from transformers import AutoModelForCausalLM

from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.services.types import Sample
from guerdon.trainer.rl.learner.learner import Learner, _offsets
from guerdon.trainer.rl.settings import GRPOSettings

Policy = Callable[[str], Path]


def logprobs_of(folder: Path, samples: list[Sample]) -> Tensor:
    """By `transformers` alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.cat([plain_logprobs(model, sample) for sample in samples])


def trained(folder: Path, lora_r: int) -> Learner:
    """After two steps: LoRA's B begins at 0, and leaves A where it is in the first."""
    learner = make_learner(folder, settings(GRPOSettings, lr=1e-2, lora_r=lora_r))
    for seed in range(2):
        learner.step(wild_groups(4, 3, seed=seed))
    return learner


@pytest.mark.parametrize(
    ("architecture", "lora_r"),
    [("llama", 0), ("llama", 4), ("gpt2", 0), ("gpt2", 4), ("qwen3_moe", 0)],
)
def test_a_trained_policy_is_saved_and_published(
    policy: Policy, tmp_path: Path, architecture: str, lora_r: int
) -> None:
    """Llama's embeddings are tied, GPT-2's weights transposed, and the experts joined."""
    start, samples = policy(architecture), all_samples(wild_groups(3, 3, seed=9))
    learner = trained(start, lora_r)
    learner.save_final(tmp_path, "float32")
    rows = learner._pack(samples, _offsets(samples))
    with torch.no_grad():
        own = learner._logprobs(rows, sum(sample.tokens for sample in samples))
    right = logprobs_of(tmp_path, samples)
    torch.testing.assert_close(own, right, rtol=0, atol=5e-5)
    assert float((right - logprobs_of(start, samples)).abs().max()) > 1e-2  # it has learnt

    before, after = (
        load_file(start / "model.safetensors"),
        load_file(tmp_path / "model.safetensors"),
    )
    assert {name: t.shape for name, t in after.items()} == {n: t.shape for n, t in before.items()}
    prompt = samples[0].prompt_ids_P.tolist() + samples[0].response_ids_T.tolist()
    published = learner.weights("float32", [torch.tensor(prompt).numpy()])
    sent = dict(zip([spec.name for spec in published.specs], published.tensors(), strict=True))
    assert sent.keys() == after.keys()
    assert all(torch.equal(sent[name], after[name]) for name in after)
    found = torch.tensor(published.canaries[0].logprobs)[-samples[0].tokens :]
    torch.testing.assert_close(found, right[: samples[0].tokens], rtol=0, atol=5e-5)


def test_bfloat16_is_published_as_it_is_computed(policy: Policy) -> None:
    """Weights rounded, adapters beside them, norms in float32; a small update is not lost."""
    learner = make_learner(policy("llama"), settings(GRPOSettings, dtype="bfloat16", lora_r=4))
    state = learner.module.state_dict()
    for name, tensor in state.items():
        if ".lora_B." in name:
            tensor.fill_(1e-4)  # below a bit of most weights in bfloat16
        elif "norm" in name:
            tensor.fill_(1 + 2**-12)
    learner.module.load_state_dict(state)

    def sent(dtype: str) -> dict[str, Tensor]:
        found = learner.weights(dtype, [])
        return dict(zip([spec.name for spec in found.specs], found.tensors(), strict=True))

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.bfloat16().float()

    exact, module = sent("float32"), "model.layers.0.mlp.up_proj"
    stem = f"lm.base_model.model.{module}"
    up, down = (rounded(state[f"{stem}.lora_{part}.default.weight"]) for part in "BA")
    added = exact[f"{module}.weight"] - rounded(state[f"{stem}.base_layer.weight"])
    torch.testing.assert_close(added, 2.0 * up @ down, rtol=0, atol=1e-7)
    assert float(added.abs().max()) > 0
    assert float(exact["model.norm.weight"][0]) == 1 + 2**-12
    embedding = exact["model.embed_tokens.weight"]  # tied: the output layer rounds it
    assert torch.equal(embedding, rounded(embedding))
    assert {tensor.dtype for tensor in sent("bfloat16").values()} == {torch.bfloat16}


def test_only_the_adapters_learn(policy: Policy) -> None:
    run = settings(GRPOSettings, lr=1e-2, lora_r=4, weight_decay=0.1)
    learner = make_learner(policy("llama"), run)
    before = weights(learner)
    for seed in range(2):
        learner.step(wild_groups(4, 3, seed=seed))
    after = weights(learner)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".lora_" in name}
    kept = learner.optimizer.optimizer.state
    assert len(kept) == len(moved)  # no moments of what does not learn


def test_the_reference_of_adapters_stays_the_first_policy(policy: Policy) -> None:
    samples = all_samples(wild_groups(3, 3, seed=9))
    learner = trained(policy("llama"), 4)
    rows = learner._pack(samples, _offsets(samples))
    with torch.no_grad():
        found = learner._reference_logprobs(rows, sum(sample.tokens for sample in samples))
    right = logprobs_of(policy("llama"), samples)
    torch.testing.assert_close(found, right, rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # peft
def test_adapters_that_cannot_be_merged_are_refused(policy: Policy) -> None:
    """The experts of a layer are one tensor, which no checkpoint has room for an adapter of."""
    with pytest.raises(TrainingError, match="can't be merged into a checkpoint"):
        make_learner(policy("qwen3_moe"), settings(GRPOSettings, lora_r=4))
