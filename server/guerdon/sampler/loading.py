"""Makes an engine and a tokenizer of what an operator names; the one place that brings in vLLM."""

from __future__ import annotations

from guerdon.models import ModelNotFound, resolve_model
from guerdon.sampler.config import SamplerConfig
from guerdon.sampler.texts import ModelTexts, Texts
from guerdon.sampler.types import PolicyEngine
from guerdon.serving.errors import NotFound


def load_policy(config: SamplerConfig) -> tuple[PolicyEngine, Texts]:
    """The engine of the settings' policy, not started, and its tokenizer.

    Raises:
        NotFound: there is no such model.
        CheckpointRefused: it can't be served.
    """
    try:
        folder = resolve_model(config.model)
    except ModelNotFound as error:
        raise NotFound(str(error)) from error
    texts = ModelTexts(folder)

    from guerdon.sampler.engine import new_engine

    return new_engine(folder, config.model, config.engine), texts
