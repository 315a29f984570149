"""How vLLM is started: quiet, without a network, and with settings that fit the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from guerdon.models.devices import cpu_multiplies_bfloat16
from guerdon.sampler.engine.failure import error_sentence
from guerdon.sampler.engine.plugin import BACKEND, SAMPLER, keep_quiet
from guerdon.sampler.engine.settings import EngineSettings

_CPU_LENGTH = 4096
_CPU_BLOCK = 32
"""Tokens of a block of the cache. Only whole blocks are shared, and vLLM's own 128 on CPUs would
have every completion of a short prompt compute it anew."""
_CPU_SEQUENCES = 64
_GPU_SEQUENCES = 256


def quiet_environment(settings: EngineSettings) -> None:
    """Set what vLLM reads from the environment, before it is imported.

    Our settings win; of the rest, what is set stays.
    """
    ours = {"VLLM_CPU_KVCACHE_SPACE": f"{settings.kv_cache_gib}", SAMPLER: "1"}
    if settings.threads:
        ours["OMP_NUM_THREADS"] = f"{settings.threads}"
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # This process has threads (gRPC's) by the time that vLLM starts its own processes.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # Its own 5 seconds are too few for a worker to end in on a busy machine.
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "20",
        "HF_HUB_OFFLINE": "1",  # the policy is a folder by now
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Binding threads to cores would starve whatever else runs on this machine.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    os.environ.update(ours)
    keep_quiet()


def engine_arguments(folder: Path, settings: EngineSettings) -> Any:
    """vLLM's own settings."""
    import torch
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig

    gpu = torch.cuda.is_available()
    length = settings.max_model_len or (None if gpu else _known_length(folder))
    eager = settings.enforce_eager
    found: dict[str, Any] = {"dtype": settings.dtype, "max_model_len": length}
    if not gpu:
        if settings.dtype == "auto" and not cpu_multiplies_bfloat16():
            found["dtype"] = "float32"
        # A prompt that is computed in pieces draws tokens that are thrown away, for which vLLM
        # 0.32 turns a seeded generator back; torch's CPU generators can't be turned back.
        found |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(length or 0, 8192)}
        found["block_size"] = _CPU_BLOCK
    return AsyncEngineArgs(
        **found,
        model=str(folder),
        max_num_seqs=settings.max_num_seqs or (_GPU_SEQUENCES if gpu else _CPU_SEQUENCES),
        gpu_memory_utilization=settings.gpu_memory_utilization,
        tensor_parallel_size=settings.tensor_parallel_size,
        enforce_eager=(not gpu) if eager is None else eager,
        enable_prefix_caching=True,
        load_format="safetensors",
        use_tqdm_on_load=False,
        trust_remote_code=False,
        logprobs_mode="processed_logprobs",  # of the distribution that is drawn from
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        seed=settings.seed,
        disable_log_stats=True,
    )


def start_failure(error: Exception, told: str = "") -> str:
    """What vLLM's start failed of.

    Args:
        error: raised in this process.
        told: what the engine's process said of its own failure.
    """
    text = error_sentence(error)
    if text.startswith("Engine core initialization failed"):
        return told or "its engine's process failed at its start, and wrote why to the log above"
    return text


def _known_length(folder: Path) -> int:
    """A CPU's cache is small: at most 4,096 tokens unless more is asked for."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    return min(int(getattr(config, "max_position_embeddings", _CPU_LENGTH)), _CPU_LENGTH)
