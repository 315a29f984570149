"""Keeps quiet what vLLM 0.32 warns of and nobody can act on. Everything else is still said."""

from __future__ import annotations

import logging
import warnings

_NEEDLESS: dict[str, tuple[str, ...]] = {
    # Token ids are given as they are: there is nothing that vLLM's renderer could do to them.
    "vllm.v1.engine.input_processor": ("Passing raw prompts to InputProcessor",),
    # Said in each update of layers without weights of their own, tied ones too. That the tensors
    # are all of the checkpoint's was checked before.
    "vllm.model_executor.model_loader.reload.layerwise": (": Failed to load weights",),
    # What our own settings ask for on a CPU: see `launch.py`.
    "vllm.engine.arg_utils": ("does not officially support disabling chunked prefill",),
    "vllm.config.vllm": (
        "Enforce eager set", "Inductor compilation was disabled by user settings",
        "Model Runner V2 requires Triton",
    ),
    # Triton has no CPU backend that could be installed from a package index.
    "vllm.platforms.cpu": ("Triton is not installed", "Reset SSM cache type to float32"),
    "vllm.triton_utils.importing": ("Triton is installed, but doesn't include CPU backend",),
}  # fmt: skip
"""Parts of the messages that are left out, by logger."""


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return not any(part in said for part in _NEEDLESS[record.name])


def keep_quiet() -> None:
    """Filter this process's messages; repeating it is harmless."""
    for name in _NEEDLESS:
        logger = logging.getLogger(name)
        if not any(isinstance(found, _Filter) for found in logger.filters):
            logger.addFilter(_Filter())
    # vLLM looks at every attribute of torch.distributed for kernels.
    warnings.filterwarnings("ignore", "`torch.distributed.reduce_op` is deprecated", FutureWarning)
