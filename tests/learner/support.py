"""Groups of wild completions, settings, and a learner over a tiny checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task
from guerdon.trainer.rl.learner import learner as learner_module
from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.learner.learner import Learner
from guerdon.trainer.rl.settings import PPOSettings, RunSettings

S = TypeVar("S", bound=RunSettings)
VOCABULARY = 300
"""Token ids below this are in every tiny checkpoint's vocabulary."""

_RUN: dict[str, Any] = {
    "policy": "policy",
    "sampler": "localhost:1",
    "prompts": "prompts.jsonl",
    "eval_prompts": "held-out.jsonl",
    "output": "run",
    "verifier": ("exact",),
    "dtype": "float32",
    "max_prompt_tokens": 64,
    "max_tokens": 64,
}


def settings(kind: type[S] = PPOSettings, **values: Any) -> S:  # type: ignore[assignment]
    """Settings of a run in float32 whose places are never looked at."""
    return kind(**(_RUN | values))


def make_learner(folder: Path, run: RunSettings, *, exact: bool = False) -> Learner:
    """The real one; exact: with weights in float64, so that rounding hides no mistake."""
    if not exact:
        return Learner(run, build(run), folder)
    new, frozen = learner_module.new_policy, learner_module.frozen
    with (
        patch.object(learner_module, "new_policy", lambda *args: new(*args).double()),
        patch.object(
            learner_module, "frozen", lambda *args, like: frozen(*args, like=like).double()
        ),
    ):
        return Learner(run, build(run), folder)


def make_group(
    uid: int, prompt: Sequence[int], responses: Sequence[Sequence[int]], rng: np.random.Generator
) -> Group:
    """A scored group of these tokens; everything else is drawn."""
    ids = np.array(prompt, np.int32)
    samples = [
        Sample(
            task_uid=uid,
            index=index,
            prompt_ids_P=ids,
            response_ids_T=np.array(response, np.int32),
            behaviour_logprobs_T=-rng.uniform(0.5, 4.0, len(response)).astype(np.float32),
            versions_T=np.ones(len(response), np.int32),
            finished=bool(rng.random() < 0.7),
            text=f"answer {index}",
            reward=float(rng.normal()),
        )
        for index, response in enumerate(responses)
    ]
    return Group(Task(uid, PromptRow(uid, ()), ids), samples)


def wild_groups(count: int, size: int, seed: int = 0, longest: int = 12) -> list[Group]:
    """Prompts and completions of all lengths, one-token completions among them."""
    rng = np.random.default_rng(seed)

    def draw(length: int) -> list[int]:
        return rng.integers(0, VOCABULARY, length).tolist()

    groups = []
    for uid in range(count):
        prompt = draw(int(rng.integers(1, longest + 1)))
        lengths = [1, *rng.integers(1, longest + 1, size - 1).tolist()]
        groups.append(make_group(uid, prompt, [draw(length) for length in lengths], rng))
    return groups


def all_samples(groups: Sequence[Group]) -> list[Sample]:
    """In order."""
    return [sample for group in groups for sample in group.samples]


def plain_logits(model: Any, sample: Sample) -> Tensor:
    """What `transformers` alone says before each response token, [T, V] in float32."""
    ids = np.concatenate([sample.prompt_ids_P, sample.response_ids_T]).astype(np.int64)
    logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
    return logits[len(sample.prompt_ids_P) - 1 : -1].float()


def plain_logprobs(model: Any, sample: Sample, temperature: float = 1.0) -> Tensor:
    """log π of each response token, [T]."""
    logprobs = F.log_softmax(plain_logits(model, sample) / temperature, dim=-1)
    picked = torch.from_numpy(sample.response_ids_T.astype(np.int64))
    return logprobs.gather(-1, picked[:, None])[:, 0]


def gradients(learner: Learner, groups: Sequence[Group]) -> dict[str, Tensor]:
    """What a step's only update would give the optimiser, before clipping; whole, by name."""
    found: dict[str, Tensor] = {}

    def catch() -> list[float]:
        for name, parameter in learner.module.named_parameters():
            gradient: Any = parameter.grad
            if gradient is not None:
                whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
                found[name.replace("_checkpoint_wrapped_module.", "")] = whole.detach().clone()
        learner.optimizer.zero_grad()
        return [0.0]

    learner._apply = catch  # type: ignore[method-assign]
    learner.step(groups)
    return found


def norm(parts: dict[str, Tensor]) -> float:
    """Of all of them together."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts.values()))


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The norm of the difference of two sets of gradients, over the norm of the first."""
    assert first.keys() == second.keys()
    return norm({name: first[name].double() - second[name].double() for name in first}) / norm(
        first
    )


def most_apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of any number of two sets."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def weights(learner: Learner) -> dict[str, Tensor]:
    """A copy of all of them."""
    return {name: tensor.clone() for name, tensor in learner.module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
