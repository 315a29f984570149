"""Loads new weights from safetensors files, inside vLLM's worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)


@dataclass
class FilesInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing is needed."""


@dataclass
class FilesUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The files that hold every tensor of the checkpoint."""

    paths: list[str]


class FileTransfer(WeightTransferEngine[FilesInit, FilesUpdate]):  # type: ignore[misc]
    """The files were checked before the engine was told of them."""

    init_info_cls = FilesInit
    update_info_cls = FilesUpdate

    def init_transfer_engine(self, init_info: FilesInit) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Make the layers ready to be filled anew."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FilesUpdate) -> None:
        """Load every tensor."""
        model: Any = self.model
        model.load_weights(_tensors(update_info.paths))

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Load tensors like the base class, also where there is no accelerator to wait for."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        """Process what was loaded.

        On a CPU the output layer's weights are packed for its matrix products. One that is tied to
        the embeddings is given no tensor of its own, so vLLM 0.32 leaves the packed copy of the
        *old* weights in place, while versions and checksums look right.
        """
        finalize: Any = finalize_layerwise_reload
        finalize(self.model, self.model_config)
        module: Any
        for module in self.model.modules():
            if type(module).__name__ == "ParallelLMHead":
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing is held."""


def _tensors(paths: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                yield name, file.get_tensor(name)
