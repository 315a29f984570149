"""Give the best of several answers, by reward: OpenAI's API before a policy and reward servers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import typer

from guerdon.gateway.config import GatewayConfig, load_config
from guerdon.serving.logs import set_up_logging
from guerdon.serving.process import command

app = typer.Typer(add_completion=False)

_COMMAND = "guerdon serve gateway"
_PANELS = {
    "": (
        "sampler", "endpoint", "endpoint_model", "pass_to", "reward", "reward_page", "name",
        *command.LISTENING, *command.ENDING,
    ),
    "Answers": (
        "best_of", "max_best_of", "max_tokens", "unranked", "max_seconds", "reward_seconds",
        "comment_seconds", "spending.caller_tokens", "spending.caller_seconds",
    ),
    "Upstream": (
        "upstream_tls", "upstream_ca", "sampler_token_file", "reward_token_file",
        "endpoint_key_file", "endpoint_key_over_http",
    ),
    "Security": command.SECURITY,
}  # fmt: skip


@app.command(epilog=command.EXIT_CODES)
@command.server_options(GatewayConfig, _PANELS, {})
def gateway(flags: dict[str, Any], *, config: command.Config = None) -> None:
    """Give the best of several answers, by reward: OpenAI's API before a policy and reward servers.

    For example:

      guerdon serve gateway --sampler localhost:50052 --reward localhost:50051/helpful

      guerdon serve gateway --endpoint http://localhost:8000/v1 --endpoint-model my-policy
      --reward localhost:50051/helpful

    Clients ask with the model's name policy:best-of-8, the header x-guerdon-best-of, or
    extra_body={"guerdon": {"best_of": 8}}. SIGTERM finishes what was accepted and exits.
    """
    command.serve(_COMMAND, lambda: _serve(config, flags))


def _serve(file: Path | None, flags: dict[str, Any]) -> None:
    config = load_config(file, flags)
    set_up_logging(config.log_level, access=config.access_log)

    from guerdon.gateway.app import GatewayServer
    from guerdon.serving.process.listening import Ports

    def on_ready(ports: Ports) -> None:
        command.announce(ports, config.name, config.ready_file)

    async def run() -> None:
        await GatewayServer(config).run(on_ready)

    asyncio.run(run())
