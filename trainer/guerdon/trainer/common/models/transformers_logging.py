"""Less of what `transformers` and `datasets` print while a run works."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging


@contextmanager
def errors_only() -> Iterator[None]:
    """A part in which transformers says nothing of what a checkpoint lacks, nor other warnings."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def quiet() -> Iterator[None]:
    """A part without progress bars of transformers and datasets: our programs have their own."""
    datasets: Any = sys.modules.get("datasets")  # which not every run loads
    bars: list[Any] = [logging] if logging.is_progress_bar_enabled() else []
    if datasets and not datasets.are_progress_bars_disabled():
        bars.append(datasets.utils.logging)
    for each in bars:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in bars:
            each.enable_progress_bar()
