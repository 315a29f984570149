"""`guerdon serve sampler`: the flags, and the errors as one plain sentence."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from guerdon.serving import options
from guerdon.serving.process import command
from guerdon.serving.process.logs import set_up_logging

app = typer.Typer(add_completion=False)

_COMMAND = "guerdon serve sampler"
_ENGINE = "Engine"
_UPDATES = "Updates"
_ENGINE_FLAGS = (
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "kv_cache_gib",
    "gpu_memory_utilization",
    "tensor_parallel_size",
    "threads",
)


@app.command(epilog=command.EXIT_CODES)
def sampler(
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The policy to begin with: a folder or a hub name."),
    ] = None,
    config: options.Config = None,
    host: options.Host = None,
    port: Annotated[int | None, options.port_option(50052)] = None,
    http_port: Annotated[int | None, options.http_port_option(8081)] = None,
    metrics_port: options.MetricsPort = None,
    max_in_flight: Annotated[
        int | None,
        typer.Option(
            help="Most completions running and waiting; beyond, calls are shed. (default: 512)"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16, float16, or auto: the checkpoint's own, but float32 on "
            "processors without instructions for bfloat16. (default: auto)",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of prompt and completion. (default: the model's, on a CPU up to "
            "4096)",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            help="Most completions drawn at a time; others wait. (default: 64 on a CPU, 256 on a "
            "GPU)",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    kv_cache_gib: Annotated[
        int | None,
        typer.Option(
            help="Memory for keys and values on a CPU, in GiB. (default: 2)",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            help="Share of a GPU's memory to take. (default: 0.9)", rich_help_panel=_ENGINE
        ),
    ] = None,
    tensor_parallel_size: Annotated[
        int | None,
        typer.Option(help="GPUs that share the model. (default: 1)", rich_help_panel=_ENGINE),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of torch. (default: all cores)", rich_help_panel=_ENGINE),
    ] = None,
    updates: Annotated[
        bool | None,
        typer.Option(
            "--updates/--no-updates", help="Let the weights be replaced.", rich_help_panel=_UPDATES
        ),
    ] = None,
    shared_dir: Annotated[
        list[Path] | None,
        typer.Option(
            help="Take weights from files below this folder. Repeat it.", rich_help_panel=_UPDATES
        ),
    ] = None,
    nccl: Annotated[
        bool | None,
        typer.Option(
            "--nccl",
            help="Take weights by NCCL, between two CUDA GPUs. Not tried on any yet.",
            rich_help_panel=_UPDATES,
        ),
    ] = None,
    update_idle_seconds: Annotated[
        float | None,
        typer.Option(
            help="Give up an update whose trainer is silent for so long. (default: 60)",
            rich_help_panel=_UPDATES,
        ),
    ] = None,
    tls_certificate: options.TlsCertificate = None,
    tls_key: options.TlsKey = None,
    tls_client_ca: options.TlsClientCa = None,
    tokens: options.Tokens = None,
    token_file: Annotated[Path | None, options.token_option("sampling")] = None,
    admin_token_file: Annotated[Path | None, options.admin_token_option("updates")] = None,
    lame_duck: options.LameDuck = None,
    drain_grace: options.DrainGrace = None,
    ready_file: options.ReadyFile = None,
    log_level: options.LogLevel = None,
    access_log: options.AccessLog = None,
) -> None:
    """Sample a policy over gRPC, with HTTP beside it; its weights may change meanwhile.

    For example:

      guerdon serve sampler --model runs/policy

      guerdon serve sampler --config sampler.toml --port 0 --ready-file ports.json

    A trainer publishes weights with UpdateWeights; whatever fails its checks leaves the
    weights before it serving. SIGTERM finishes what was accepted and exits.
    """
    given = locals()
    flags: dict[str, Any] = {f"engine.{name}": given[name] for name in _ENGINE_FLAGS}
    flags["shared_dirs"] = shared_dir or None
    flags |= options.pick(given, "model", "max_in_flight", "updates", "nccl", "update_idle_seconds")
    command.serve(_COMMAND, lambda: _serve(config, flags))


def _serve(file: Path | None, flags: dict[str, Any]) -> None:
    from guerdon.sampler.config import load_config

    config = load_config(file, flags)
    set_up_logging(config.log_level, access=config.access_log)

    from guerdon.sampler.app import SamplerServer
    from guerdon.sampler.loading import load_policy
    from guerdon.serving.access.callers import read_callers
    from guerdon.serving.process.ports import Ports

    read_callers(config)  # what is wrong with them is said before the model is looked at

    def on_ready(ports: Ports) -> None:
        command.announce(ports, config.model, config.ready_file)

    async def run() -> None:
        engine, tokenizer = load_policy(config)
        await SamplerServer(config, engine, tokenizer).run(on_ready)

    asyncio.run(run())
