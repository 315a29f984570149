"""vLLM's plug-in point: what every process of its engine is told when it starts."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading

BACKEND = "guerdon_files"
"""The name under which our way of loading weights is registered."""

_watching = False


def register() -> None:
    """Called by vLLM at the start of each process; repeating it is harmless."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "guerdon.sampler.engine.transfer", "FileTransfer"
        )
    logging.getLogger("vllm.v1.engine.input_processor").addFilter(_wanted)
    _end_with_parent()


def _wanted(record: logging.LogRecord) -> bool:
    """Token ids are given as they are: there is nothing that vLLM's renderer could do to them."""
    return not record.getMessage().startswith("Passing raw prompts to InputProcessor")


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
