"""Sample a policy over gRPC, with HTTP beside it; its weights may change meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from guerdon.sampler.config import SamplerConfig, load_config
from guerdon.serving.logs import set_up_logging
from guerdon.serving.process import command

app = typer.Typer(add_completion=False)

_COMMAND = "guerdon serve sampler"
_PANELS = {
    "": (*command.LISTENING, "max_in_flight", *command.ENDING),
    "Engine": (
        "engine.dtype", "engine.max_model_len", "engine.max_num_seqs", "engine.kv_cache_gib",
        "engine.gpu_memory_utilization", "engine.tensor_parallel_size", "engine.threads",
    ),
    "Updates": ("updates", "shared_dirs", "nccl", "update_idle_seconds"),
    "Security": command.SECURITY,
}  # fmt: skip


@app.command(epilog=command.EXIT_CODES)
@command.server_options(SamplerConfig, _PANELS, {"shared_dirs": {"flag": "--shared-dir"}})
def sampler(
    flags: dict[str, Any],
    *,
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The policy to begin with: a folder or a hub name."),
    ] = None,
    config: command.Config = None,
) -> None:
    """Sample a policy over gRPC, with HTTP beside it; its weights may change meanwhile.

    For example:

      guerdon serve sampler --model runs/policy

      guerdon serve sampler --config sampler.toml --port 0 --ready-file ports.json

    A trainer publishes weights with UpdateWeights; whatever fails its checks leaves the
    weights before it serving. SIGTERM finishes what was accepted and exits.
    """
    flags["model"] = model
    command.serve(_COMMAND, lambda: _serve(config, flags))


def _serve(file: Path | None, flags: dict[str, Any]) -> None:
    config = load_config(file, flags)
    set_up_logging(config.log_level, access=config.access_log)

    from guerdon.sampler.app import SamplerServer
    from guerdon.sampler.loading import load_policy
    from guerdon.serving.access.callers import read_callers
    from guerdon.serving.process.listening import Ports

    read_callers(config)  # what is wrong with them is said before the model is looked at

    def on_ready(ports: Ports) -> None:
        command.announce(ports, config.model, config.ready_file)

    async def run() -> None:
        engine, tokenizer = load_policy(config)
        await SamplerServer(config, engine, tokenizer).run(on_ready)

    asyncio.run(run())
