"""What the benchmarks share: a model, real texts, and tables of ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from guerdon.data import message_text, parse_pair, read_jsonl
from guerdon.models import resolve_model
from guerdon.reward.engine.malloc import keep_freed_memory
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import Conversation, EncodedItem, RewardModel, ScoreItem, Truncation

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "trainer" / "guerdon" / "trainer" / "demo_data" / "train.jsonl"


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What every benchmark is told."""

    folder: Path
    rounds: int
    texts: int
    dtype: str
    console: Console


def reward_checkpoint(folder: Path) -> Path:
    """SmolLM2-135M-Instruct with a fresh one-number head, saved as a checkpoint."""
    base = resolve_model("smollm2-135m-instruct")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def load(settings: BenchSettings, mode: str = "auto") -> RewardModel:
    """The model in this process, without a prefix cache: texts are scored again and again.

    Memory is kept as in an engine's own process.
    """
    keep_freed_memory()
    engine = EngineSettings(dtype=settings.dtype, mode=mode, prefix_cache_mib=0)
    return load_model(settings.folder, name="bench", settings=engine)


def real_items(count: int, pairs: Path = DATA) -> list[ScoreItem]:
    """Prompts of preference pairs (the demo's, of mixed lengths), each with one answer."""
    items: list[ScoreItem] = []
    for _, row in read_jsonl(pairs):
        pair = parse_pair(row)
        prompt = Conversation(tuple(pair.prompt))
        items += [ScoreItem(prompt, (message_text(t[-1]),)) for t in (pair.chosen, pair.rejected)]
    assert items
    return [items[i % len(items)] for i in range(count)]


def encode(model: RewardModel, items: Sequence[ScoreItem]) -> list[EncodedItem]:
    """The items as tokens."""
    return [model.encode(item, Truncation.REJECT) for item in items]


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and in brackets the smallest and the largest."""
    return f"{median(values):.{digits}f}  ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(title: str, rows: Sequence[tuple[str, str]], console: Console) -> None:
    """Print a table of two columns."""
    shown = Table(title=title, title_justify="left", show_header=False)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
