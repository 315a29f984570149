"""Makes an engine and a tokenizer of what an operator names; the one place that brings in vLLM."""

from __future__ import annotations

from guerdon.models import ModelNotFound, resolve_model
from guerdon.sampler.config import SamplerConfig
from guerdon.sampler.tokenizer import CheckpointTokenizer, Tokenizer
from guerdon.sampler.types import PolicyEngine
from guerdon.serving.errors import NotFound
from guerdon.settings import SettingsError


def load_policy(config: SamplerConfig) -> tuple[PolicyEngine, Tokenizer]:
    """The engine of the settings' policy, not started, and its tokenizer.

    Raises:
        NotFound: there is no such model.
        CheckpointRefused: it can't be served.
        SettingsError: this machine lacks what the settings want.
    """
    if config.nccl:
        _check_cuda()
    try:
        folder = resolve_model(config.model)
    except ModelNotFound as error:
        raise NotFound(str(error)) from error
    tokenizer = CheckpointTokenizer(folder)

    from guerdon.sampler.engine.vllm_engine import VLLMEngine

    return VLLMEngine(folder, config.model, config.engine), tokenizer


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise SettingsError(
            "nccl is set, and this machine has no CUDA GPU: take weights by stream or shared path"
        )
