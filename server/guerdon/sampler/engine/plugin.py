"""vLLM's plug-in point: makes our way of loading weights known in every process of its engine."""

from __future__ import annotations

BACKEND = "guerdon_files"
"""The name under which it is registered."""


def register() -> None:
    """Called by vLLM at the start of each process; repeating it is harmless."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "guerdon.sampler.engine.transfer", "FileTransfer"
        )
