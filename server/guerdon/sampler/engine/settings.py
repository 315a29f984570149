"""How the policy is computed."""

from __future__ import annotations

from dataclasses import dataclass

_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What vLLM is told; 0 stands for what the machine makes the default."""

    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: the checkpoint's own, but float32 on processors without
    instructions for bfloat16."""
    max_model_len: int = 0
    """Most tokens of prompt and completion. (default: the model's, on a CPU up to 4096)"""
    max_num_seqs: int = 0
    """Most completions drawn at a time; others wait. (default: 64 on a CPU, 256 on a GPU)"""
    kv_cache_gib: int = 2
    """Memory for keys and values on a CPU, in GiB."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory to take."""
    tensor_parallel_size: int = 1
    """GPUs that share the model."""
    enforce_eager: bool | None = None
    """Run without compiling; None is True on a CPU, where compiling takes a minute."""
    threads: int = 0
    """CPU threads of torch. (default: all cores)"""
    seed: int = 0
    """Seed of completions that come without one of their own."""

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, it must be one of {', '.join(_DTYPES)}")
        for name in ("max_model_len", "max_num_seqs", "threads", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must not be negative")
        for name in ("kv_cache_gib", "tensor_parallel_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be positive")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError("gpu_memory_utilization must be over 0 and at most 1")
