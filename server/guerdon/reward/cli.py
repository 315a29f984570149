"""Serve reward models over gRPC, with HTTP beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from guerdon.reward.config import RewardConfig, load_config
from guerdon.serving.errors import EngineDied
from guerdon.serving.logs import set_up_logging
from guerdon.serving.process import command
from guerdon.settings import SettingsError

app = typer.Typer(add_completion=False)

logger = logging.getLogger(__name__)

_COMMAND = "guerdon serve reward"


_PANELS = {
    "": (*command.LISTENING, "admin_port", "admin_host", *command.ENDING),
    "Security": ("load_from", *command.SECURITY),
    "Engine": (
        "engine.dtype", "engine.device", "engine.devices", "engine.mode", "engine.threads",
        "engine.prefix_cache_mib", "engine.deterministic",
    ),
    "Queue": ("batching.max_batch_tokens", "queue.max_queued_tokens", "encode_threads"),
}  # fmt: skip
_OTHER = {
    "load_from": {"metavar": "DIR|NAME"},
    "engine.dtype": {"help": "auto, float32, bfloat16 or float16."},
    "engine.device": {"help": "auto, cpu, cuda, cuda:1, …"},
    "engine.mode": {"help": "auto, packed or padded."},
    "engine.threads": {"help": "CPU threads of torch, for each engine."},
    "engine.prefix_cache_mib": {
        "help": "MiB for the keys and values of beginnings that come again (system prompts, "
        "prompts, growing answers), for each model. 0 computes every batch from nothing."
    },
    "engine.deterministic": {
        "help": "Compute each response alone, so that scores are bit-reproducible. Slower."
    },
    "batching.max_batch_tokens": {"help": "Most tokens in a batch."},
    "queue.max_queued_tokens": {
        "flag": "--max-queue-tokens",
        "help": "Most tokens that may wait; beyond, calls are shed.",
    },
}


@app.command(epilog=command.EXIT_CODES)
@command.server_options(RewardConfig, _PANELS, _OTHER)
def reward(
    flags: dict[str, Any],
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR|FILE",
            help="Serve the checkpoint in DIR (or a hub name), or the judge of FILE.toml, as NAME. "
            "Repeat it.",
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(metavar="ALIAS=NAME", help="Another name for a model. Repeat it."),
    ] = None,
    config: command.Config = None,
) -> None:
    """Serve reward models over gRPC, with HTTP beside it.

    For example:

      guerdon serve reward --model helpful=runs/helpful

      guerdon serve reward --config server.toml --port 0 --ready-file ports.json

    Each load compares the engine with plain transformers on probes; a checkpoint that
    would give wrong scores is refused with the reason. SIGTERM finishes what was
    accepted and exits.
    """
    flags |= {"models": _pairs("--model", model), "aliases": _pairs("--alias", alias)}
    command.serve(_COMMAND, lambda: _serve(config, flags))


def _serve(file: Path | None, flags: dict[str, Any]) -> None:
    # Read when torch is loaded: its threads spin for some 30 µs between operations, then sleep.
    # By default they spin for milliseconds, on cores that the event loop, the tokenizers and
    # other processes need; without spinning a forward pass takes half as long again.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # oneDNN and torch keep what they prepared for each shape of a product, by default for 1,024 of
    # them: 800 MiB, since nearly every batch has another number of tokens.
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "128")
    # Whoever asks torch whether there is a GPU must not start CUDA, which no fork survives.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

    config = load_config(file, flags)
    set_up_logging(config.log_level, access=config.access_log)
    if not config.models and config.admin_port < 0:
        raise SettingsError(
            "no model to serve: give --model NAME=DIR, or an --admin-port to load one by"
        )

    logger.info("importing torch and transformers")
    from guerdon.reward.app import RewardPorts, RewardServer
    from guerdon.reward.engine_process.remote import EngineProcesses
    from guerdon.reward.engine_process.spawner import Spawner
    from guerdon.reward.models.loader import new_loader

    # Before there is an event loop, and threads.
    engines = EngineProcesses(Spawner(config.engine), config.engine.devices)

    def on_ready(ports: RewardPorts) -> None:
        models = ", ".join(sorted(config.models)) or "no model yet"
        command.announce(ports, models, config.ready_file)

    async def run() -> int | None:
        server = RewardServer(config, new_loader(engines.load), engines)
        code = 0
        try:
            await server.run(on_ready)
        except EngineDied as error:
            if not server.threads_left:
                raise
            typer.echo(f"{_COMMAND}: {error}", err=True)
            code = command.DIED
        return code if server.threads_left else None

    if (code := asyncio.run(run())) is not None:
        # The interpreter's end under a thread that computes can crash; nothing is left to do.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)


def _pairs(flag: str, values: list[str] | None) -> dict[str, str] | None:
    pairs: dict[str, str] = {}
    for value in values or ():
        name, equals, target = value.partition("=")
        if not (name and equals and target):
            command.refuse(_COMMAND, f"{flag} must be NAME=VALUE, not {value!r}")
        if name in pairs:
            command.refuse(_COMMAND, f"{flag} gives {name!r} twice")
        pairs[name] = target
    return pairs or None
