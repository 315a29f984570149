"""How a model is loaded and computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
MODES: Final = ("auto", "packed", "padded")
MAX_DEVICES: Final = 128


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How to compute, apart from what. The defaults are right for most."""

    dtype: str = "auto"
    """One of `DTYPES`; auto is float32 on a CPU and bfloat16 on a GPU."""
    device: str = "auto"
    """A torch device; auto is the first CUDA GPU, else the CPU."""
    mode: str = "auto"
    """One of `MODES`. `auto` packs, and pads what cannot be packed; `packed` refuses to
    load what cannot be packed; `padded` never packs."""
    devices: int = 1
    """Engines side by side, each with all models: on the first so many GPUs, or each with its share
    of the CPU's cores."""
    threads: int | None = None
    """CPU threads of torch for each engine; torch's own choice when None."""
    max_batch_tokens: int = 16_384
    """Tokens, padding included, of one forward pass of padded batches."""
    prefix_cache_mib: int = 512
    """MiB for the keys and values of beginnings that come again, for each model; 0 computes every
    batch from nothing."""
    deterministic: bool = False
    """One sequence per forward pass, nothing shared: a score never depends, not even in
    its last bit, on what else is in the batch. Slower."""

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("mode", MODES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} is {value!r}, it must be one of {', '.join(known)}")
        if not 1 <= self.devices <= MAX_DEVICES:
            raise ValueError(f"devices is {self.devices}, it must be from 1 to {MAX_DEVICES}")
        if self.devices > 1 and ":" in self.device:
            raise ValueError(
                f"device is {self.device!r}, which is one, and devices is {self.devices}"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}, it must be positive")
        if self.prefix_cache_mib < 0:
            raise ValueError(f"prefix_cache_mib is {self.prefix_cache_mib}, it can't be negative")
        if self.max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens is {self.max_batch_tokens}, it must be positive")
