"""The learner's packed rows against padded rows with full logits, and where a step's time goes."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tests.bench.common import (
    DATA,
    BenchSettings,
    spread,
    table,
)
from tests.bench.steps import TASKS
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer

from guerdon.data import parse_pair, read_jsonl
from guerdon.models import resolve_model
from guerdon.trainer.common.services.prompts import Prompts, load_prompts
from guerdon.trainer.common.services.types import Group, Sample
from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.learner.learner import Learner, _offsets
from guerdon.trainer.rl.settings import PPOSettings

BASE = "smollm2-135m-instruct"
PROMPTS, SAMPLES, MAX_TOKENS = 4, 8, 48
MICRO_BATCH_TOKENS = 1024
KINDS = {
    "linear layers": ("mm", "addmm", "bmm", "linear", "mkldnn"),
    "attention": ("attention", "flash"),
    "softmax of the vocabulary": ("softmax", "logsumexp"),
    "optimiser and clipping": ("foreach", "adam", "lerp", "addcdiv", "norm"),
    "casts and copies": ("copy", "to_copy"),
    "gathers": ("index", "gather", "scatter", "embedding", "cat"),
}
"""By a part of an operator's name, the first that fits; all else is element-wise."""


def run(settings: BenchSettings) -> None:
    """Print both ratios and the profile of one step."""
    folder = resolve_model(BASE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = load_prompts(str(TASKS / "questions-train.jsonl"), tokenizer, max_prompt_tokens=512)
    groups = real_groups(tokenizer, found)
    chosen = PPOSettings(
        policy=BASE,
        sampler="localhost:1",
        prompts="-",
        eval_prompts="-",
        output="-",
        verifier=("exact",),
        max_tokens=MAX_TOKENS,
        dtype="bfloat16" if settings.dtype == "bfloat16" else "float32",
        micro_batch_tokens=MICRO_BATCH_TOKENS,
    )
    learner = Learner(chosen, build(chosen), folder)
    against_padded(settings, learner, groups)
    where_time_goes(settings, learner, groups)


def real_groups(tokenizer: Any, prompts: Prompts) -> list[Group]:
    """Real prompts; random tokens in the lengths of the embedded model's real answers."""
    rng = np.random.default_rng(0)
    pairs = (parse_pair(row) for _, row in read_jsonl(DATA))
    texts = [turns[-1]["content"] for pair in pairs for turns in (pair.chosen, pair.rejected)]
    lengths = [min(len(tokenizer(text).input_ids) + 1, MAX_TOKENS) for text in texts[:500]]
    groups = []
    for task in prompts.tasks()[:PROMPTS]:
        drawn = [rng.integers(100, 40_000, n, np.int32) for n in rng.choice(lengths, SAMPLES)]
        samples = [
            Sample(
                task_uid=task.uid,
                index=index,
                prompt_ids_P=task.prompt_ids_P,
                response_ids_T=ids,
                behaviour_logprobs_T=np.full(len(ids), -4.0, np.float32),
                versions_T=np.ones(len(ids), np.int32),
                finished=len(ids) < MAX_TOKENS,
                text="",
                reward=float(rng.normal()),
            )
            for index, ids in enumerate(drawn)
        ]
        groups.append(Group(task, samples))
    return groups


# Packed against padded


def against_padded(settings: BenchSettings, learner: Learner, groups: Sequence[Group]) -> None:
    """Forward and backward of Σ log π over the same batch, both ways by turns."""
    samples = [sample for group in groups for sample in group.samples]
    rows = learner._pack(samples, _offsets(samples))
    batches = padded(samples, learner.settings.micro_batch_tokens)
    tokens = sum(sample.tokens for sample in samples)

    def packed_way() -> None:
        for row in rows:
            learner.accelerator.backward(learner.model(row, False).logprobs_M.sum() / tokens)

    def padded_way() -> None:
        for batch in batches:
            learner.accelerator.backward(plain(learner, batch).sum() / tokens)

    apart = difference(learner, packed_way, padded_way)
    times: list[float] = []
    memory: list[float] = []
    for _ in range(settings.rounds):
        first, second = measured(packed_way), measured(padded_way)
        times.append(second[0] / first[0])
        memory.append(second[1] / first[1])
        last = first[1], second[1]
    learner.optimizer.zero_grad()
    computed, filled = sum(len(row.ids_L) for row in rows), sum(b.numel() for b, *_ in batches)
    table(
        f"learner, {settings.dtype}: {len(groups)} prompts × {SAMPLES} completions, {tokens} "
        f"response tokens, forward and backward in micro-batches of at most "
        f"{learner.settings.micro_batch_tokens} tokens, {torch.get_num_threads()} thread(s)",
        [
            ("packed with shared prompts: tokens computed", f"{computed} in {len(rows)} rows"),
            (
                "padded rows, sorted by length: tokens computed",
                f"{filled} in {len(batches)} micro-batches, {1 - real(samples) / filled:.0%} "
                "of them padding",
            ),
            ("padded with full logits / packed: CPU time", spread(times)),
            ("the same: peak memory over weights and gradients", spread(memory)),
            ("… in the last round", f"{last[1]:.0f} / {last[0]:.0f} MiB"),
            ("gradients differ by, of their norm", f"{apart:.1e}"),
        ],
        settings.console,
    )


Batch = tuple[Tensor, Tensor, Tensor]
"""ids_BL, padding at the right; attention mask; response_BL, true at response tokens."""


def padded(samples: Sequence[Sample], limit: int) -> list[Batch]:
    """As many rows in a micro-batch as fit, of like lengths: the longest first."""
    rows = sorted(samples, key=lambda s: -len(s.prompt_ids_P) - s.tokens)
    batches: list[Batch] = []
    while rows:
        longest = len(rows[0].prompt_ids_P) + rows[0].tokens
        part, rows = rows[: limit // longest], rows[limit // longest :]
        ids_BL = torch.zeros(len(part), longest, dtype=torch.int64)
        mask_BL, response_BL = torch.zeros_like(ids_BL), torch.zeros_like(ids_BL).bool()
        for i, sample in enumerate(part):
            start, end = len(sample.prompt_ids_P), len(sample.prompt_ids_P) + sample.tokens
            joined = np.concatenate([sample.prompt_ids_P, sample.response_ids_T])
            ids_BL[i, :end] = torch.from_numpy(joined.astype(np.int64))
            mask_BL[i, :end] = 1
            response_BL[i, start:end] = True
        batches.append((ids_BL, mask_BL, response_BL))
    return batches


def plain(learner: Learner, batch: Batch) -> Tensor:
    """log π of the response tokens by `transformers` alone, over logits of the whole batch."""
    ids_BL, mask_BL, response_BL = batch
    lm: Any = learner.module.lm
    ours = lm.config._attn_implementation
    lm.set_attn_implementation("sdpa")
    with learner.module.autocast(ids_BL.device):
        logits_BLV = lm(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
    lm.set_attn_implementation(ours)
    logprobs_BLV = F.log_softmax(logits_BLV[:, :-1].float(), dim=-1)
    picked_BL = logprobs_BLV.gather(-1, ids_BL[:, 1:, None])[..., 0]
    return picked_BL[response_BL[:, 1:]]


def real(samples: Sequence[Sample]) -> int:
    """Tokens that are not padding, each prompt as often as it has completions."""
    return sum(len(sample.prompt_ids_P) + sample.tokens for sample in samples)


def difference(learner: Learner, first: Callable[[], None], second: Callable[[], None]) -> float:
    """How far two ways' gradients are apart, as a share of the first's norm; both warm up."""
    first()
    held = [p.grad.clone() for p in learner.module.lm.parameters() if p.grad is not None]
    learner.optimizer.zero_grad()
    second()
    found = [p.grad for p in learner.module.lm.parameters() if p.grad is not None]
    apart = sum(float((a - b).double().square().sum()) for a, b in zip(held, found, strict=True))
    return float((apart / sum(float(a.double().square().sum()) for a in held)) ** 0.5)


def measured(call: Callable[[], None]) -> tuple[float, float]:
    """Seconds of CPU time, and MiB of this process's memory that it needed for a while (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    begun = time.process_time()
    call()
    return time.process_time() - begun, resident("VmHWM") - before


def resident(what: str) -> float:
    """MiB, as the system counts them."""
    line = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line is not None
    return int(line[1]) / 1024


# Where the time goes


def where_time_goes(settings: BenchSettings, learner: Learner, groups: Sequence[Group]) -> None:
    """One whole step under torch's profiler: self CPU time by kind and by part."""
    learner.step(groups)  # makes the optimiser's state
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        learner.step(groups)
    events = profiler.key_averages()
    kinds = dict.fromkeys([*KINDS, "element-wise and the rest"], 0.0)
    for event in events:
        kinds[kind_of(event.key)] += event.self_cpu_time_total
    whole = sum(kinds.values())
    rows = [(kind, f"{value / whole:.0%}") for kind, value in kinds.items()]
    largest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:8]
    rows.append(("the largest operators", ""))
    for event in largest:
        share = f"{event.self_cpu_time_total / whole:.0%}"
        rows.append((f"… {event.key}, {event.count} calls", share))
    table(
        f"one whole step of PPO's learner under the profiler, {settings.dtype}: "
        f"{whole / 1e6:.1f} s of CPU time in operators",
        rows,
        settings.console,
    )


def kind_of(name: str) -> str:
    """The kind of an operator."""
    bare = name.lower().removeprefix("aten::")
    for kind, marks in KINDS.items():
        if any(mark in bare for mark in marks):
            return kind
    return "element-wise and the rest"
