"""Published reward models whose heads `transformers` does not have.

Their checkpoints need Python code that comes with them (`auto_map` in config.json) or is
published elsewhere. None of it is run: what it computes is written here, one module for each,
with the source cited, and the checkpoint's own tensors are loaded into it.

A new model is one more module and one more name in `registry`.
"""

from guerdon.reward.adapters.base import Adapter
from guerdon.reward.adapters.registry import architectures, find_adapter

__all__ = ["Adapter", "architectures", "find_adapter"]
