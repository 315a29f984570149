"""`guerdon serve sampler` with the engine of `formula_engine`: a process that starts at once."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.support.formula_engine import FormulaEngine, WordTokenizer

from guerdon.sampler import loading
from guerdon.sampler.cli import app
from guerdon.sampler.config import SamplerConfig


def load(config: SamplerConfig) -> tuple[FormulaEngine, WordTokenizer]:
    engine = FormulaEngine()
    engine.behaviour.seconds_per_token = float(os.environ["FORMULA_SECONDS_PER_TOKEN"])
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, engine.die, "its process was killed")
    return engine, WordTokenizer()


if __name__ == "__main__":
    loading.load_policy = load
    app(prog_name="guerdon serve sampler")
