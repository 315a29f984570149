"""`guerdon serve sampler` with the engine of `formula_engine`: a process that starts at once."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.support.formula_engine import FormulaEngine, WordTokenizer

from guerdon.sampler import loading
from guerdon.sampler.cli import app
from guerdon.sampler.config import SamplerConfig


def release(engine: FormulaEngine) -> None:
    """Let those go on that are held now; later ones are held again."""
    engine.behaviour.release.set()
    engine.behaviour.release.clear()


def load(config: SamplerConfig) -> tuple[FormulaEngine, WordTokenizer]:
    engine = FormulaEngine()
    engine.behaviour.seconds_per_token = float(os.environ["FORMULA_SECONDS_PER_TOKEN"])
    engine.behaviour.held_seed = int(os.environ.get("FORMULA_HELD_SEED", "-1"))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, release, engine)
    loop.add_signal_handler(signal.SIGUSR1, engine.die, "its process was killed")
    return engine, WordTokenizer()


if __name__ == "__main__":
    loading.load_policy = load
    app(prog_name="guerdon serve sampler")
