"""vLLM's plug-in point: what every process of its engine is told when it starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

from guerdon.sampler.engine.failure import report_failures
from guerdon.sampler.engine.quiet import keep_quiet

BACKEND = "guerdon_files"
"""The name under which our way of loading weights is registered."""
SAMPLER = "GUERDON_SAMPLER"
"""Variable that is set in the processes of a sampler."""

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
