"""The learner: takes scored groups, and makes the policy's next weights.

One process, DDP or FSDP2, by accelerate. Every division in a loss is by counts over the whole
optimiser step and all ranks, so the gradient does not depend on how the tokens are cut into
micro-batches or dealt to ranks.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.common.models.language_model import without_lora
from guerdon.trainer.common.models.weights_export import CheckpointExport, as_checkpoint, as_weights
from guerdon.trainer.common.processes import partition, use_gpu
from guerdon.trainer.common.services.types import Group, Ints, Sample
from guerdon.trainer.common.services.weights import Weights
from guerdon.trainer.rl.learner.algorithms.base import Algorithm, Prepared, StepBatch, summarise
from guerdon.trainer.rl.learner.distributed import Ranks, make_accelerator
from guerdon.trainer.rl.learner.packing import PackedRow, idle_row, pack
from guerdon.trainer.rl.learner.policy import frozen, new_policy, switch_attention
from guerdon.trainer.rl.learner.schedule import learning_rates
from guerdon.trainer.rl.settings import OnlineSettings

_ADVICE = "try a smaller --lr"


class Learner:
    """The policy, its optimiser, and the frozen reference, as this rank holds them.

    Every method but the properties is called on all ranks alike.

    Args:
        settings: of the run.
        algorithm: what makes losses of log-probabilities.
        policy: a folder with safetensors.

    Raises:
        TrainingError: the policy can't be loaded.
    """

    def __init__(self, settings: OnlineSettings, algorithm: Algorithm, policy: Path) -> None:
        torch.manual_seed(settings.seed)
        if use_gpu() and settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.settings = settings
        self.algorithm = algorithm
        self.accelerator = make_accelerator(settings.patience)
        self.ranks = Ranks(self.accelerator)
        self.step_count = 0
        """Updates of the policy so far."""
        value = algorithm.value_model
        self.module = new_policy(policy, settings, value).to(self.accelerator.device)
        switch_attention(self.module, settings)
        self.export = CheckpointExport.of(self.module.lm)
        self._reference = None
        if not settings.lora_r:
            self._reference = frozen(policy, settings, like=self.module).to(self.accelerator.device)
        groups = [{"params": list(_trainable(self.module.lm))}]
        if value:
            rest = [
                p
                for name, p in self.module.named_parameters()
                if p.requires_grad and not name.startswith("lm.")
            ]
            groups.append({"params": rest})
        optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=settings.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(self.module, optimizer)
        self.model.train(settings.gradient_checkpointing)

    @property
    def version(self) -> int:
        """The version of the weights as they are now, when they are published."""
        return self.step_count + 1

    def step(self, groups: Sequence[Group]) -> dict[str, float]:
        """Learn from a step's groups; metrics by the keys of `metrics.KEYS`.

        Args:
            groups: all of them, scored, on every rank.

        Raises:
            DivergedError: a loss or a gradient is not finite; the update is not made.
        """
        samples, places = self._share(groups)
        offsets = _offsets(samples)
        rows = self._pack(samples, offsets)
        batch = self._batch(samples, places, rows)
        if self.algorithm.value_model and not self.step_count:
            batch = self._begin_values(batch)
        prepared = self.algorithm.prepare(batch, self.ranks)
        sums: dict[str, float] = {}
        maxima: dict[str, float] = {}
        norms: list[list[float]] = []
        for chosen in self._minibatches(samples, places):
            tokens_M = _tokens(samples, offsets, chosen)
            # Without this, momentum and decay would move it all the same.
            if self.ranks.most(int(prepared.learnable[tokens_M].any())):
                norms.append(self._update(samples, offsets, chosen, batch, prepared, sums, maxima))
        rates = self._learning_rates()
        self.step_count += 1
        metrics = prepared.metrics | summarise(sums, maxima, len(norms))
        planned = self.algorithm.epochs * self.algorithm.minibatches
        metrics["skipped_updates"] = planned - len(norms)
        metrics |= dict(zip(("lr", "value_lr"), rates, strict=False))
        means = np.mean(norms, axis=0) if norms else np.zeros(len(rates))
        metrics |= dict(zip(("grad_norm", "value_grad_norm"), means.tolist(), strict=False))
        if self.accelerator.device.type == "cuda":
            metrics["memory"] = float(torch.cuda.max_memory_allocated())
        return metrics

    @torch.no_grad()
    def divergence(self, groups: Sequence[Group]) -> list[list[float]]:
        """KL(π_θ ‖ π_ref) of each completion in nats, by Σ_t k1, at the sampling temperature."""
        samples = [sample for group in groups for sample in group.samples]
        offsets = _offsets(samples)
        rows = self._pack(samples, offsets)
        total = sum(sample.tokens for sample in samples)
        own = self._logprobs(rows, total)
        reference = self._reference_logprobs(rows, total)
        cut = np.split((own - reference).double().numpy(), offsets[1:])
        sums = iter([float(part.sum()) for part in cut])
        return [[next(sums) for _ in group.samples] for group in groups]

    def weights(self, dtype: str, sequences: Sequence[Ints]) -> Weights:
        """The weights to publish, in a dtype, with the log-probabilities that prove them.

        Args:
            dtype: `float32`, `bfloat16` or `float16`: the sampler's.
            sequences: token ids of the canaries.
        """
        state = self.ranks.full_state(self.model, self.module)
        tensors = self.export.published(state, dtype, computed=self.settings.dtype)
        mine = sequences if self.ranks.main else ()
        canaries = self.export.canaries(self.module.lm, tensors, mine)
        named = as_checkpoint(self.module.lm, tensors)
        return as_weights(self.version, named, canaries)

    def save_final(self, folder: Path, dtype: str) -> None:
        """Write a folder that transformers and vLLM load; the tokenizer is the caller's."""
        state = self.ranks.full_state(self.model, self.module)
        if self.ranks.main:
            tensors = self.export.published(state, dtype, computed=self.settings.dtype)
            self.export.save(self.module.lm, tensors, folder, dtype)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs of the learner."""
        model, optimizer = self.ranks.state(self.model, self.optimizer)
        return {
            "step": self.step_count,
            "model": model,
            "optimizer": optimizer,
            "algorithm": self.algorithm.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.ranks.load_state(self.model, self.optimizer, state["model"], state["optimizer"])
        self.step_count = int(state["step"])
        self.algorithm.load_state_dict(state["algorithm"])
        torch.set_rng_state(state["rng"])

    # A step's parts

    def _share(self, groups: Sequence[Group]) -> tuple[list[Sample], list[int]]:
        """This rank's samples, and the place of each one's group among all."""
        sizes = [
            len(g.task.prompt_ids_P) + sum(sample.tokens for sample in g.samples) for g in groups
        ]
        mine = partition(sizes, self.ranks.world_size)[self.ranks.rank]
        pairs = [(sample, place) for place in mine for sample in groups[place].samples]
        return [sample for sample, _ in pairs], [place for _, place in pairs]

    def _pack(self, samples: Sequence[Sample], offsets: Sequence[int]) -> list[PackedRow]:
        limit = self.settings.micro_batch_tokens
        rows = pack(samples, offsets, limit, share=self.module.packed) if samples else []
        idle = self.ranks.most(len(rows)) - len(rows)
        return rows + [idle_row() for _ in range(idle)]

    def _batch(
        self, samples: Sequence[Sample], places: Sequence[int], rows: Sequence[PackedRow]
    ) -> StepBatch:
        total = sum(sample.tokens for sample in samples)
        behaviour_N = torch.from_numpy(
            np.concatenate([np.zeros(0, np.float32), *(s.behaviour_logprobs_T for s in samples)])
        )
        with_values = self.algorithm.value_model is not None
        proximal_N, values_N = behaviour_N, None
        with torch.no_grad():
            if self.algorithm.needs_proximal or with_values:
                proximal_N, values_N = self._computed(rows, total, with_values=with_values)
            reference_N = (
                self._reference_logprobs(rows, total) if self.algorithm.needs_reference else None
            )
        return StepBatch(
            lengths_S=torch.tensor([sample.tokens for sample in samples], dtype=torch.int64),
            groups_S=torch.tensor(places, dtype=torch.int64),
            rewards_S=torch.tensor([sample.reward for sample in samples], dtype=torch.float64),
            finished_S=torch.tensor([sample.finished for sample in samples], dtype=torch.bool),
            behaviour_N=behaviour_N,
            proximal_N=proximal_N,
            reference_N=reference_N,
            values_N=values_N,
            samples=samples,
            step=self.step_count,
        )

    @torch.no_grad()
    def _begin_values(self, batch: StepBatch) -> StepBatch:
        """Start all values at the mean return of the first step, of all ranks.

        From 0 the value model would spend its first steps on the mean alone.
        """
        assert batch.values_N is not None
        trial = copy.deepcopy(self.algorithm).prepare(batch, self.ranks)
        self.module.value_offset.fill_(trial.metrics["returns"])
        return replace(batch, values_N=batch.values_N + trial.metrics["returns"])

    def _minibatches(self, samples: Sequence[Sample], places: Sequence[int]) -> Iterator[list[int]]:
        """The samples of each optimiser step: whole groups, dealt out anew in every epoch."""
        count = self.algorithm.minibatches
        groups = self.ranks.most(max(places, default=-1) + 1)
        for epoch in range(self.algorithm.epochs):
            rng = np.random.default_rng([self.settings.seed, self.step_count, epoch])
            order = rng.permutation(groups) if count > 1 else np.arange(groups)
            for part in np.array_split(order, count):
                wanted = set(part.tolist())
                yield [i for i in range(len(samples)) if places[i] in wanted]

    def _update(
        self,
        samples: Sequence[Sample],
        offsets: Sequence[int],
        chosen: Sequence[int],
        batch: StepBatch,
        prepared: Prepared,
        sums: dict[str, float],
        maxima: dict[str, float],
    ) -> list[float]:
        """One optimiser step; the norms of its gradient, by parameter group."""
        chosen = [
            i for i in chosen if prepared.mask[offsets[i] : offsets[i] + samples[i].tokens].any()
        ]
        part = [samples[i] for i in chosen]
        rows = self._pack(part, [offsets[i] for i in chosen])
        places_N = _tokens(samples, offsets, chosen)
        lengths_S = batch.lengths_S[torch.tensor(chosen, dtype=torch.int64)]
        own_N = self.algorithm.weights(lengths_S, prepared.mask[places_N], self.ranks)
        weights_N = torch.zeros(len(prepared.mask))
        weights_N[places_N] = own_N
        found: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        for i, row in enumerate(rows):
            with self._quiet(last=i == len(rows) - 1):
                found.append(self._backward(row, prepared, weights_N))
        loss = self._add(found, sums, maxima)
        if not math.isfinite(loss):
            self.optimizer.zero_grad()
            raise DivergedError(f"the loss is {loss} at step {self.step_count + 1}: {_ADVICE}")
        return self._apply()

    def _backward(
        self, row: PackedRow, prepared: Prepared, weights_N: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        device = self.accelerator.device
        computed = self.model(row.to(device), self.algorithm.value_model is not None)
        everything = sum(t.sum() for t in computed if t is not None) * 0.0
        if row.idle:
            self.accelerator.backward(everything)
            return {}, {}
        tokens = prepared.take(row.tokens_M, weights_N[row.tokens_M], device)
        entropy = computed.entropy_M
        if not self.algorithm.needs_entropy:
            entropy = entropy.detach()
        found = self.algorithm.loss(tokens, computed.logprobs_M, entropy, computed.values_M)
        loss = found.loss
        if self.algorithm.policy_waits(self.step_count):
            loss = loss + everything  # DDP wants a gradient of every parameter
        self.accelerator.backward(loss * self.ranks.world_size)
        return found.sums, found.maxima

    def _add(
        self,
        found: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]],
        sums: dict[str, float],
        maxima: dict[str, float],
    ) -> float:
        """Add up over micro-batches and ranks; the loss of this update."""
        added: dict[str, float] = {}
        highest: dict[str, float] = {}
        for more, most in found:
            for name, value in more.items():
                added[name] = added.get(name, 0.0) + float(value)
            for name, value in most.items():
                highest[name] = max(highest.get(name, -math.inf), float(value))
        added, highest = self.ranks.merge(added, highest)
        for name, number in added.items():
            sums[name] = sums.get(name, 0.0) + number
        for name, number in highest.items():
            maxima[name] = max(maxima.get(name, -math.inf), number)
        return added.get("loss", 0.0)

    def _apply(self) -> list[float]:
        """Clip and step, the policy and the value model each by its own norm; the norms.

        Raises:
            DivergedError: the gradient is not finite.
        """
        if self.algorithm.policy_waits(self.step_count):
            for parameter in self.module.lm.parameters():
                parameter.grad = None
        norms = []
        value = self.algorithm.value_model
        most = [self.settings.max_grad_norm, *([value.max_grad_norm] if value else [])]
        rates = self._learning_rates()
        for group, lr, limit in zip(self.optimizer.param_groups, rates, most, strict=True):
            group["lr"] = lr
            found: Any = self.accelerator.clip_grad_norm_(group["params"], limit)
            norms.append(float(found.full_tensor() if hasattr(found, "full_tensor") else found))
        if not all(map(math.isfinite, norms)):
            self.optimizer.zero_grad()
            raise DivergedError(
                f"the gradient's norm is {max(norms, key=abs)} at step {self.step_count + 1}: "
                f"{_ADVICE}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norms

    def _learning_rates(self) -> list[float]:
        return learning_rates(self.settings, self.algorithm.value_model, self.step_count)

    def _quiet(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Ranks add up their gradients after the last micro-batch only."""
        if last or self.ranks.world_size == 1:
            return contextlib.nullcontext()
        found: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(self.model)
        return found

    # Forward passes without gradient

    def _computed(
        self, rows: Sequence[PackedRow], total: int, *, with_values: bool
    ) -> tuple[Tensor, Tensor | None]:
        logprobs_N = torch.zeros(total)
        values_N = torch.zeros(total) if with_values else None
        for row in rows:
            computed = self.model(row.to(self.accelerator.device), with_values)
            if row.idle:
                continue
            logprobs_N[row.tokens_M] = computed.logprobs_M.float().cpu()
            if values_N is not None:
                values_N[row.tokens_M] = computed.values_M.float().cpu()
        return logprobs_N, values_N

    def _logprobs(self, rows: Sequence[PackedRow], total: int) -> Tensor:
        return self._computed(rows, total, with_values=False)[0]

    def _reference_logprobs(self, rows: Sequence[PackedRow], total: int) -> Tensor:
        """Log-probabilities by the first policy, [N]."""
        if self._reference is None:
            with without_lora(self.module.lm):
                return self._logprobs(rows, total)
        logprobs_N = torch.zeros(total)
        for row in rows:
            if not row.idle:
                computed = self._reference(row.to(self.accelerator.device), False)
                logprobs_N[row.tokens_M] = computed.logprobs_M.float().cpu()
        return logprobs_N


def _offsets(samples: Sequence[Sample]) -> list[int]:
    """The place among all tokens at which each sample's begin."""
    ends = np.cumsum([0, *(sample.tokens for sample in samples)])
    return [int(at) for at in ends[:-1]]


def _tokens(samples: Sequence[Sample], offsets: Sequence[int], chosen: Sequence[int]) -> Tensor:
    """The places of the chosen samples' tokens among all. int64."""
    parts = [torch.arange(offsets[i], offsets[i] + samples[i].tokens) for i in chosen]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *parts])


def _trainable(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)
