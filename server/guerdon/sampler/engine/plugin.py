"""vLLM's plug-in point: what every process of its engine is told when it starts."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import warnings

from guerdon.sampler.engine.failure import report_failures

BACKEND = "guerdon_files"
"""The name under which our way of loading weights is registered."""
SAMPLER = "GUERDON_SAMPLER"
"""Variable that is set in the processes of a sampler."""

_NEEDLESS: dict[str, tuple[str, ...]] = {
    # Token ids are given as they are: there is nothing that vLLM's renderer could do to them.
    "vllm.v1.engine.input_processor": ("Passing raw prompts to InputProcessor",),
    # Said in each update of layers without weights of their own, tied ones too. That the tensors
    # are all of the checkpoint's was checked before.
    "vllm.model_executor.model_loader.reload.layerwise": (": Failed to load weights",),
    # What our own settings ask for on a CPU: see `launch.py`.
    "vllm.engine.arg_utils": ("does not officially support disabling chunked prefill",),
    "vllm.config.vllm": (
        "Enforce eager set",
        "Inductor compilation was disabled by user settings",
        "Model Runner V2 requires Triton",
    ),
    # Triton has no CPU backend that could be installed from a package index.
    "vllm.platforms.cpu": ("Triton is not installed", "Reset SSM cache type to float32"),
    "vllm.triton_utils.importing": ("Triton is installed, but doesn't include CPU backend",),
}
"""Parts of messages of vLLM 0.32 that nobody can act on, by logger; all else is still said."""

_watching = False


def register() -> None:
    """Called by vLLM at the start of each process; repeating it is harmless."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "guerdon.sampler.engine.transfer", "FileTransfer"
        )
    if SAMPLER in os.environ:  # others may use vLLM too where we are installed
        keep_quiet()
        report_failures()
        _end_with_parent()


def _end_with_parent() -> None:
    """Leave no process of the engine behind when the sampler is killed: it holds the memory."""
    global _watching
    parent = multiprocessing.parent_process()
    if parent is None or _watching:
        return
    _watching = True

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="guerdon-parent", daemon=True).start()


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return not any(part in said for part in _NEEDLESS[record.name])


def keep_quiet() -> None:
    """Leave out of this process's messages what is needless; repeating it is harmless."""
    for name in _NEEDLESS:
        logger = logging.getLogger(name)
        if not any(isinstance(found, _Filter) for found in logger.filters):
            logger.addFilter(_Filter())
    # vLLM looks at every attribute of torch.distributed for kernels.
    warnings.filterwarnings("ignore", "`torch.distributed.reduce_op` is deprecated", FutureWarning)
